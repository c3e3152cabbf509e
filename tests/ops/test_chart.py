"""The Helm chart, rendered with each file of `ci`: what Kubernetes would be given."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.config import load_config
from consentgate.policies import load_policy
from consentgate.service.worker import BROKER_SECONDS_MAX, STOP_SECONDS_MAX

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/consentgate"
TOOLS = ROOT / ".ops"
SCHEMAS = TOOLS / "schemas"
CASES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
KUBERNETES = sorted(path.stem.removeprefix("kubernetes-") for path in SCHEMAS.glob("kubernetes-*"))

Object = Mapping[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(TOOLS / "bin/helm"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def values_of(case: str) -> list[str]:
    return ["--values", str(CHART / f"ci/{case}.yaml")]


def render(*arguments: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    options = ["--namespace", "gates", "--kube-version", "1.37.0"]
    return helm("template", "gate", str(chart), *options, *arguments)


@cache
def rendered(case: str) -> tuple[Object, ...]:
    result = render(*values_of(case))
    assert result.returncode == 0, result.stderr
    return tuple(found for found in yaml.safe_load_all(result.stdout) if found)


def of_kind(case: str, kind: str) -> list[Object]:
    return [found for found in rendered(case) if found["kind"] == kind]


def only(case: str, kind: str) -> Object:
    (found,) = of_kind(case, kind)
    return found


def pods(case: str) -> Iterator[Object]:
    """The templates of pods, of the Deployment and of the Job."""
    for found in rendered(case):
        if found["kind"] in {"Deployment", "Job"}:
            yield found["spec"]["template"]


def config_maps(case: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found["data"] for found in of_kind(case, "ConfigMap")}


def matches(selector: Object, labels: Object) -> bool:
    return bool(selector) and selector.items() <= labels.items()


@cache
def definitions(version: str) -> Draft202012Validator:
    """A validator for what a version of Kubernetes defines."""
    uri = "/api/_definitions.json"
    contents = json.loads((SCHEMAS / f"kubernetes-{version}.json").read_text("utf-8"))
    registry = Registry().with_resource(uri, DRAFT202012.create_resource(contents))
    return Draft202012Validator({}, registry=registry)


@cache
def kinds(version: str) -> dict[tuple[str, str], str]:
    """The apiVersion and kind of each object to its place among the definitions."""
    contents = json.loads((SCHEMAS / f"kubernetes-{version}.json").read_text("utf-8"))
    found = {}
    for name, schema in contents["$defs"].items():
        for gvk in schema.get("x-kubernetes-group-version-kind", ()):
            api_version = "/".join(filter(None, (gvk["group"], gvk["version"])))
            found[api_version, gvk["kind"]] = f"/api/_definitions.json#/$defs/{name}"
    return found


@cache
def custom_kinds() -> dict[tuple[str, str], Object]:
    """The same for those that KEDA and the Prometheus operator define, with their schemas."""
    found = {}
    for path in SCHEMAS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text("utf-8"))["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[key] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """The schema without room for unknown fields, which the cluster would silently drop."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(each) for name, each in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(schema.get("properties"), dict) and not is_open:
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.mark.parametrize("case", CASES)
def test_the_linter_finds_nothing(case: str) -> None:
    result = helm("lint", "--strict", "--kube-version", "1.37.0", str(CHART), *values_of(case))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_as_its_schema_says(case: str, version: str) -> None:
    for found in rendered(case):
        key = found["apiVersion"], found["kind"]
        schema = custom_kinds().get(key) or {"$ref": kinds(version)[key]}
        errors = definitions(version).evolve(schema=schema).iter_errors(found)
        assert [f"{key}: {error.json_path}: {error.message}" for error in errors] == []


def test_a_misspelt_field_would_be_noticed() -> None:
    for kind, path in (("Deployment", "spec.template.spec"), ("ScaledObject", "spec.advanced")):
        found = json.loads(json.dumps(only("scaled", kind)))
        place = found
        for name in path.split("."):
            place = place[name]
        place["misspelt"] = True
        key = found["apiVersion"], kind
        for version in KUBERNETES:
            schema = custom_kinds().get(key) or {"$ref": kinds(version)[key]}
            assert not definitions(version).evolve(schema=schema).is_valid(found)


def test_the_cases_render_every_template() -> None:
    sources = set()
    for case in CASES:
        sources |= set(re.findall(r"^# Source: (\S+)", render(*values_of(case)).stdout, re.M))
    templates = {f"consentgate/templates/{path.name}" for path in CHART.glob("templates/*.yaml")}
    assert sources == templates


@pytest.mark.parametrize("case", CASES)
def test_every_pod_has_the_least_rights(case: str) -> None:
    for template in pods(case):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["runAsNonRoot"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "privileged" not in context
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
    for account in of_kind(case, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not {"Role", "RoleBinding", "ClusterRole"} & {found["kind"] for found in rendered(case)}


@pytest.mark.parametrize("case", CASES)
def test_every_image_is_pinned(case: str) -> None:
    for template in pods(case):
        for container in template["spec"]["containers"]:
            assert re.fullmatch(
                r"[a-z./-]+(:[0-9]+\.[0-9]+\.[0-9]+|@sha256:[0-9a-f]{64})", container["image"]
            )


@pytest.mark.parametrize("case", CASES)
def test_every_selector_chooses_the_workers(case: str) -> None:
    deployment, service = only(case, "Deployment"), only(case, "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert matches(deployment["spec"]["selector"]["matchLabels"], labels)
    assert matches(service["spec"]["selector"], labels)
    assert matches(only(case, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels)
    for budget in of_kind(case, "PodDisruptionBudget"):
        assert matches(budget["spec"]["selector"]["matchLabels"], labels)
    for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert matches(spread["labelSelector"]["matchLabels"], labels)
    for monitor in of_kind(case, "ServiceMonitor"):
        assert matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        (endpoint,) = monitor["spec"]["endpoints"]
        assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    for scaled in of_kind(case, "ScaledObject"):
        assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_no_selector_of_workers_chooses_the_job_of_topics() -> None:
    labels = only("everything", "Job")["spec"]["template"]["metadata"]["labels"]
    deployment, service = only("everything", "Deployment"), only("everything", "Service")
    assert not matches(deployment["spec"]["selector"]["matchLabels"], labels)
    assert not matches(service["spec"]["selector"], labels)


@pytest.mark.parametrize("case", CASES)
def test_what_a_pod_names_is_there(case: str) -> None:
    accounts = {found["metadata"]["name"] for found in of_kind(case, "ServiceAccount")}
    for template in pods(case):
        pod = template["spec"]
        assert {pod.get("serviceAccountName", "default")} <= accounts | {"default"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["config"]["configMap"]["name"] in config_maps(case)
        (container,) = pod["containers"]
        mounts = [mount["name"] for mount in container["volumeMounts"]]
        assert sorted(mounts) == sorted(volumes)
        # With --help nothing runs, but an unknown command or option is refused before.
        result = CliRunner().invoke(app, [*container["args"], "--help"])
        assert result.exit_code == 0, result.output


def test_the_job_comes_with_a_configuration_of_its_own_before_all_else() -> None:
    job = only("everything", "Job")
    hooks = [
        found["metadata"]["annotations"]
        for found in rendered("everything")
        if "annotations" in found["metadata"] and "helm.sh/hook" in found["metadata"]["annotations"]
    ]
    assert {hook["helm.sh/hook"] for hook in hooks} == {"pre-install,pre-upgrade"}
    (volume,) = [v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "config"]
    (brought,) = [
        found
        for found in of_kind("everything", "ConfigMap")
        if found["metadata"]["name"] == volume["configMap"]["name"]
    ]
    weights = [
        int(found["metadata"]["annotations"].get("helm.sh/hook-weight", "0"))
        for found in (brought, job)
    ]
    assert weights == sorted(weights)
    assert weights[0] < weights[1]
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_a_worker_can_read_its_configuration(case: str, tmp_path: Path) -> None:
    for template in pods(case):
        pod = template["spec"]
        (container,) = pod["containers"]
        (name,) = [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "config"]
        files = config_maps(case)[name]
        path = tmp_path / "consentgate.yaml"
        path.write_text(files["consentgate.yaml"], "utf-8")
        environment = {each["name"]: each["value"] for each in container.get("env", ())}
        secrets = {name: value for name, value in environment.items() if name.endswith("_FILE")}
        for variable, place in secrets.items():
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert str(Path(place).parent) in mounts
            secret = tmp_path / variable
            secret.write_text(f"what {variable} holds\n", "utf-8")
            environment[variable] = str(secret)
        config = load_config(str(path), environment)
        values = yaml.safe_load((CHART / f"ci/{case}.yaml").read_text("utf-8"))
        settings = [name for each in values.get("secrets", ()) for name in each.get("settings", ())]
        for setting in settings:
            variable = f"CONSENTGATE_{setting.upper().replace('.', '_').replace('_', '__', 1)}_FILE"
            assert config.kafka[setting.removeprefix("kafka.")] == f"what {variable} holds"
        assert len(secrets) == len(settings)
        assert config.http.host == "0.0.0.0"
        for port in container.get("ports", ()):
            assert port == {"name": "http", "containerPort": config.http.port}
        if config.policy.startswith("/"):
            policy = tmp_path / "policy.yaml"
            policy.write_text(files[Path(config.policy).name], "utf-8")
            load_policy(str(policy))
        else:
            load_policy(config.policy)


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_secret_is_in_the_objects(case: str) -> None:
    for files in config_maps(case).values():
        assert "password" not in files.get("consentgate.yaml", "")
    assert of_kind(case, "Secret") == []


@pytest.mark.parametrize("case", CASES)
def test_a_snapshot_goes_where_something_is_mounted(case: str) -> None:
    deployment = only(case, "Deployment")
    config = yaml.safe_load(config_maps(case)[deployment["metadata"]["name"]]["consentgate.yaml"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    if "snapshots" in mounts:
        # The directory above it has to be there; that of the snapshots is the worker's own.
        assert str(Path(config["snapshot"]).parent) == mounts["snapshots"]
    else:
        assert "snapshot" not in config


@pytest.mark.parametrize("case", CASES)
def test_a_worker_has_time_to_start_and_to_stop(case: str) -> None:
    pod = only(case, "Deployment")["spec"]["template"]["spec"]
    # It waits twice for its partitions, then for its snapshots, then for its clients to close.
    assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS_MAX
    (container,) = pod["containers"]
    startup = container["startupProbe"]
    # It waits for a first answer, and then for all that it asks.
    assert startup["periodSeconds"] * startup["failureThreshold"] > 2 * BROKER_SECONDS_MAX
    assert startup["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_a_change_of_the_policy_starts_the_workers_anew() -> None:
    def checksum(*arguments: str) -> str:
        (found,) = re.findall(r"checksum/files: (\w{64})", render(*arguments).stdout)
        return str(found)

    minimal = checksum(*values_of("minimal"))
    assert checksum(*values_of("minimal")) == minimal
    assert checksum(*values_of("minimal"), "--set", "config.policy=linkedin") != minimal
    assert checksum(*values_of("minimal"), "--set", "policyFile=name: other") != minimal
    assert checksum(*values_of("minimal"), "--set", "image.tag=0.2.0") == minimal


def test_only_the_brokers_and_name_servers_can_be_reached() -> None:
    rules = only("secured", "NetworkPolicy")["spec"]["egress"]
    ports = sorted((port["port"], port["protocol"]) for rule in rules for port in rule["ports"])
    assert ports == [(53, "TCP"), (53, "UDP"), (9093, "TCP"), (9094, "TCP")]
    rules = only("everything", "NetworkPolicy")["spec"]["egress"]
    assert rules[1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/16"}}]
    assert [port["port"] for port in rules[1]["ports"]] == [9092, 9192]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://login.example.com/oauth2/token", 443),
        ("https://login.example.com:8443/oauth2/token", 8443),
        ("http://login/token", 80),
    ],
)
def test_tokens_can_be_fetched(url: str, port: int) -> None:
    setting = f"config.kafka.sasl\\.oauthbearer\\.token\\.endpoint\\.url={url}"
    result = render(*values_of("minimal"), "--set", setting)
    assert result.returncode == 0, result.stderr
    (policy,) = [
        found for found in yaml.safe_load_all(result.stdout) if found["kind"] == "NetworkPolicy"
    ]
    *_, rule = policy["spec"]["egress"]
    assert rule == {"ports": [{"port": port, "protocol": "TCP"}]}


def test_scaling_asks_for_what_keda_knows() -> None:
    assert "replicas" not in only("scaled", "Deployment")["spec"]
    scaled = only("scaled", "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    metadata = trigger["metadata"]
    known = re.findall(r'keda:"name=(\w+)', (SCHEMAS / "kafka_scaler.go").read_text("utf-8"))
    assert set(metadata) <= set(known)
    files = config_maps("scaled")[only("scaled", "Deployment")["metadata"]["name"]]
    config = yaml.safe_load(files["consentgate.yaml"])
    assert metadata["consumerGroup"] == config["group"]
    assert metadata["topic"] == config["topics"]["content"]
    assert metadata["bootstrapServers"] == "kafka-1:9092,kafka-2:9092"
    # One for each partition, which may end with a marker; and each has at most one worker.
    assert metadata["activationLagThreshold"] == "12"
    assert scaled["maxReplicaCount"] <= 12
    assert metadata["lagThreshold"] == "2000000"


def test_the_rules_are_those_of_the_project() -> None:
    groups = [
        group
        for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    ]
    assert only("scaled", "PrometheusRule")["spec"]["groups"] == groups


def test_the_dashboards_are_those_of_the_project() -> None:
    data = config_maps("scaled")["gate-consentgate-dashboards"]
    assert data == {
        path.name: path.read_text("utf-8")
        for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }


@pytest.mark.parametrize(
    ("set_to", "told"),
    [
        ("replica=3", "additional properties 'replica' not allowed"),
        ("image.tag=latest", "/image/tag"),
        ("config.limits.max_dept=3", "additional properties 'max_dept' not allowed"),
        ("config.kafka.ssl\\.key\\.password=x", "'ssl.key.password' not allowed"),
        ("config.kafka.sasl\\.password=x", "'sasl.password' not allowed"),
        ("config.snapshot=/data", "additional properties 'snapshot' not allowed"),
        ("config.http.port=0", "/config/http/port"),
        ("terminationGracePeriodSeconds=20", "/terminationGracePeriodSeconds"),
        ("secrets[0].name=s,secrets[0].settings.kafka\\.sasl\\.pasword=p", "kafka.sasl.pasword"),
        ("replicas=5", "5 workers share 4 partitions"),
        ("autoscaling.enabled=true,autoscaling.maxReplicas=5", "5 workers share 4 partitions"),
        ("autoscaling.enabled=true,autoscaling.minReplicas=0", "/autoscaling/minReplicas"),
        ("config.kafka.bootstrap\\.servers=", "say where your Kafka is"),
        (
            "autoscaling.enabled=true,config.kafka.security\\.protocol=SASL_SSL",
            "name a TriggerAuthentication",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(set_to: str, told: str) -> None:
    result = render(*values_of("minimal"), "--set", set_to)
    assert result.returncode != 0
    assert told in result.stderr


@pytest.mark.parametrize("case", CASES)
def test_the_notes_say_what_to_do_next(case: str, tmp_path: Path) -> None:
    # Helm shows them after an installation only, so they are rendered as if they were an object.
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    notes = (chart / "templates/NOTES.txt").read_text("utf-8")
    (chart / "templates/notes.yaml").write_text(
        f'{{{{ define "notes" }}}}{notes}{{{{ end }}}}\n'
        'notes: {{ include "notes" . | toJson }}\n',
        "utf-8",
    )
    shown = render(*values_of(case), "--show-only", "templates/notes.yaml", chart=chart)
    assert shown.returncode == 0, shown.stderr
    text = yaml.safe_load(shown.stdout)["notes"]
    name = only(case, "Deployment")["metadata"]["name"]
    assert f"kubectl --namespace gates rollout status deployment/{name}" in text
    assert ("serviceMonitor" in text) == (not of_kind(case, "ServiceMonitor"))
    labels = only(case, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in re.findall(r"--selector (\S+)", text):
        assert matches(dict(each.split("=") for each in selector.split(",")), labels)
    # Of a kubectl that Kubernetes 1.27 came with.
    assert "--all-pods" not in text
    for command in re.findall(r"-- consentgate (.+)", text):
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0, result.output


def blocks_of_the_page(language: str) -> list[str]:
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_values_on_the_page_can_be_installed(tmp_path: Path) -> None:
    values = blocks_of_the_page("yaml")
    assert values
    for text in values:
        (tmp_path / "values.yaml").write_text(text, "utf-8")
        result = render("--values", str(tmp_path / "values.yaml"))
        assert result.returncode == 0, result.stderr


def test_the_commands_on_the_page_name_what_there_is() -> None:
    shown = " ".join(blocks_of_the_page("sh")).replace("\\\n", "")
    for chart in re.findall(r"helm (?:lint|install gate|upgrade gate) (\S+)", shown):
        assert ROOT / chart == CHART
    deployment = only("minimal", "Deployment")["metadata"]["name"]
    assert re.findall(r"deployment/(\S+)", shown) == [deployment]
    for command in re.findall(r"^ *consentgate (.+)$", shown, re.MULTILINE):
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0, result.output


def test_the_page_names_the_versions_that_were_checked() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    installed = (TOOLS / "installed").read_text("utf-8")
    versions = [".".join(version.split(".")[:2]) for version in KUBERNETES]
    assert f"Kubernetes {' and '.join(versions)}," in page
    for name, module in (
        ("by Helm", "helm.sh/helm/v3"),
        ("KEDA", "github.com/kedacore/keda/v2"),
        ("operator", "github.com/prometheus-operator/prometheus-operator"),
    ):
        (version,) = re.findall(rf"{re.escape(module)}@v(\d+\.\d+)\.\d+", installed)
        assert re.search(rf"{name}\s{re.escape(version)}\b", page), name
    about = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert about["kubeVersion"] == f">={KUBERNETES[0]}-0"
