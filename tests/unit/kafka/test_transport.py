"""Steps that fail before they reach Kafka: whatever it is, the partition hears of it in one way."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from consentgate.core.consent import ConsentTable
from consentgate.core.ledger import Chain
from consentgate.core.partition import Commit, Pause, StepFailed
from consentgate.errors import ConfigError
from consentgate.kafka import transport
from consentgate.kafka.clients import Clients
from consentgate.kafka.transport import KafkaTransport


def transport_without_clients() -> KafkaTransport:
    nothing = cast("Clients", SimpleNamespace(source=None, view=None))
    return KafkaTransport(nothing, Chain("g", "content", 0), ConsentTable([0]), lambda change: None)


async def test_a_step_that_takes_too_long_fails_as_one_that_timed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "STEP_SECONDS_MAX", 0.01)
    with pytest.raises(StepFailed, match="Pause took too long") as failed:
        await transport_without_clients().perform(Pause(3_000))
    assert failed.value.timed_out


async def test_whatever_is_raised_is_a_step_that_failed() -> None:
    # aiokafka asserts its states: a fenced producer surfaces as an AssertionError, too.
    with pytest.raises(StepFailed, match="Commit failed: AssertionError") as failed:
        await transport_without_clients().perform(Commit())
    assert not failed.value.timed_out


async def test_what_takes_a_person_s_decision_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: KafkaTransport, step: Any) -> None:
        raise ConfigError("a gap")

    monkeypatch.setattr(KafkaTransport, "_perform", refuse)
    with pytest.raises(ConfigError, match="a gap"):
        await transport_without_clients().perform(Commit())
