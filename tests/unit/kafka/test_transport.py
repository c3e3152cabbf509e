"""Steps that fail before they reach Kafka: whatever it is, the partition hears of it in one way."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.ledger import Chain
from consentgate.core.partition import (
    AwaitFrontier,
    Commit,
    Moment,
    Pause,
    StepFailed,
    WatchConsent,
)
from consentgate.errors import ConfigError
from consentgate.kafka import transport
from consentgate.kafka.clients import Clients
from consentgate.kafka.followed import FollowedTable
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


async def test_a_table_that_is_lost_during_the_barrier_is_refused() -> None:
    table, heard = ConsentTable([0]), list[ConsentChange]()
    followed = FollowedTable(table, Moment(0, 0))

    class View:
        """What the transport asks of the consent view."""

        def listen(self, _: ConsentTable, listener: Any) -> None:
            followed.listeners.append(listener)

        def is_listening(self, _: ConsentTable, listener: Any) -> bool:
            return listener in followed.listeners

        async def await_frontier(self, _: ConsentTable, high: dict[int, int]) -> None:
            await followed.covering(high)

    clients = cast("Clients", SimpleNamespace(source=None, view=View()))
    hands = KafkaTransport(clients, Chain("g", "content", 0), table, heard.append)
    await hands.perform(WatchConsent())
    waiting = asyncio.create_task(hands.perform(AwaitFrontier({0: 5})))
    await asyncio.sleep(0)
    # Another partition has found something wrong; the topic is read again, and beyond.
    followed.reset(Moment(1, 1))
    table.advance(0, 7)
    followed.advanced()
    with pytest.raises(StepFailed, match="thrown away"):
        await waiting
