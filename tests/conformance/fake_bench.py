"""The bench of the simulation's fake broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

from bench import CONSENT_PARTITIONS, Bench, OpenTransaction, Topic
from broker import Broker, Log, Payload, TransactionalId
from consentgate.core.consent import ConsentChange
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.partition import Transport
from consentgate.policies import load_policy
from harness import Sent
from transport import FakeTransport, FakeView, turn

FOLLOW_OFFSETS = 3
MARKERS_LIKELIHOOD = 0.2


class FakeBench(Bench):
    """Around the fake broker."""

    def __init__(self) -> None:
        self._broker = Broker(1, CONSENT_PARTITIONS)
        self._view = FakeView(self._broker)
        self._chance = Random(1)
        self._applications = 0
        self.gate = Gate(
            chain=Chain("group", "content", 0),
            consent_topic="consent",
            table=self._view.table(list(range(CONSENT_PARTITIONS))),
            policy=load_policy("opt-in"),
            decode=content_decoder(ContentFields(), 64),
            limits=Limits(),
            key_is_subject=True,
        )

    async def run(self) -> None:
        """Go on by small steps for ever, as the threads of a broker and a view's task do."""
        while True:
            for partition in self._view.partitions:
                self._view.follow(partition, FOLLOW_OFFSETS)
            for ending in self._broker.ending():
                if self._chance.random() < MARKERS_LIKELIHOOD:
                    ending.write_markers()
            await asyncio.sleep(0)

    def transport(self, on_consent_change: Callable[[ConsentChange], None]) -> Transport:
        return FakeTransport(
            self._broker,
            self._view,
            self.gate.chain,
            self.gate.table,
            on_consent_change,
            chance=self._chance,
        )

    async def append(self, topic: Topic, sent: Sent, partition: int = 0) -> int:
        log = getattr(self._broker, topic)[partition]
        offset: int = log.append(_payload(self._broker, sent))
        await turn()
        return offset

    async def begin(self, topic: Topic) -> OpenTransaction:
        self._applications += 1
        state = self._broker.transactional_id(f"application-{self._applications}")
        logs = [self._broker.decisions] if topic == "decisions" else getattr(self._broker, topic)
        return _FakeTransaction(self._broker, logs, state)

    async def expire_content(self, before: int) -> None:
        self._broker.content[0].start = before

    async def recreate_consent(self) -> None:
        for log in self._broker.consent:
            log.recreate()

    async def committed(self, topic: Literal["training", "decisions"]) -> list[bytes | None]:
        log = self._broker.decisions if topic == "decisions" else self._broker.outputs[0][topic]
        return [record.value for record in log.committed()]


class _FakeTransaction:
    def __init__(self, broker: Broker, logs: list[Log], state: TransactionalId) -> None:
        self._broker = broker
        self._logs = logs
        self._id = state
        self._epoch = state.fence()

    async def append(self, sent: Sent, partition: int = 0) -> int:
        payload = _payload(self._broker, sent)
        offset = self._id.open(self._epoch).append(self._logs[partition], payload)
        await turn()
        return offset

    async def commit(self) -> None:
        self._id.end(self._epoch, commit=True)
        await turn()

    async def abort(self) -> None:
        self._id.end(self._epoch, commit=False)
        await turn()


def _payload(broker: Broker, sent: Sent) -> Payload:
    return Payload(sent.timestamp_ms or broker.now_ms, sent.key, sent.value)


@asynccontextmanager
async def fake_bench() -> AsyncIterator[FakeBench]:
    """A bench of its own for each test."""
    bench = FakeBench()
    running = asyncio.create_task(bench.run())
    yield bench
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
