"""Every fault that a runbook describes, brought about; a Prometheus notices each, and no more.

The faults run side by side, each on a group of its own, which is the job in Prometheus. The rules
are those that are shipped, with shorter waits and ranges; the thresholds are as they are.
"""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

# Their assertions explain themselves like those of the tests.
pytest.register_assert_rewrite("harness", "prometheus", "proxy")

from harness import (  # noqa: E402
    WRITE,
    Feed,
    Probe,
    Sent,
    Site,
    SiteFactory,
    WorkerProcess,
    consent,
    post,
    until,
)
from prometheus import RULES, Prometheus  # noqa: E402
from proxy import ProxiedKafka, Proxy  # noqa: E402

HOUR_MS = 3_600_000
SLOW_SECONDS = 33  # a little more than what counts as too slow
PEOPLE = ["anna", "ben", "carla", "dora"]

ALERTS = {
    rule["alert"]: rule
    for path in RULES.glob("*.yml")
    for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
DASHBOARDS = sorted((RULES.parents[1] / "grafana/dashboards").glob("*.json"))


@dataclass
class Stage:
    """What the faults have to work with."""

    prometheus: Prometheus
    sites: SiteFactory
    probe: Probe
    feed: Feed
    proxy: Proxy
    folder: Path
    workers: list[WorkerProcess] = field(default_factory=list)
    page: str = ""
    """The metrics of a worker that is well."""

    async def site(self, job: str, **settings: Any) -> Site:
        """Topics of a fault, and people who have consented."""
        site = await self.sites(job, **settings)
        await self.feed.many(site.consent, [consent(person) for person in PEOPLE])
        return site

    async def worker(self, job: str, site: Site) -> WorkerProcess:
        """A worker of the site, scraped together with those that the fault has already."""
        worker = await WorkerProcess.start(site, self.folder / f"{job}-{len(self.workers)}.log")
        self.workers.append(worker)
        await worker.ready()
        return worker

    async def scrape(self, job: str, *workers: WorkerProcess) -> None:
        """Have Prometheus read these workers."""
        self.prometheus.scrape(job, *[worker.logged("started")[0]["http"] for worker in workers])

        async def is_read() -> bool:
            read = await self.prometheus.query(f'consentgate_build_info{{job="{job}"}}')
            return len(read) == len(workers)

        await until(is_read, f"Prometheus reads {job}")


async def posts(site: Site, *names: str, **sent: Any) -> None:
    """One post of each name, of all people."""
    records = [post(person, name) for name in names for person in PEOPLE]
    await site.feed.many(site.content, [record._replace(**sent) for record in records])


# The faults, by the names of their jobs.


async def well(stage: Stage) -> None:
    """Nothing: content and consent come in, some of it withheld, a little of it quarantined."""
    site = await stage.site("well", partitions=2)
    worker = await stage.worker("well", site)
    await stage.scrape("well", worker)
    for turn in range(120):
        await posts(site, *(f"{turn}-{number}" for number in range(10)))
        await site.feed.one(site.content, post("nobody", str(turn)))
        await site.feed.one(site.consent, consent("ben", ("granted", "withdrawn")[turn % 2]))
        if turn % 10 == 0:
            await site.feed.one(site.content, Sent(b"anna", b"no JSON"))
        await asyncio.sleep(0.5)
    _, stage.page = await worker.get("/metrics")


async def unaccounted(stage: Stage) -> None:
    """The page of a worker, with one outcome too many."""
    site = await stage.site("unaccounted")
    worker = await stage.worker("unaccounted", site)
    await posts(site, "1")
    await until(worker.consumed, "something was decided")
    _, page = await worker.get("/metrics")
    doctored = re.sub(
        r"^(consentgate_decisions_total\{.*\}) (\d+\.\d)$",
        lambda line: f"{line[1]} {float(line[2]) + 1}",
        page,
        count=1,
        flags=re.MULTILINE,
    )
    assert doctored != page

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=doctored)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stage.prometheus.scrape("unaccounted", f"http://127.0.0.1:{runner.addresses[0][1]}")
        await stage.prometheus.fires("unaccounted", "ConsentgateRecordsUnaccounted")
    finally:
        await runner.cleanup()


async def expired(stage: Stage) -> None:
    """Retention is faster than the workers, which are away."""
    site = await stage.site("expired")
    worker = await stage.worker("expired", site)
    await posts(site, "1")
    await site.decided()
    worker.signal(signal.SIGTERM)
    await worker.wait()
    await posts(site, *map(str, range(2, 7)))
    place = TopicPartition(site.content, 0)
    before = (await site.probe.ends(site.content, 1)).high[0] - 1
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=before)})
    worker = await stage.worker("expired", site)
    await stage.scrape("expired", worker)
    await stage.prometheus.fires("expired", "ConsentgateRecordsExpired")
    await site.decided()


async def skew(stage: Stage) -> None:
    """Two workers with two policies; then one of them is killed, and then the other."""
    site = await stage.site("skew", partitions=2)
    first = await stage.worker("skew", site)
    assert partitions_of((await first.get("/metrics"))[1]) == {"0", "1"}
    path = site.path.with_suffix(".other.yaml")
    path.write_text(site.path.read_text().replace("policy: opt-in", "policy: linkedin"))
    second = await stage.worker("skew", replace(site, path=path))
    await first.ready()
    # What is no longer a worker's has no series there any more.
    shown = [partitions_of((await worker.get("/metrics"))[1]) for worker in (first, second)]
    assert sorted(map(sorted, shown)) == [["0"], ["1"]]
    await stage.scrape("skew", first, second)
    await stage.prometheus.fires("skew", "ConsentgatePolicySkew")
    await second.end()
    await stage.prometheus.fires("skew", "ConsentgatePartitionsUnattended")
    await first.end()
    await stage.prometheus.fires("skew", "ConsentgateDown")


def partitions_of(page: str) -> set[str]:
    """The partitions that a page of metrics has series of."""
    return set(re.findall(r'[{,]partition="(\d+)"', page))


async def broker(stage: Stage) -> None:
    """Nothing gets through between the broker and one worker."""
    client = {"bootstrap.servers": stage.proxy.bootstrap_servers, "client.id": "cut-off"}
    site = await stage.site("broker", kafka=client)
    worker = await stage.worker("broker", site)
    await posts(site, "1")
    await until(worker.consumed, "something was decided")
    await stage.scrape("broker", worker)
    stage.proxy.cut("cut-off")
    await stage.prometheus.fires("broker", "ConsentgateBrokerUnreachable")
    await worker.end()
    stage.proxy.heal("cut-off")


async def frozen(stage: Stage) -> None:
    """Somebody's transaction hangs in the consent topic."""
    site = await stage.site("frozen")
    worker = await stage.worker("frozen", site)
    await stage.scrape("frozen", worker)
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=f"{site.config.group}-app"
    ) as producer:
        await producer.begin_transaction()
        sent = consent("anna", "withdrawn")
        await producer.send_and_wait(site.consent, sent.value, sent.key)
        await until(lambda: worker.logged("stalled"), "the partition says that it stalls")
        await posts(site, "1")
        await stage.prometheus.fires("frozen", "ConsentgateConsentStale")
        status, text = await worker.get("/readyz")
        assert (status, "an open transaction hides" in text) == (503, True), text
        await producer.abort_transaction()
    await site.decided()


async def stuck(stage: Stage) -> None:
    """The worker may not write to the training topic any more, after it has decided an old post."""
    site = await stage.site("stuck")
    worker = await stage.worker("stuck", site)
    await stage.scrape("stuck", worker)
    await posts(site, "1", timestamp_ms=int(time.time() * 1000) - HOUR_MS)
    await site.decided()
    await stage.probe.deny(site.config.topics.training, WRITE)
    await posts(site, "2")
    await stage.prometheus.fires(
        "stuck",
        "ConsentgatePartitionStuck",
        "ConsentgateTransactionsFailing",
        "ConsentgateFallingBehind",
    )
    assert any("lacks a right on the topic" in each["why"] for each in worker.logged("recycled"))


async def slow(stage: Stage) -> None:
    """A worker stands still while somebody withdraws, and then goes on."""
    site = await stage.site("slow", kafka={"session.timeout.ms": 60_000})
    worker = await stage.worker("slow", site)
    await stage.scrape("slow", worker)
    worker.signal(signal.SIGSTOP)
    await site.feed.one(site.consent, consent("anna", "withdrawn"))
    await asyncio.sleep(SLOW_SECONDS)
    worker.signal(signal.SIGCONT)
    await stage.prometheus.fires("slow", "ConsentgateWithdrawalSlow")


async def junk(stage: Stage) -> None:
    """Producers write what cannot be read, and to partitions where it does not belong."""
    value = json.loads(post("anna", "1").value or b"")
    value["body"]["text"] = "a@b.co " * 9
    # As compact as it is written again.
    fits = json.dumps(value, separators=(",", ":")).encode()
    policy = stage.folder / "redacting.yaml"
    rule = {"jurisdictions": ["*"], "basis": "opt-out", "redact": ["email"]}
    policy.write_text(json.dumps({"name": "redacting", "purpose": "ai-training", "rules": [rule]}))
    site = await stage.site(
        "junk",
        partitions=2,
        policy=str(policy),
        limits={"max_value_bytes": len(fits)},
    )
    worker = await stage.worker("junk", site)
    await stage.scrape("junk", worker)
    await site.feed.one(site.content, Sent(b"anna", fits))
    await site.feed.one(site.consent, Sent(b"dora", b"no JSON"))
    home = site.feed.partition_of(consent("ben"), [0, 1])
    await site.feed.one(site.consent, consent("ben"), partition=1 - home)

    async def is_noticed() -> bool:
        await site.feed.many(site.content, [Sent(b"anna", b"no JSON") for _ in range(5)])
        return "ConsentgateQuarantineSurge" in stage.prometheus.fired.get("junk", ())

    await until(is_noticed, "the surge is noticed", 60)
    await stage.prometheus.fires(
        "junk",
        "ConsentgateConsentUnreadable",
        "ConsentgateConsentMisplaced",
        "ConsentgateRecordsFailing",
    )


@dataclass(frozen=True)
class Fault:
    """What a fault does, which alerts must fire for it, and which may."""

    cause: Callable[[Stage], Awaitable[None]]
    must: frozenset[str]
    may: frozenset[str] = frozenset()


def fault(cause: Callable[[Stage], Awaitable[None]], must: str = "", may: str = "") -> Fault:
    """A fault with its alerts, by their names without the prefix."""
    named = [frozenset(f"Consentgate{name}" for name in names.split()) for names in (must, may)]
    return Fault(cause, *named)


FAULTS: Mapping[str, Fault] = {
    "well": fault(well),
    "unaccounted": fault(unaccounted, "RecordsUnaccounted", may="Down"),
    "expired": fault(expired, "RecordsExpired"),
    "skew": fault(skew, "PolicySkew PartitionsUnattended Down"),
    "broker": fault(broker, "BrokerUnreachable", may="TransactionsFailing Down"),
    "frozen": fault(frozen, "ConsentStale"),
    "stuck": fault(stuck, "PartitionStuck TransactionsFailing FallingBehind"),
    # Prometheus gets no answer from a worker that stands still, nor does it from Kafka.
    "slow": fault(slow, "WithdrawalSlow", may="Down BrokerUnreachable"),
    "junk": fault(junk, "QuarantineSurge ConsentUnreadable ConsentMisplaced RecordsFailing"),
}


@dataclass
class Seen:
    """What came of it all."""

    failures: dict[str, BaseException | None]  # of what was to bring a fault about, by job
    fired: dict[str, dict[str, Any]]
    answers: dict[str, int]  # how many series each query of a dashboard came to
    page: str


@pytest.fixture(scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    """All faults at once, and then what Prometheus knows."""
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "prometheus").mkdir()
    async with AsyncExitStack() as stack:
        rights = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
        kafka = stack.enter_context(ProxiedKafka(config=rights))
        probe = await stack.enter_async_context(Probe(kafka))
        feed = await stack.enter_async_context(Feed(kafka))
        stage = Stage(
            await stack.enter_async_context(Prometheus(folder / "prometheus")),
            SiteFactory(kafka, probe, feed, folder),
            probe,
            feed,
            await stack.enter_async_context(kafka.proxy()),
            folder,
        )
        stack.push_async_callback(_end, stage.workers)
        watching = asyncio.create_task(stage.prometheus.watch())
        try:
            causes = [each.cause(stage) for each in FAULTS.values()]
            ended = await asyncio.gather(*causes, return_exceptions=True)
        finally:
            watching.cancel()
        answers = {
            expression: len(await stage.prometheus.query(expression))
            for expression in dashboard_queries()
        }
        failures = dict(zip(FAULTS, ended, strict=True))
        yield Seen(failures, stage.prometheus.fired, answers, stage.page)


async def _end(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        await worker.end()


def dashboard_queries() -> list[str]:
    """All queries of the dashboards, for all jobs and with a rate over half a minute."""
    texts = [path.read_text("utf-8") for path in DASHBOARDS]
    panels = [panel for text in texts for panel in json.loads(text)["panels"]]
    return [
        re.sub(r"\$(namespace|job|instance)", ".*", target["expr"]).replace(
            "$__rate_interval", "2m"
        )
        for panel in panels
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize("job", FAULTS)
def test_a_fault_is_noticed_and_nothing_else_is_said(seen: Seen, job: str) -> None:
    if (failure := seen.failures[job]) is not None:
        raise failure
    fired = set(seen.fired.get(job, ()))
    assert FAULTS[job].must <= fired
    assert fired <= FAULTS[job].must | FAULTS[job].may


def test_every_alert_has_been_seen_to_fire(seen: Seen) -> None:
    assert set().union(*(each.must for each in FAULTS.values())) == set(ALERTS)


def test_what_an_alert_says_can_be_read(seen: Seen) -> None:
    for fired in seen.fired.values():
        for annotations in fired.values():
            text = " ".join(annotations.values())
            assert "<no value>" not in text
            assert "<error" not in text
            assert "{{" not in text


def test_every_query_of_the_dashboards_has_an_answer(seen: Seen) -> None:
    assert [query for query, series in seen.answers.items() if not series] == []


def test_promtool_has_nothing_to_say_about_the_metrics_of_a_worker(seen: Seen) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "run tests/ops/install.sh"
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=seen.page,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
