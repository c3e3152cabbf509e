"""The Helm chart against what it is made from, without Helm; `tests/ops` renders it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import chart

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text("utf-8"))
ABOUT: dict[str, Any] = yaml.safe_load((chart.CHART / "Chart.yaml").read_text("utf-8"))


def test_what_is_made_is_up_to_date() -> None:
    made = chart.made()
    for path, text in made.items():
        assert path.is_file(), "make chart"
        assert path.read_text("utf-8") == text, f"{path.relative_to(ROOT)}: make chart"
    assert chart.copies() <= set(made), "make chart"


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values\.yaml: image\.tag has no comment"):
        chart.values_table('image:\n  # Which.\n  name: x\n  tag: ""\n')


def test_every_value_has_a_place_in_the_schema() -> None:
    text = (chart.CHART / "values.schema.json").read_text("utf-8")
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    known = yaml.safe_load(chart.values_schema(text, page))["properties"]
    assert set(VALUES) == set(known) - {"global"}
    for name, value in VALUES.items():
        if "properties" in known[name] and isinstance(value, dict):
            assert set(value) <= set(known[name]["properties"])


def test_the_schema_has_no_place_for_a_secret() -> None:
    text = (chart.CHART / "values.schema.json").read_text("utf-8")
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    properties = yaml.safe_load(chart.values_schema(text, page))["properties"]
    settings = properties["config"]["properties"]["kafka"]["properties"]
    assert [name for name in settings if re.search("password|secret", name)] == []
    from_secrets = properties["secrets"]["items"]["properties"]["settings"]["propertyNames"]["enum"]
    assert "kafka.sasl.password" in from_secrets
    assert {f"kafka.{name}" for name in settings} < set(from_secrets)


def test_the_chart_installs_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert ABOUT["version"] == ABOUT["appVersion"] == project["version"]
    assert ABOUT["description"] == project["description"]


def test_the_user_is_that_of_the_image() -> None:
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text("utf-8")
    assert f"USER {VALUES['runAsUser']}\n" in dockerfile


def test_the_memory_is_enough_for_what_the_comment_says() -> None:
    performance = (ROOT / "docs/performance.md").read_text("utf-8")

    def constant(row: str) -> float:
        (found,) = re.findall(rf"^\| {row} \|[^|]*\| ([\d.]+) ", performance, re.MULTILINE)
        return float(found)

    text = (chart.CHART / "values.yaml").read_text("utf-8")
    (told,) = re.findall(r"The memory is for (\d+) partitions and ([\d,]+) subjects", text)
    partitions, subjects = (int(number.replace(",", "")) for number in told)
    # Ids of 36 characters take 28 bytes more, and a snapshot that is written 16.
    subject_bytes = constant("b") + 28 + 16
    needed = 1e6 * (constant("m0") + constant("p") * partitions) + subject_bytes * subjects
    memory = VALUES["resources"]["limits"]["memory"]
    assert memory == VALUES["resources"]["requests"]["memory"] == "1Gi"
    assert needed < 2**30
    assert partitions == VALUES["partitions"]
