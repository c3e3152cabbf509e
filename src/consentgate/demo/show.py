"""`consentgate demo`: the main job on an embedded Kafka, and a stop that can be seen happening."""

import asyncio
import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from consentgate.config import Config, load_config
from consentgate.demo.aftermath import Aftermath, read_aftermath
from consentgate.demo.story import WITHDRAWS, Story, policy_text
from consentgate.errors import BrokerError
from consentgate.kafka.appender import Appender
from consentgate.kafka.cluster import connected
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.tools.broker import EmbeddedKafka

PARTITIONS = 4
SUBJECTS = 10_000
STOP_AFTER_SECONDS = 4.0
"""When, after the first post, the United Kingdom is suspended."""
WITHDRAW_AFTER = 0.8
"""After which share of the posts somebody withdraws."""
PACED_SECONDS = 8.0
"""Over which time the posts are spread, so that there is something to look at."""
CHUNK_SECONDS = 0.1

KEPT_BEFORE_SECONDS = 30.0
"""With the pages to look at: how long, at least, after the start the suspension comes."""
KEPT_AFTER_SECONDS = 60.0
"""And how long posts come after it: for one of the report's smallest windows."""

_CONFIG = """\
kafka: {{bootstrap.servers: "{servers}"}}
group: demo
policy: {policy}
http: {{host: 127.0.0.1, port: {port}}}
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the screen shows."""

    published: int
    total: int
    metrics: dict[str, float]
    stop_in_seconds: float
    withdrawn: bool


class Demo:
    """One showing."""

    def __init__(self, directory: Path, servers: str, events: int, *, keep: bool) -> None:
        self.port = _free_port()
        self.report_port = _free_port()
        self._keep = keep
        self._directory = directory
        self._events = events
        self._policy = directory / "policy.yaml"
        self._config_path = directory / "consentgate.yaml"
        self._config_path.write_text(
            _CONFIG.format(servers=servers, policy=self._policy, port=self.port)
        )
        self.config: Config = load_config(str(self._config_path), {})
        self._settings: KafkaSettings = kafka_settings(self.config.kafka)
        self._story = Story(SUBJECTS)
        self.suspension_ms = 0
        self.withdrawal_ms = 0

    async def prepare(self) -> None:
        """Create the topics and let everybody give, refuse or not say their consent."""
        async with connected(self._settings, timeout_seconds=30) as cluster:
            for plan in plan_topics(self.config, PARTITIONS):
                await cluster.create(plan, replication_factor=1)
        async with Appender(self._settings) as appender:
            for key, value in self._story.consent():
                await appender.append(self.config.topics.consent, key=key, value=value)
            await appender.flush()

    def worker(self) -> contextlib.AbstractContextManager[None]:
        """The enforcer as a process of its own, ended with the block."""
        return self._running("the enforcer", self.port, "run")

    def report(self) -> contextlib.AbstractContextManager[None]:
        """The report as a process of its own, ended with the block."""
        return self._running("the report", self.report_port, "report", "--port", self.report_port)

    @contextlib.contextmanager
    def _running(self, who: str, port: int, subcommand: str, *options: object) -> Iterator[None]:
        arguments = [subcommand, "-c", self._config_path, *options]
        command = [sys.executable, "-m", "consentgate", *map(str, arguments)]
        log_path = self._directory / f"{subcommand}.log"
        # In a session of its own a Ctrl-C reaches it only through us, after the last line is read.
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _await_ready(who, port, process, log_path)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def write_policy(self) -> None:
        """Put the policy where the worker reads it; the clock runs from here."""
        if self._keep:
            self.suspension_ms = next_minute_ms(_now_ms() + round(KEPT_BEFORE_SECONDS * 1000))
        else:
            self.suspension_ms = _now_ms() + round((STOP_AFTER_SECONDS + 2.5) * 1000)
        self._policy.write_text(policy_text(self.suspension_ms))

    async def tell(self, live: Live) -> None:
        """Publish the posts, with a withdrawal among them, and show what becomes of them."""
        topics = self.config.topics
        published = 0
        async with Appender(self._settings) as appender:
            started, seconds = time.monotonic(), self._posts_seconds()
            chunks = round(seconds / CHUNK_SECONDS)
            for chunk in range(chunks):
                due_events = self._events * (chunk + 1) // chunks
                for key, value in self._story.posts(due_events - self._events * chunk // chunks):
                    await appender.append(topics.content, key=key, value=value)
                    published += 1
                await appender.flush()
                if self.withdrawal_ms == 0 and chunk >= WITHDRAW_AFTER * chunks:
                    key, value = self._story.withdrawal()
                    await appender.append(topics.consent, key=key, value=value)
                    await appender.flush()
                    self.withdrawal_ms = _now_ms()
                await self._show(live, published)
                due = started + seconds * (chunk + 1) / chunks
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        await self._drain(live, published)

    async def aftermath(self) -> Aftermath:
        """What the topics say, read back."""
        return await read_aftermath(self.config, self._settings, PARTITIONS)

    def _posts_seconds(self) -> float:
        if not self._keep:
            return PACED_SECONDS
        return (self.suspension_ms - _now_ms()) / 1000 + KEPT_AFTER_SECONDS

    async def _drain(self, live: Live, published: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            metrics = await self._show(live, published)
            if metrics.get("consumed", 0) >= published:
                return
            await asyncio.sleep(0.1)
        raise BrokerError("the enforcer did not get through the posts within a minute")

    async def _show(self, live: Live, published: int) -> dict[str, float]:
        metrics = await asyncio.to_thread(self._scrape)
        stop_in_seconds = (self.suspension_ms - _now_ms()) / 1000
        total = max(self._events, published)
        withdrawn = self.withdrawal_ms > 0
        live.update(_screen(Progress(published, total, metrics, stop_in_seconds, withdrawn)))
        return metrics

    def _scrape(self) -> dict[str, float]:
        """The worker's own metrics, added up by verdict."""
        values: dict[str, float] = {}
        text = _get(f"http://127.0.0.1:{self.port}/metrics").decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "consentgate_decisions_total":
                    verdict = sample.labels["verdict"]
                    values[verdict] = values.get(verdict, 0) + sample.value
                if sample.name == "consentgate_consumed_records_total":
                    values["consumed"] = sample.value
        return values


def next_minute_ms(time_ms: int) -> int:
    """The first full minute from this time on: no window of the report is before and after it."""
    return -(-time_ms // 60_000) * 60_000


def run_demo(events: int, *, keep: bool) -> None:
    """Show the main job; everything is gone afterwards, unless `keep` leaves it up until Ctrl-C.

    Raises:
        BrokerError: if the embedded Kafka, the enforcer or the report cannot be started.
        KeyboardInterrupt: after a Ctrl-C or a SIGTERM, when everything has been put away.
    """
    console = Console()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="consentgate-demo-") as directory:
            console.print("Starting an embedded Kafka ...")
            with EmbeddedKafka() as kafka:
                demo = Demo(Path(directory), kafka.bootstrap_servers, events, keep=keep)
                _show_all(console, demo, keep)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show_all(console: Console, demo: Demo, keep: bool) -> None:
    console.print(f"Creating topics, and the consent of {SUBJECTS + 5:,} people ...")
    asyncio.run(demo.prepare())
    demo.write_policy()
    console.print("Starting the enforcer as a process of its own ...")
    with contextlib.ExitStack() as stack:
        stack.enter_context(demo.worker())
        if keep:
            _open_pages(console, demo, stack)
        with Live(console=console, refresh_per_second=8) as live:
            asyncio.run(demo.tell(live))
        aftermath = asyncio.run(demo.aftermath())
        _print_aftermath(console, demo, aftermath)
        if keep:
            _keep_up(console, demo)


def _print_aftermath(console: Console, demo: Demo, aftermath: Aftermath) -> None:
    outcomes = Table(
        "jurisdiction", "verdict", "reason", "posts", title="\nWhat became of the posts"
    )
    for (label, reason), number in sorted(aftermath.counts.items()):
        outcomes.add_row(label, reason.verdict, reason, f"{number:,}")
    console.print(outcomes)
    people = Table("person", "forwarded", "withheld", "quarantined", title="\nWho is who")
    for name, person in sorted(aftermath.people.items()):
        people.add_row(
            name,
            f"{person.forwarded:,}",
            "\n".join(f"{number:,} {reason}" for reason, number in person.withheld.items()),
            "\n".join(f"{number:,} {reason}" for reason, number in person.quarantined.items()),
        )
    console.print(people)
    withdrawal = aftermath.withdrawal_of(WITHDRAWS)
    console.print(
        f"\nThe United Kingdom was suspended at {_clock(demo.suspension_ms)}: the last British "
        f"post was decided to go on at {_clock(aftermath.last_forward_ms('GB'))}, and none after."
    )
    console.print(
        f"{WITHDRAWS} withdrew at {_clock(withdrawal.appended_ms)}. It took effect "
        f"{withdrawal.effect_ms} ms later, in the ledger entry {withdrawal.entry}. Before it "
        f"{withdrawal.forwarded_before} posts had gone on, after it "
        f"{withdrawal.forwarded_after} did, and {withdrawal.withheld} were withheld."
    )
    console.print(
        f"{aftermath.posts:,} posts in = {aftermath.total('forward'):,} forwarded + "
        f"{aftermath.total('withhold'):,} withheld + {aftermath.total('quarantine'):,} quarantined."
    )


def _open_pages(console: Console, demo: Demo, stack: contextlib.ExitStack) -> None:
    """Start the report, too, and say where to look before anything happens."""
    if _has_report():
        console.print("Starting the transparency report as another ...")
        stack.enter_context(demo.report())
        report = f"http://127.0.0.1:{demo.report_port}/"
    else:
        report = "left out, as it needs Faust: pip install 'consentgate\\[report]'"
    seconds = (demo.suspension_ms - _now_ms()) / 1000
    console.print(
        f"\nFollow it in a browser:\n  status page of the enforcer  http://127.0.0.1:{demo.port}/"
        f"\n  transparency report          {report}\n\nNo page needs to "
        f"be loaded again.\n\nThe United Kingdom is suspended at "
        f"{_clock(demo.suspension_ms)[:8]} UTC, in {seconds:.0f} s. {WITHDRAWS} withdraws within "
        "the minute after.\n",
        soft_wrap=True,
    )


def _has_report() -> bool:
    return importlib.util.find_spec("faust") is not None


def _keep_up(console: Console, demo: Demo) -> None:
    url = f"http://127.0.0.1:{demo.port}"
    report = f"  report   http://127.0.0.1:{demo.report_port}/\n" if _has_report() else ""
    console.print(
        f"\nEverything, the pages too, stays up until Ctrl-C:"
        f"\n  Kafka    {demo.config.kafka['bootstrap.servers']}"
        f"\n  status   {url}/\n{report}"
        f"  metrics  {url}/metrics\n  health   {url}/readyz and {url}/livez"
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("Stopping ...")


def _screen(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    share = progress.published / progress.total
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    table.add_row("published", bar, f"{progress.published:,}")
    decided = progress.metrics.get("consumed", 0)
    for verdict, colour in (("forward", "green"), ("withhold", "yellow"), ("quarantine", "red")):
        number = progress.metrics.get(verdict, 0)
        width = round(30 * number / decided) if decided else 0
        table.add_row(verdict, f"[{colour}]{'█' * width}[/{colour}]", f"{number:,.0f}")
    if progress.stop_in_seconds > 0:
        stop = f"is suspended in {progress.stop_in_seconds:.1f} s"
    else:
        stop = f"[bold]suspended for {-progress.stop_in_seconds:.1f} s[/bold]"
    table.add_row("United Kingdom", stop, "")
    table.add_row(WITHDRAWS, "[bold]has withdrawn[/bold]" if progress.withdrawn else "granted", "")
    return table


def _await_ready(who: str, port: int, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if json.loads(_get(f"http://127.0.0.1:{port}/readyz"))["status"] == "ok":
                return
        time.sleep(0.1)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-10:])
    raise BrokerError(f"{who} did not become ready; the end of its log:\n{tail}")


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - A loopback URL.
            body: bytes = response.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    return body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
