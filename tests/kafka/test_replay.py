"""The shared fixtures on the real broker: the same outcomes as in memory, record by record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from consentgate.core.gate import CONSENT_HEADER, SOURCE_HEADER, Output
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.rehearsal import rehearse
from consentgate.tools.replay import Replayed
from consentgate.tools.replay import replay as replay_in_memory
from shared import FILES, name_of, settings_of


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def comparable(replayed: Replayed) -> Any:
    """All but what depends on the names of the topics and on how lines fall into batches."""
    decided = replayed.decided
    return (
        replayed.line,
        decided.reason,
        decided.entry.decided_at,
        decided.entry.policy,
        _without_places(decided.forwarded),
        _without_places(decided.quarantined),
    )


def _without_places(output: Output | None) -> Output | None:
    def is_place(name: str) -> bool:
        return name in (SOURCE_HEADER, CONSENT_HEADER) or name.startswith("__connect.errors.")

    if output is None:
        return None
    return output._replace(headers=[h for h in output.headers if not is_place(h[0])])


@pytest.mark.parametrize("path", FILES, ids=name_of)
async def test_the_broker_comes_to_what_memory_comes_to(
    shared_kafka: EmbeddedKafka, path: Path
) -> None:
    config, policy = settings_of(path)
    config = msgspec.structs.replace(
        config, kafka={"bootstrap.servers": shared_kafka.bootstrap_servers}
    )
    in_memory = [replayed for _, replayed in replay_in_memory(config, policy, [path])]
    on_kafka = await rehearse(config, policy, path)
    assert list(map(comparable, on_kafka)) == list(map(comparable, in_memory))
    assert all(replayed.matches for replayed in on_kafka)
