"""What is deployed against what is built: every path, command, setting and metric exists."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.config import PREFIX, load_config
from consentgate.policies import load_policy
from consentgate.service.worker import STOP_SECONDS_MAX
from consentgate.tools.jars import kafka_version, read_lock

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {
    name: service
    for name, service in SERVICES.items()
    if service["image"].startswith("consentgate")
}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "run"}
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text("utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


def mounts_of(service: dict[str, Any]) -> dict[str, str]:
    """Path in the container to path on the host (or volume) of a service."""
    pairs = (volume.split(":") for volume in service.get("volumes", ()))
    return {target: source for source, target, *_ in pairs}


@pytest.mark.parametrize("name", SERVICES)
def test_every_path_that_compose_names_exists(name: str) -> None:
    service = SERVICES[name]
    for source in mounts_of(service).values():
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]
    if "build" in service:
        context = ROOT / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_depends_on_known_services_only(name: str) -> None:
    dependencies = SERVICES[name].get("depends_on", {})
    assert set(dependencies) <= set(SERVICES)
    if isinstance(dependencies, dict):
        for dependency, condition in dependencies.items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[dependency]


def test_nothing_is_published_to_other_machines() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len({port.split(":")[1] for port in published}) == len(published)
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", OURS)
def test_a_container_of_ours_has_the_least_rights(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_two_workers_share_the_partitions_and_have_time_to_stop() -> None:
    assert len(WORKERS) == 2
    (topics,) = (service["command"] for name, service in OURS.items() if name not in WORKERS)
    assert int(topics[topics.index("--partitions") + 1]) % len(WORKERS) == 0
    for worker in WORKERS.values():
        # It waits twice for its partitions, then for its snapshots, then for its clients to close.
        assert int(worker["stop_grace_period"].removesuffix("s")) > STOP_SECONDS_MAX
        assert worker["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


def test_the_base_image_is_pinned_to_a_version_that_the_project_supports() -> None:
    (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-[a-z]+", base)
    assert found is not None
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["project"]["classifiers"]
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE}"}


def test_compose_runs_the_versions_that_the_tests_run() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka_version(read_lock())}"
    assert {service["image"] for service in OURS.values()} == {
        f"consentgate:{PROJECT['project']['version']}"
    }


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_compose_is_one_of_the_command_line(name: str) -> None:
    # With --help nothing runs, but an unknown command or option is refused before.
    result = CliRunner().invoke(app, [*OURS[name]["command"], "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", OURS)
def test_the_configuration_that_compose_mounts_loads(name: str) -> None:
    service = OURS[name]
    environment = dict(service["environment"])
    mounted = mounts_of(service)[environment.pop(f"{PREFIX}CONFIG")]
    assert all(variable.startswith(PREFIX) for variable in environment)
    config = load_config(str(ROOT / mounted), environment)
    load_policy(config.policy)
    servers = str(config.kafka["bootstrap.servers"])
    assert (
        f"PLAINTEXT://{servers}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    )


def test_prometheus_and_docker_ask_the_port_that_is_served() -> None:
    config = load_config(str(ROOT / "deploy/consentgate.yaml"), {})
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    (scrape,) = prometheus["scrape_configs"]
    (mounted,) = mounts_of(SERVICES["prometheus"]).items()
    assert mounted == ("/etc/prometheus", "./deploy/prometheus")
    for pattern in prometheus["rule_files"]:
        assert list((ROOT / "deploy/prometheus").glob(pattern))
    assert scrape["static_configs"] == [
        {"targets": [f"{name}:{config.http.port}" for name in WORKERS]}
    ]
    for number, worker in enumerate(WORKERS.values()):
        published = f"{config.http.port + number}:{config.http.port}"
        assert worker["ports"] == [f"127.0.0.1:{published}"]
    assert f"EXPOSE {config.http.port}\n" in DOCKERFILE
    (probe,) = re.findall(r'CMD \["python", "-c", "(.+)"\]', DOCKERFILE)
    compile(probe, "HEALTHCHECK", "exec")
    assert f"'{config.http.port}') + '/livez'" in probe


def test_every_file_that_the_image_is_built_from_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    paths = list(chain.from_iterable(sources.split() for sources in copied))
    for path in paths:
        assert (ROOT / path).exists(), path
        assert f"!{path.split('/')[0]}" in ignored
    # All else is left out, secrets that lie about and the history among it.
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert kept == {path.split("/")[0] for path in paths}


def test_prometheus_finds_its_configuration_and_its_rules() -> None:
    mounts = mounts_of(SERVICES["prometheus"])
    assert mounts["/etc/prometheus"] == "./deploy/prometheus"
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    assert prometheus["rule_files"] == ["rules/*.yml"]


def test_the_final_layer_can_build_nothing_and_is_nobody_of_note() -> None:
    *_, final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert "pip uninstall --yes --root-user-action=ignore setuptools wheel pip" in final
    assert "pip install" not in final
    assert re.search(r"^USER [1-9][0-9]+$", final, re.MULTILINE)
    assert re.findall(r"^COPY .+$", final, re.MULTILINE) == [
        "COPY --from=build /opt/consentgate /opt/consentgate"
    ]


def test_grafana_finds_its_dashboards_and_its_data_source() -> None:
    mounts = mounts_of(SERVICES["grafana"])
    provisioning = ROOT / mounts["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/consentgate.yml").read_text("utf-8"))[
        "providers"
    ]
    folder = ROOT / mounts[provider["options"]["path"]]
    assert sorted(folder.glob("*.json")) == DASHBOARDS
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounts[str(home.parent)] / home.name).is_file()
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text("utf-8"))[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"


def locked(name: str) -> dict[str, Version]:
    """The packages of a lock file and their versions."""
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    pins = (Requirement(line.rstrip(" \\")) for line in lines if line[:1].isalnum())
    return {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def required(*groups: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in chain.from_iterable(groups)]


EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("runtime.lock", [PROJECT["project"]["dependencies"]]),
        ("build.lock", [PROJECT["build-system"]["requires"]]),
        (
            "dev.lock",
            [
                PROJECT["project"]["dependencies"],
                # Presidio is no part of it: its tests have an environment of their own.
                *(each for name, each in EXTRAS.items() if name != "presidio"),
                PROJECT["dependency-groups"]["dev"],
            ],
        ),
        ("ops.lock", [PROJECT["dependency-groups"]["ops"]]),
    ],
)
def test_a_lock_satisfies_what_the_project_requires(name: str, groups: list[list[str]]) -> None:
    pins = locked(name)
    for requirement in required(*groups):
        assert pins[requirement.name.lower()] in requirement.specifier, f"{requirement}: make lock"


@pytest.mark.parametrize("name", ["runtime.lock", "build.lock"])
def test_the_image_has_the_versions_that_are_tested(name: str) -> None:
    assert locked(name).items() <= locked("dev.lock").items()


@pytest.mark.parametrize("name", ["dev.lock", "runtime.lock", "build.lock"])
def test_a_lock_has_a_hash_for_each_package_and_names_no_place(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text("utf-8")
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in entry
    assert "://" not in text
    assert "--find-links" not in text
    assert "--index-url" not in text
