"""Dashboards, rules and runbooks against the metrics that the service really has."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import dashboards
from consentgate.core.model import Reason, Verdict
from consentgate.core.partition import Phase
from consentgate.service.metricsdoc import documented_metrics

ROOT = Path(__file__).parents[2]
RULES_FOLDER = ROOT / "deploy/prometheus/rules"
TESTS_FOLDER = ROOT / "deploy/prometheus/tests"
RUNBOOKS = ROOT / "docs/runbooks"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))

Rule = dict[str, Any]


def rules() -> list[Rule]:
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(RULES_FOLDER.glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}

TARGET = {"namespace", "job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes."""

VALUES = {
    "verdict": {str(verdict) for verdict in Verdict},
    "reason": {str(reason) for reason in Reason},
    "phase": {str(phase) for phase in Phase},
    "outcome": {"committed", "aborted", "recycled"},
    "alertstate": {"firing", "pending"},
}
"""The labels whose values are known."""


@dataclass(frozen=True)
class Asked:
    """One series that an expression asks for, and by what."""

    name: str
    matchers: Sequence[tuple[str, str]]


def known() -> dict[str, set[str]]:
    """Every name that may be asked for, and its labels."""
    names: dict[str, set[str]] = {
        "ALERTS": {"alertname", "alertstate"},
        "up": set(),
        # Of Prometheus's own library.
        "process_cpu_seconds_total": set(),
        "process_resident_memory_bytes": set(),
    }
    for metric in documented_metrics():
        if metric.kind == "histogram":
            names[f"{metric.name}_bucket"] = {*metric.labels, "le"}
            names[f"{metric.name}_count"] = names[f"{metric.name}_sum"] = set(metric.labels)
        else:
            names[metric.name] = set(metric.labels)
    for name, expression in RECORDED.items():
        names[name] = set().union(*(names[asked.name] for asked in asked_for(expression)))
    return names


def asked_for(expression: str) -> list[Asked]:
    """The series that an expression asks for."""
    name = r"([a-zA-Z_][\w:]*:[\w:]+|consentgate_\w+|process_\w+|ALERTS|\bup\b)"
    return [
        Asked(found[1], re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', found[2] or ""))
        for found in re.finditer(name + r"(?:\{([^}]*)\})?", expression)
    ]


def groupings(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left)\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


def problems(expression: str, legend: str = "") -> Iterator[str]:
    """What an expression asks for that is not there."""
    names, there = known(), set(TARGET)
    asked = asked_for(expression)
    if not asked:
        yield f"nothing is asked for: {expression}"
    for each in asked:
        if each.name not in names:
            yield f"there is no {each.name}"
            continue
        there |= names[each.name]
        for label, value in each.matchers:
            if label not in names[each.name] | TARGET:
                yield f"{each.name} has no label {label}"
            elif label in VALUES and not set(value.split("|")) <= VALUES[label]:
                yield f"{label} is never {value}"
            elif label == "le" and float(value) not in bounds(each.name):
                yield f"{each.name} has no bucket {value}"
    for label in groupings(expression) | set(re.findall(r"\{\{(\w+)\}\}", legend)):
        if label not in there:
            yield f"nothing that is asked for has a label {label}"


def bounds(bucket: str) -> set[float]:
    """The bounds of a histogram's buckets."""
    return {
        float(bound)
        for metric in documented_metrics()
        if f"{metric.name}_bucket" == bucket
        for bound in metric.bounds
    }


# The checks themselves.


@pytest.mark.parametrize(
    ("expression", "legend", "problem"),
    [
        ("sum(rate(consentgate_decision_total[5m]))", "", "there is no consentgate_decision_total"),
        ('consentgate_lag_records{partitions="1"}', "", "consentgate_lag_records has no label"),
        ("sum by (reasons) (consentgate_decisions_total)", "", "has a label reasons"),
        ("sum(consentgate_decisions_total)", "{{reasons}}", "has a label reasons"),
        ('consentgate_decisions_total{verdict="forwarded"}', "", "verdict is never forwarded"),
        ('consentgate_decisions_total{reason=~"error|eror"}', "", "reason is never error|eror"),
        (
            'consentgate_exposure_seconds_bucket{le="31.0"}',
            "",
            "consentgate_exposure_seconds_bucket has no bucket 31.0",
        ),
        ("job:consentgate_records_on:rate5m", "", "there is no job:consentgate_records_on:rate5m"),
        ("sum(1)", "", "nothing is asked for"),
    ],
)
def test_a_query_for_what_is_not_there_is_noticed(
    expression: str, legend: str, problem: str
) -> None:
    (found,) = problems(expression, legend)
    assert problem in found


# Dashboards.


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target


def test_the_dashboards_are_those_that_the_code_makes() -> None:
    made = dashboards.dashboards()
    assert sorted(made) == DASHBOARDS
    for path, text in made.items():
        assert path.read_text("utf-8") == text, "run: make dashboards"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_the_schema_of_grafana_knows(path: Path) -> None:
    register_default_plugins()
    stored = json.loads(path.read_text("utf-8"))
    read = Dashboard.from_json(stored)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == stored


def test_every_query_of_the_dashboards_asks_for_what_there_is() -> None:
    found = [
        (place, problem)
        for place, target in targets()
        for problem in problems(target["expr"], target["legendFormat"])
    ]
    assert found == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_works_with_any_data_source_and_scrape_interval(path: Path) -> None:
    dashboard = json.loads(path.read_text("utf-8"))
    assert dashboard["uid"] == path.stem
    assert "id" not in dashboard
    for place, target in targets():
        assert target["datasource"]["uid"] == "${datasource}", place
        assert not re.search(r"\[\d+[smhd]\]", target["expr"]), place
        rates = re.findall(r"\b(?:rate|increase)\(", target["expr"])
        assert len(rates) == target["expr"].count("[$__rate_interval]"), place
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?([a-z]+)", path.read_text("utf-8")))
    assert used == set(variables)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_has_a_place_a_number_and_the_question_that_it_answers(path: Path) -> None:
    panels = json.loads(path.read_text("utf-8"))["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, width, height = (panel["gridPos"][side] for side in ("x", "y", "w", "h"))
        cells = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert x + width <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or "?" in panel["description"], panel["title"]


# Rules.


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_there_is(rule: Rule) -> None:
    annotations = " ".join(rule.get("annotations", {}).values())
    shown = re.findall(r"\$labels\.(\w+)", annotations)
    legend = "".join(f"{{{{{label}}}}}" for label in shown)
    assert list(problems(rule["expr"], legend)) == []


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(r"Consentgate[A-Za-z]+", name)
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_says_all_that_somebody_needs_at_night(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert headings == [name, "What it means", "What to look at", "What to do", "How to cause it"]
    assert f"`{ALERTS[name]['labels']['severity']}`" in text
    blocks = re.findall(r"^```promql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).splitlines():
        assert list(problems(line)) == [], line


def test_the_page_of_the_runbooks_has_every_alert_with_its_severity() -> None:
    text = (RUNBOOKS / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", text, re.MULTILINE)
    assert listed == [(name, name, rule["labels"]["severity"]) for name, rule in ALERTS.items()]


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    """By `promtool test rules`, which `make test-ops` runs."""
    (path,) = TESTS_FOLDER.glob("*.yml")
    checks = [
        check
        for case in yaml.safe_load(path.read_text("utf-8"))["tests"]
        for check in case["promql_expr_test"]
    ]
    fired = {
        name
        for check in checks
        for sample in check["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == set(ALERTS)
    assert any(check["expr"] == "ALERTS" and not check["exp_samples"] for check in checks)
