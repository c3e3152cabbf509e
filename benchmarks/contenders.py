"""Who takes part in the benchmark: this project and its peers, and how each is set up.

The settings here are those that are used: each peer gets them with its task. They are what its own
users would set for throughput, on a machine with few cores.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import msgspec
import yaml

from peers.task import Task
from workload import POLICY

HERE = Path(__file__).parent
JAVA = HERE / "peers" / "java"
VENVS = HERE / ".venvs"

Settings = Mapping[str, Mapping[str, Any]]


class Forwards(Enum):
    """What a contender forwards, and so what its output is compared with."""

    DECIDED = "what the policy lets through"
    QUARTER = "every fourth person's"
    NOTHING = "nothing"


class Unavailable(Exception):
    """A contender cannot take part; the message says why."""


class Contender(Protocol):
    """One of those who are compared."""

    @property
    def name(self) -> str:
        """For `--only`, and in the names of topics."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def note(self) -> str:
        """What it promises, and what it leaves out, in a few words."""

    @property
    def settings(self) -> Settings:
        """Settings of its clients, by the client."""

    @property
    def forwards(self) -> Forwards:
        """What goes to the task's output topic."""

    @property
    def is_slow(self) -> bool:
        """Whether it gets only the first of the events, so that a round takes no minutes."""

    def prepare(self) -> None:
        """Build or install what is missing, once. Raises `Unavailable`."""

    def command(self, task: Task) -> list[str]:
        """The program that does the task until it gets SIGTERM; what it needs is put in place."""

    def table_rate(self, stdout: str, log: str, subjects: int) -> float | None:
        """Consent records a second while the table was read at the start, where that shows."""


@dataclass(frozen=True)
class Consentgate:
    """This project as shipped."""

    name: str = "consentgate"
    title: str = "consentgate"
    note: str = "as shipped: exactly once, barrier, ledger, retractions"
    settings: Settings = field(default_factory=dict)
    forwards: Forwards = Forwards.DECIDED
    is_slow: bool = False
    policy: str = POLICY
    workers: int = 1

    def prepare(self) -> None:
        """It is installed: the benchmark itself runs on it."""

    def command(self, task: Task) -> list[str]:
        """Write the configuration and create the topics; then `consentgate run`."""
        directory = Path(task.directory)
        policy, config = directory / "policy.yaml", directory / "consentgate.yaml"
        policy.write_text(self.policy)
        own = ("decisions", "quarantine", "retractions")
        topics = {
            "content": task.content,
            "consent": task.consent,
            "training": task.output,
            **{topic: f"{task.output}-{topic}" for topic in own},
        }
        written = {
            "kafka": {"bootstrap.servers": task.servers},
            "group": task.output,
            "topics": topics,
            "policy": str(policy),
            "http": {"port": 0},
        }
        config.write_text(yaml.safe_dump(written))
        command = [sys.executable, "-m", "consentgate"]
        create = ["topics", "create", "-c", str(config), "--partitions", str(task.partitions)]
        subprocess.run([*command, *create], check=True, stdout=subprocess.DEVNULL)
        run = [*command, "run", "-c", str(config), "--log-json"]
        if self.workers == 1:
            return run
        return [sys.executable, "-m", "peers.abreast", str(self.workers), *run]

    def table_rate(self, stdout: str, log: str, subjects: int) -> float | None:
        """From the assignment until the last partition is ready, as the log has it."""
        if self.workers > 1:
            return None
        events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        times = {
            what: [datetime.fromisoformat(e["timestamp"]) for e in events if e["event"] == what]
            for what in ("assigned", "ready")
        }
        if not all(times.values()):
            return None
        return subjects / (max(times["ready"]) - min(times["assigned"])).total_seconds()


@dataclass(frozen=True)
class Peer:
    """What all peers have in common: they are told their task as JSON, and report their table."""

    name: str
    title: str
    note: str
    program: str
    settings: Settings
    forwards: Forwards = Forwards.DECIDED
    is_slow: bool = False

    def table_rate(self, stdout: str, log: str, subjects: int) -> float | None:
        """What it printed last."""
        reports = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
        if not reports:
            return None
        return reports[-1]["table_records"] / reports[-1]["table_seconds"]


@dataclass(frozen=True)
class PythonPeer(Peer):
    """A module of `peers`, in the project's environment or in one of its own."""

    environment: str | None = None

    def prepare(self) -> None:
        """Make the environment, unless it is there with these very requirements."""
        if self.environment is None:
            return
        directory = VENVS / self.environment
        requirements = HERE / "peers" / self.environment / "requirements.txt"
        stamp = directory / "installed.txt"
        if stamp.exists() and stamp.read_text() == requirements.read_text():
            return
        venv.create(directory, clear=True, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        _build([str(self._python), *install, "-r", str(requirements)], "its packages")
        shutil.copy(requirements, stamp)

    def command(self, task: Task) -> list[str]:
        """The module with its task."""
        return [str(self._python), "-m", f"peers.{self.program}", _encode(task)]

    @property
    def _python(self) -> Path:
        if self.environment is None:
            return Path(sys.executable)
        return VENVS / self.environment / "bin" / "python"


@dataclass(frozen=True)
class JavaPeer(Peer):
    """A class of `peers/java`."""

    def prepare(self) -> None:
        """Build all of them, unless that was done after the last change."""
        for tool in ("java", "javac", "mvn"):
            if shutil.which(tool) is None:
                raise Unavailable(f"needs a JDK (17 or later) and Maven; there is no {tool}")
        sources = [JAVA / "pom.xml", *JAVA.glob("src/**/*.java")]
        jar = JAVA / "target" / "peers-1.jar"
        if jar.exists() and jar.stat().st_mtime > max(path.stat().st_mtime for path in sources):
            return
        _build(["mvn", "-q", "-B", "-f", str(JAVA / "pom.xml"), "package"], "the jar")

    def command(self, task: Task) -> list[str]:
        """The class with its task."""
        jars = os.pathsep.join(str(JAVA / path) for path in ("target/*", "target/lib/*"))
        return ["java", *JVM, "-cp", jars, f"peers.{self.program}", _encode(task)]


def _build(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it did not say why"]
        raise Unavailable(f"{what} could not be made: {said[0]}")


def _encode(task: Task) -> str:
    return msgspec.json.encode(task).decode()


JVM = (
    "-Xmx1g",
    "-XX:+UseParallelGC",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
_FETCH_BYTES = 4_194_304
_BATCH_BYTES = 524_288
_AIOKAFKA_CONSUMER = {"max_partition_fetch_bytes": _FETCH_BYTES}
_JAVA_CONSUMER = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "max.poll.records": 10_000,
    "max.partition.fetch.bytes": _FETCH_BYTES,
}
_JAVA_PRODUCER = {"batch.size": _BATCH_BYTES, "linger.ms": 20, "buffer.memory": 134_217_728}
_STREAMS = {
    "processing.guarantee": "exactly_once_v2",
    "num.stream.threads": 2,
    "commit.interval.ms": 100,  # The default with exactly-once.
    "replication.factor": 1,
    "topology.optimization": "all",
    "buffered.records.per.partition": 10_000,
    "consumer.max.poll.records": 10_000,
    "consumer.max.partition.fetch.bytes": _FETCH_BYTES,
    "consumer.auto.offset.reset": "earliest",
    "producer.batch.size": _BATCH_BYTES,
}
_LIBRDKAFKA_CONSUMER = {
    "auto.offset.reset": "earliest",
    # The default of 1,000 leaves the consumer without records for most of the time.
    "fetch.queue.backoff.ms": 5,
    "max.partition.fetch.bytes": _FETCH_BYTES,
}
_LIBRDKAFKA_PRODUCER = {
    "linger.ms": 20,
    "batch.size": _BATCH_BYTES,
    "acks": "all",
    "enable.idempotence": True,
}
_LIBRDKAFKA_POLLS = {"poll.records": 10_000, "poll.ms": 50}
_LIBRDKAFKA = {
    "consumer": _LIBRDKAFKA_CONSUMER,
    "producer": _LIBRDKAFKA_PRODUCER,
    "loop": _LIBRDKAFKA_POLLS,
}

CONSENTGATE = Consentgate()
KTABLE = JavaPeer(
    "streams-ktable",
    "Kafka Streams, KTable",
    "exactly_once_v2, in the order of timestamps, 2 threads",
    "TableJoin",
    {"streams": _STREAMS},
)
AIOKAFKA = PythonPeer(
    "aiokafka",
    "aiokafka loop, dict",
    "async for and send(): at least once",
    "aiokafka.loop",
    {
        "consumer": _AIOKAFKA_CONSUMER,
        "producer": {"acks": "all", "linger_ms": 20, "max_batch_size": _BATCH_BYTES},
    },
)
CONTENDERS: tuple[Contender, ...] = (
    CONSENTGATE,
    Consentgate(
        "consentgate-2",
        "consentgate, 2 workers",
        "as shipped, in 2 processes that share the partitions",
        workers=2,
    ),
    KTABLE,
    JavaPeer(
        "streams-globalktable",
        "Kafka Streams, GlobalKTable",
        "exactly_once_v2, table not in step, 2 threads",
        "GlobalTableJoin",
        {"streams": _STREAMS},
    ),
    JavaPeer(
        "java",
        "Java loop, HashMap",
        "by hand: exactly once, no barrier, no ledger",
        "HandTuned",
        {"consumer": _JAVA_CONSUMER, "producer": _JAVA_PRODUCER, "loop": {"transaction.ms": 100}},
    ),
    PythonPeer(
        "librdkafka",
        "librdkafka from Python, dict",
        "by hand: exactly once, no barrier, no ledger",
        "librdkafka.join",
        {
            "consumer": {**_LIBRDKAFKA_CONSUMER, "enable.auto.commit": False},
            "producer": _LIBRDKAFKA_PRODUCER,
            "loop": {**_LIBRDKAFKA_POLLS, "transaction.ms": 100},
        },
        environment="librdkafka",
    ),
    PythonPeer(
        "quix",
        "Quix Streams, dict",
        "exactly-once, no barrier, no ledger",
        "quix.app",
        {
            "application": {"processing_guarantee": "exactly-once", "commit_interval": 0.1},
            "consumer": _LIBRDKAFKA_CONSUMER,
            "producer": {"linger.ms": 20, "batch.size": _BATCH_BYTES},
        },
        environment="quix",
    ),
    AIOKAFKA,
    PythonPeer(
        "faust",
        "Faust, dict",
        "at least once; gets fewer events",
        "faust.app",
        {
            "consumer": _AIOKAFKA_CONSUMER,
            "app": {
                "store": "memory://",
                "web_enabled": False,
                "topic_disable_leader": True,
                "consumer_auto_offset_reset": "earliest",
                "consumer_max_fetch_size": _FETCH_BYTES,
                "stream_buffer_maxsize": 16_384,
                "producer_linger": 0.02,
                "producer_max_batch_size": _BATCH_BYTES,
            },
        },
        is_slow=True,
        environment="faust",
    ),
    PythonPeer(
        "pass-through",
        "librdkafka, pass-through",
        "every fourth person's; decides nothing",
        "librdkafka.pass_through",
        _LIBRDKAFKA,
        Forwards.QUARTER,
        environment="librdkafka",
    ),
    PythonPeer(
        "consume-only",
        "librdkafka, consume only",
        "the limit; forwards nothing",
        "librdkafka.consume_only",
        _LIBRDKAFKA,
        Forwards.NOTHING,
        environment="librdkafka",
    ),
)
"""In the order of the table."""

BY_LATENCY: tuple[Contender, ...] = (
    CONSENTGATE,
    KTABLE,
    replace(
        KTABLE,
        name="streams-ktable-20ms",
        note="exactly_once_v2, commits every 20 ms, 2 threads",
        settings={"streams": {**_STREAMS, "commit.interval.ms": 20}},
    ),
)
"""Those whose latency is measured."""
