"""A Prometheus for tests, with the shipped rules: the same alerts, in less time."""

import asyncio
import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import yaml

from harness import get, until

RULES = Path(__file__).parents[2] / "deploy/prometheus/rules"

CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules/*.yml]
scrape_configs:
  - job_name: faults
    file_sd_configs: [{files: [targets.json]}]
"""

FOR_SECONDS = 3
RANGE_SECONDS = 30


def hastened(rules: str) -> str:
    """The rules with shorter waits and ranges; the thresholds stay."""
    rules = re.sub(r"^(\s+for:) .+$", rf"\1 {FOR_SECONDS}s", rules, flags=re.MULTILINE)
    rules = re.sub(r"(keep_firing_for:) \S+", rf"\1 {FOR_SECONDS}s", rules)
    rules = re.sub(r"\[\d+m\]", f"[{RANGE_SECONDS}s]", rules)
    return re.sub(r"offset \d+m", f"offset {RANGE_SECONDS}s", rules)


class Prometheus:
    """Scrapes what it is told to; each job is one fault."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._targets: dict[str, list[str]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self.fired: dict[str, dict[str, Any]] = {}
        """By job, all alerts that have ever fired, and what they said."""

    async def __aenter__(self) -> Self:
        (self._folder / "rules").mkdir()
        for path in RULES.glob("*.yml"):
            rules = hastened(path.read_text("utf-8"))
            assert yaml.safe_load(rules)
            (self._folder / "rules" / path.name).write_text(rules)
        (self._folder / "prometheus.yml").write_text(CONFIG)
        self._write_targets()
        self._process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        )
        await until(self._is_ready, "Prometheus is ready")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None, "entered"
        self._process.terminate()
        await self._process.wait()

    def scrape(self, job: str, *urls: str) -> None:
        """Scrape these addresses for a job, and no others."""
        self._targets[job] = [url.removeprefix("http://") for url in urls]
        self._write_targets()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression comes to now."""
        status, text = await get(f"http://{self._address}/api/v1/query?query={quote(expression)}")
        assert status == 200, text
        found: list[dict[str, Any]] = json.loads(text)["data"]["result"]
        return found

    async def watch(self) -> None:
        """Take down which alerts fire, until cancelled."""
        while True:
            _, text = await get(f"http://{self._address}/api/v1/alerts")
            for alert in json.loads(text)["data"]["alerts"]:
                if alert["state"] == "firing":
                    labels: Mapping[str, str] = alert["labels"]
                    fired = self.fired.setdefault(labels.get("job", ""), {})
                    fired[labels["alertname"]] = alert["annotations"]
            await asyncio.sleep(0.3)

    async def fires(self, job: str, *alerts: str, seconds: float = 120) -> None:
        """Wait until all of these have fired for the job."""
        missing = set(alerts)

        def all_fired() -> bool:
            missing.difference_update(self.fired.get(job, ()))
            return not missing

        try:
            await until(all_fired, "the alerts fire", seconds)
        except AssertionError:
            raise AssertionError(f"{job}: not fired: {', '.join(sorted(missing))}") from None

    async def _is_ready(self) -> bool:
        try:
            return (await get(f"http://{self._address}/-/ready"))[0] == 200
        except OSError:
            return False

    def _write_targets(self) -> None:
        groups = [{"targets": urls, "labels": {"job": job}} for job, urls in self._targets.items()]
        new = self._folder / "targets.new"
        new.write_text(json.dumps(groups))
        new.rename(self._folder / "targets.json")
