"""The rules by Prometheus's own tool: whether they are rules, and what fires when."""

import subprocess
from pathlib import Path

PROMETHEUS = Path(__file__).parents[2] / "deploy/prometheus"


def promtool(*arguments: str) -> str:
    """What promtool prints; it must find nothing wrong."""
    command = ["promtool", *arguments]
    done = subprocess.run(
        command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_and_its_rules_are_what_prometheus_takes() -> None:
    said = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert "2 rule files found" in said


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", *map(str, (PROMETHEUS / "tests").glob("*.yml")))
