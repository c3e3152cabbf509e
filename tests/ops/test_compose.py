"""What docker-compose.yml brings up, as processes: Kafka with its settings, topics, two workers."""

import asyncio
import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from jsonschema import Draft7Validator

from consentgate.tools.broker import HOST, EmbeddedKafka
from harness import until
from image import ROOT, Image

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("enforcer")]
# Here it is the embedded Kafka that says where it listens and where its data are.
PLACES = {
    "advertised.listeners",
    "controller.quorum.voters",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dirs",
}
MISSPELT = "group.initial.rebalance.dealy.ms"


def kafka_settings() -> dict[str, str]:
    """The settings of the service `kafka`, named as the image names them from its environment."""
    environment: dict[str, str] = SERVICES["kafka"]["environment"]
    assert all(name.startswith("KAFKA_") for name in environment)
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
    }


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    settings = {name: each for name, each in kafka_settings().items() if name not in PLACES}
    with EmbeddedKafka(config={**settings, MISSPELT: "0"}) as running:
        yield running


def test_the_file_is_as_the_specification_says() -> None:
    schema = json.loads((ROOT / ".ops/schemas/compose-spec.json").read_text("utf-8"))
    errors = Draft7Validator(schema).iter_errors(COMPOSE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


async def test_every_setting_of_kafka_is_one_that_it_knows(kafka: EmbeddedKafka) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        asked = ConfigResource(ConfigResourceType.BROKER, "1")
        (response,) = await admin.describe_configs([asked])
    finally:
        await admin.close()
    # A setting that it does not know might be a secret, so the broker keeps it to itself.
    entries = response.resources[0][-1]
    known = {name for name, value, *_ in entries if name != MISSPELT and value is not None}
    unset = {name for name, value, *_ in entries if value is None}
    assert MISSPELT in unset
    assert set(kafka_settings()) <= known | (PLACES & unset)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])


class Container:
    """A service of ours as a process, with the image's environment and the mounted file."""

    def __init__(self, image: Image, name: str, kafka: EmbeddedKafka, log: Path) -> None:
        service = SERVICES[name]
        (mounted,) = (volume.split(":")[0] for volume in service["volumes"])
        self.port = free_port()
        self.environment = {
            "PATH": f"{image.environment}/bin:/usr/bin:/bin",
            "CONSENTGATE_CONFIG": str(ROOT / mounted),
            "CONSENTGATE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "CONSENTGATE_HTTP__PORT": str(self.port),
        }
        self.log = log
        self._image = image
        self._command = image.contained(image.command(*service["command"]))

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(self._command, env=self.environment, stdout=log, stderr=log)

    def is_healthy(self) -> bool:
        """What the image's HEALTHCHECK finds."""
        command = self._image.contained(self._image.health_check())
        # What it prints while nobody listens is of no interest.
        return not subprocess.run(
            command, env=self.environment, stderr=subprocess.DEVNULL, check=False
        ).returncode

    def state(self) -> dict[str, Any]:
        """What `/readyz` says; nothing while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/readyz", timeout=5) as answer:
                return {"code": answer.status, **json.load(answer)}
        except urllib.error.HTTPError as error:
            return {"code": error.code, **json.load(error)}
        except OSError:
            return {"code": 0, "components": {}}

    def partitions(self) -> set[str]:
        components = self.state()["components"]
        return {name for name, state in components.items() if name.startswith("partition-")}


@pytest.fixture
async def workers(
    image: Image, kafka: EmbeddedKafka, tmp_path: Path
) -> AsyncIterator[dict[str, tuple[Container, subprocess.Popen[bytes]]]]:
    topics = Container(image, "topics", kafka, tmp_path / "topics.log")
    assert topics.start().wait(60) == 0, topics.log.read_text("utf-8")
    containers = {name: Container(image, name, kafka, tmp_path / f"{name}.log") for name in WORKERS}
    running = {name: (each, each.start()) for name, each in containers.items()}
    yield running
    for container, process in running.values():
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        print(container.log.read_text("utf-8")[-4000:])


async def test_two_workers_share_the_partitions_until_one_of_them_stops(
    workers: dict[str, tuple[Container, subprocess.Popen[bytes]]], image: Image
) -> None:
    (first, first_process), (second, second_process) = workers.values()
    (topics,) = (SERVICES[name]["command"] for name in SERVICES if name == "topics")
    number = int(topics[topics.index("--partitions") + 1])

    def shared() -> bool:
        states = [first.state(), second.state()]
        return all(state["code"] == 200 for state in states) and bool(
            first.partitions() and second.partitions()
        )

    await until(shared, "both are ready and have partitions", 60)
    assert not first.partitions() & second.partitions()
    assert len(first.partitions() | second.partitions()) == number
    assert first.is_healthy()
    assert second.is_healthy()
    first_process.send_signal(signal.SIGTERM)
    stopped = await asyncio.to_thread(first_process.wait, 45)
    assert stopped == 0, first.log.read_text("utf-8")
    assert not first.is_healthy()
    await until(
        lambda: len(second.partitions()) == number and second.state()["code"] == 200,
        "the other one has all partitions",
        60,
    )
    assert second_process.poll() is None


async def test_prometheus_reads_both_workers_with_this_configuration(
    workers: dict[str, tuple[Container, subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8")
    for name, (container, _) in workers.items():
        text = text.replace(f"{name}:8080", f"{HOST}:{container.port}")
    # The names of files in it count from where it lies.
    (tmp_path / "rules").symlink_to(ROOT / "deploy/prometheus/rules")
    (tmp_path / "prometheus.yml").write_text(text, "utf-8")
    port = free_port()
    with prometheus(tmp_path, port):
        await until(lambda: len(targets_up(port)) == len(WORKERS), "both are read", 60)


@contextmanager
def prometheus(directory: Path, port: int) -> Iterator[None]:
    """Prometheus with the configuration and for the data in a directory."""
    command = ["prometheus", f"--config.file={directory}/prometheus.yml"]
    command += [f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address={HOST}:{port}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        print((directory / "prometheus.log").read_text("utf-8")[-2000:])


def targets_up(port: int) -> set[str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/api/v1/targets", timeout=5) as answer:
            found = json.load(answer)["data"]["activeTargets"]
    except OSError:
        return set()
    return {target["scrapeUrl"] for target in found if target["health"] == "up"}
