"""A seeded world: workers, rebalances, zombies, lost and late replies, transactions that hang.

Only the broker, the transport and the scheduler are fake. What decides and what leads a partition
through its life is the product's own code, driven step by step.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from broker import Broker, Payload, TransactionalId
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.partition import (
    Committed,
    Event,
    Partition,
    Revoked,
    Step,
    StepFailed,
)
from consentgate.core.policyfile import parse_policy
from transport import FakeTransport, FakeView, LossRates, LossyTransport, Performing

GROUP, CONTENT, CONSENT = "sim", "content", "consent"
SUBJECTS = [f"s{number}" for number in range(6)]
SUSPENDED_AT_MS = 60_000
POLICY = parse_policy(
    """
name: simulated
purpose: ai-training
rules:
  - jurisdictions: [GB]
    until: 1970-01-01T00:01:00Z
    basis: opt-in
  - jurisdictions: [GB]
    from: 1970-01-01T00:01:00Z
    basis: suspended
  - jurisdictions: ["*"]
    basis: opt-out
""",
    "simulated.yaml",
)
_DECODE_CONTENT = content_decoder(ContentFields(), 64)


class Worker:
    """One process: its view of the consent and the partitions that it believes to own."""

    def __init__(self, broker: Broker) -> None:
        self.view = FakeView(broker)
        self.lives: dict[int, Life] = {}


class Life:
    """A partition in a worker's hands, one step ahead."""

    def __init__(self, world: "World", worker: Worker, number: int) -> None:
        self._world = world
        table = worker.view.table(world.consent_of(number))
        gate = Gate(
            chain=Chain(GROUP, CONTENT, number),
            consent_topic=CONSENT,
            table=table,
            policy=POLICY,
            decode=_DECODE_CONTENT,
            limits=Limits(),
            key_is_subject=True,
        )
        partition = world.partition(gate, self._report, max_exposure_ms=5_000)
        self._fake = world.transport(
            world.broker,
            worker.view,
            gate.chain,
            table,
            partition.consent_changed,
            chance=world.random,
        )
        self._transport = LossyTransport(
            self._fake, world.random, world.loss_rates, world.on_their_way
        )
        self._steps = partition.life()
        self._performing: Performing | None = None
        self.step: Step[Any] | None = next(self._steps)

    def advance(self) -> None:
        """Perform the step in hand, up to where it waits for something."""
        assert self.step is not None
        if self._performing is None:
            self._performing = self._transport.perform(self.step)
        try:
            self._performing.send(None)
        except StopIteration as done:
            self._resume(partial(self._steps.send, done.value))
        except StepFailed as failure:
            self._resume(partial(self._steps.throw, failure))

    def revoke(self) -> None:
        """Give the partition up, at whatever step it is."""
        if self._performing is not None:
            # Nobody waits for it any more, but what was sent may still arrive.
            self._world.on_their_way.append(self._performing)
        self._resume(partial(self._steps.throw, Revoked()))
        while self.step is not None:
            self.advance()
        self._fake.close()

    def _resume(self, send: Any) -> None:
        self._performing = None
        try:
            self.step = send()
        except StopIteration:
            self.step = None

    def _report(self, event: Event) -> None:
        self._world.commits += isinstance(event, Committed)


class World:
    """Everything there is; every choice comes from the seed."""

    def __init__(
        self,
        seed: int,
        partition: type[Partition] = Partition,
        transport: type[FakeTransport] = FakeTransport,
    ) -> None:
        self.random = random.Random(seed)
        self.partition = partition
        self.transport = transport
        self.partitions = 2
        self.scope = self.random.choice(("partition", "global"))
        self.loss_rates = LossRates(
            lost=self.random.choice((0.0, 0.01, 0.05, 0.15)),
            late=self.random.choice((0.0, 0.1, 0.3)),
        )
        self.transaction_rate = self.random.choice((0.0, 0.1, 0.4))
        self.broker = Broker(self.partitions, self.partitions)
        self.on_their_way: list[Performing] = []
        self.workers = [Worker(self.broker) for _ in range(self.random.randint(1, 3))]
        self.zombies: list[Life] = []
        self.commits = 0
        self.consent_ends: dict[tuple[int, int], list[int]] = {}  # when content was appended
        self._applications: list[tuple[TransactionalId, int]] = []  # with open transactions
        self._number = 0
        for _ in range(self.random.randint(0, 12)):
            self.change_consent()
        self.rebalance()

    def consent_of(self, partition: int) -> list[int]:
        return [partition] if self.scope == "partition" else list(range(self.partitions))

    def home_of(self, subject: str) -> int:
        return SUBJECTS.index(subject) % self.partitions

    def run(self, turns: int) -> None:
        """Let chance rule, and then let everything come to an end."""
        actions = (
            (self.advance, 60),
            (self.post, 12),
            (self.change_consent, 4),
            (self.end_transaction, 4),
            (self.write_markers, 3),
            (self.time_out, 1),
            (self.follow, 16),
            (self.tick, 4),
            (self.deliver_late, 6),
            (self.advance_zombie, 15),
            (self.rebalance, 2),
        )
        choices, weights = zip(*actions, strict=True)
        for action in self.random.choices(choices, weights, k=turns):
            action()
        self.settle()

    def settle(self) -> None:
        """No more faults: everybody finishes what there is."""
        self.loss_rates.lost = self.loss_rates.late = 0.0
        for zombie in self.zombies:
            zombie.revoke()
        self.zombies.clear()
        while self.on_their_way:
            self.deliver_late()
        while self._applications:
            self.end_transaction()
        for _ in range(500):
            if self.is_settled():
                return
            self.write_markers()
            for worker in self.workers:
                for partition in worker.view.partitions:
                    worker.view.follow(partition, 100)
            for life in [*self.lives()] * 10:
                life.advance()
        raise AssertionError("it does not come to an end")

    def is_settled(self) -> bool:
        return all(map(self._is_settled, range(self.partitions)))

    def _is_settled(self, partition: int) -> bool:
        entry = self.broker.last_entry(partition)
        return (
            entry is not None
            and entry.source.last + 1 == self.broker.content[partition].high_watermark
            and all(
                entry.consent[str(c)] == self.broker.consent[c].high_watermark
                for c in self.consent_of(partition)
            )
        )

    def lives(self) -> Iterator[Life]:
        for worker in self.workers:
            yield from worker.lives.values()

    def advance(self) -> None:
        self._advance_some_steps([life for life in self.lives() if life.step is not None])

    def _advance_some_steps(self, lives: list[Life]) -> None:
        if lives:
            life = self.random.choice(lives)
            for _ in range(self.random.choice((1, 1, 2, 5, 12))):
                life.advance()

    def advance_zombie(self) -> None:
        alive = [zombie for zombie in self.zombies if zombie.step is not None]
        self._advance_some_steps(alive)
        if alive and self.random.random() < 0.1:
            zombie = self.random.choice(alive)
            zombie.revoke()
            self.zombies.remove(zombie)

    def post(self) -> None:
        """Content, plain or in a transaction."""
        append = self._appender()
        for _ in range(self.random.randint(1, 4)):
            self._number += 1
            subject = self.random.choice([*SUBJECTS, "stranger"])
            home = self.home_of(subject) if subject in SUBJECTS else 0
            event = {
                "id": f"e{self._number}",
                "subject": subject,
                "kind": "post",
                "visibility": "public",
                "created_at": 0,
            }
            value = b"{" if self.random.random() < 0.05 else msgspec.json.encode(event)
            offset = append(self.broker.content[home], subject, value)
            self.consent_ends[home, offset] = [log.high_watermark for log in self.broker.consent]

    def change_consent(self) -> None:
        """People make up their minds; in a transaction several of them."""
        append = self._appender()
        for _ in range(self.random.choice((1, 1, 1, 2))):
            subject = self.random.choice(SUBJECTS)
            choice = self.random.choice(("granted", "granted", "withdrawn", "objected"))
            state = {
                "subject": subject,
                "jurisdiction": "GB" if subject in ("s0", "s1") else "US",
                "choices": {"ai-training": {"choice": choice}},
            }
            value = None if self.random.random() < 0.1 else msgspec.json.encode(state)
            append(self.broker.consent[self.home_of(subject)], subject, value)

    def _appender(self) -> Any:
        """How records are appended: plainly, or in a transaction of an application's."""
        if self.random.random() >= self.transaction_rate:
            return lambda log, key, value: log.append(self._payload(key, value))
        self._number += 1
        application = self.broker.transactional_id(f"application-{self._number}")
        epoch = application.fence()
        self._applications.append((application, epoch))
        return lambda log, key, value: application.open(epoch).append(
            log, self._payload(key, value)
        )

    def _payload(self, key: str, value: bytes | None) -> Payload:
        return Payload(self.broker.now_ms, key.encode(), value)

    def end_transaction(self) -> None:
        """An application commits or aborts; or it hangs, until the broker fences it."""
        if self._applications:
            place = self.random.randrange(len(self._applications))
            application, epoch = self._applications.pop(place)
            match self.random.choice(("commit", "commit", "abort", "expire")):
                case "expire":
                    application.fence()
                case end:
                    application.end(epoch, commit=end == "commit")

    def write_markers(self) -> None:
        """One of the transactions that were ended is seen to have ended."""
        ending = self.broker.ending()
        if ending:
            self.random.choice(ending).write_markers()

    def time_out(self) -> None:
        """A transaction of the group's takes too long, and the broker fences its producer."""
        chain = Chain(GROUP, CONTENT, self.random.randrange(self.partitions))
        self.broker.transactional_id(chain.key.decode()).fence()

    def follow(self) -> None:
        view = self.random.choice(self.workers).view
        if view.partitions:
            view.follow(self.random.choice(view.partitions), self.random.randint(1, 6))

    def tick(self) -> None:
        self.broker.now_ms += self.random.choice((1, 10, 100, 1_000, 6_000))

    def deliver_late(self) -> None:
        """A request that nobody waits for comes a step further."""
        if self.on_their_way:
            place = self.random.randrange(len(self.on_their_way))
            try:
                self.on_their_way[place].send(None)
            except (StopIteration, StepFailed):
                del self.on_their_way[place]

    def rebalance(self) -> None:
        """Deal the partitions out anew; some workers do not hear of it at once."""
        for worker in self.workers:
            for life in list(worker.lives.values()):
                if self.random.random() < 0.5:
                    life.revoke()
                else:
                    self.zombies.append(life)
            worker.lives.clear()
        if self.random.random() < 0.2:
            # A process that was killed comes back with nothing in memory.
            self.workers[self.random.randrange(len(self.workers))] = Worker(self.broker)
        for partition in range(self.partitions):
            worker = self.random.choice(self.workers)
            worker.lives[partition] = Life(self, worker, partition)
