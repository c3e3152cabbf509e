"""Every test of the suite runs twice: against the fake broker, and against the real one."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

pytest.register_assert_rewrite("bench")

from bench import CONSENT_PARTITIONS, Bench  # noqa: E402
from consentgate.kafka import consent, transport  # noqa: E402
from fake_bench import fake_bench  # noqa: E402
from harness import SiteFactory  # noqa: E402
from kafka_bench import kafka_bench  # noqa: E402

FRESH_SECONDS_MAX = 0.3
CHANGES_MAX = 3


@pytest.fixture(scope="session", autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Have what fenced producers leave behind complain before the session ends.

    Python 3.11 stumbles where a traceback is formatted by chance while a module is compiled, as
    the summaries of pytest's plugins do.
    """
    yield
    gc.collect()


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(request.param)
    return made


@pytest.fixture
async def fake() -> AsyncIterator[Bench]:
    async with fake_bench() as made:
        yield made


@pytest.fixture
async def real(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(transport, "FRESH_SECONDS_MAX", FRESH_SECONDS_MAX)
    monkeypatch.setattr(consent, "CHANGES_MAX", CHANGES_MAX)
    site = await make_site(
        "conformance",
        consent_partitions=CONSENT_PARTITIONS,
        # A request waits behind the fetch that is on the same connection, and a new producer for
        # the end of its predecessor's transaction.
        kafka={"fetch.wait.max.ms": 50, "retry.backoff.ms": 20},
    )
    async with kafka_bench(site) as made:
        yield made
