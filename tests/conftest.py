"""One broker for all tests, and for each test what it starts and appends with."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from consentgate.tools.broker import EmbeddedKafka

# Their assertions explain themselves like those of the tests.
pytest.register_assert_rewrite("checker", "harness")

from harness import Feed, Probe, Site, SiteFactory, StartWorker, WorkerProcess  # noqa: E402

LOG_TAIL = 4_000

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("consentgate", deadline=None)
hypothesis.settings.load_profile("consentgate")


@pytest.fixture(scope="session")
def shared_kafka() -> Iterator[EmbeddedKafka]:
    config = {
        # Below the broker's default of 6 s, so that a dead worker is missed sooner.
        "group.min.session.timeout.ms": "1000",
        # The default of 15 s is a long time to wait for a compaction.
        "log.cleaner.backoff.ms": "200",
        # Everybody may do everything, until a test says otherwise of a topic of its own.
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with EmbeddedKafka(config=config) as kafka:
        yield kafka


@pytest.fixture(scope="session")
async def probe(shared_kafka: EmbeddedKafka) -> AsyncIterator[Probe]:
    async with Probe(shared_kafka) as connected:
        yield connected


@pytest.fixture(scope="session")
async def feed(shared_kafka: EmbeddedKafka) -> AsyncIterator[Feed]:
    async with Feed(shared_kafka) as connected:
        yield connected


@pytest.fixture
def make_site(shared_kafka: EmbeddedKafka, probe: Probe, feed: Feed, tmp_path: Path) -> SiteFactory:
    return SiteFactory(shared_kafka, probe, feed, tmp_path)


@pytest.fixture
async def start_worker(tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Starts workers, or what is run in their place, as processes of their own.

    None outlives the test.
    """
    started: list[WorkerProcess] = []

    async def start(site: Site, *arguments: str, **what: Any) -> WorkerProcess:
        log_path = tmp_path / f"worker-{len(started)}.log"
        worker = await WorkerProcess.start(site, log_path, *arguments, **what)
        started.append(worker)
        return worker

    yield start
    for number, worker in enumerate(started):
        await worker.end()
        # Shown where the test fails.
        print(f"worker {number}: ...{worker.errors()[-LOG_TAIL:]}")
