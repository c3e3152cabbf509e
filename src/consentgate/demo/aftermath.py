"""What the topics say after a run, read back without asking the enforcer."""

from collections import Counter
from dataclasses import dataclass, field

from consentgate.config import Config
from consentgate.core.ledger import LedgerRecord, read_codes, read_entry
from consentgate.core.model import Reason, Verdict
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import KafkaSettings


@dataclass(slots=True)
class Person:
    """What became of one person's posts."""

    posts: int = 0
    forwarded: int = 0
    withheld: Counter[Reason] = field(default_factory=Counter)
    quarantined: Counter[Reason] = field(default_factory=Counter)

    def count(self, reason: Reason) -> None:
        """Count one more post with this outcome."""
        self.posts += 1
        match reason.verdict:
            case Verdict.FORWARD:
                self.forwarded += 1
            case Verdict.WITHHOLD:
                self.withheld[reason] += 1
            case Verdict.QUARANTINE:
                self.quarantined[reason] += 1


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """When a withdrawal was appended, and when it took effect."""

    appended_ms: int
    effect_ms: int  # from then until the first ledger entry whose frontier covers it
    entry: str  # topic-partition@offset
    forwarded_before: int  # posts that entries before that one account for
    forwarded_after: int
    withheld: int


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    appended_ms: int
    record: LedgerRecord


class Aftermath:
    """The ledger, put beside the content and the consent that it speaks of."""

    def __init__(self, ledger_topic: str) -> None:
        self.counts: Counter[tuple[str, Reason]] = Counter()
        self.people: dict[str, Person] = {}
        self.posts = 0
        self._ledger_topic = ledger_topic
        self._entries: list[_Entry] = []
        self._reasons: dict[tuple[int, int], Reason] = {}
        self._posts_of: dict[str, list[tuple[int, int]]] = {}
        self._withdrawn: dict[str, tuple[int, int, int]] = {}  # partition, offset, time

    def add_entry(self, offset: int, appended_ms: int, value: bytes) -> None:
        """Take in a ledger entry."""
        record = read_entry(value)
        self._entries.append(_Entry(offset, appended_ms, record))
        for label, reasons in record.counts.items():
            for name, number in reasons.items():
                self.counts[label, _reason(name)] += number
        source = record.source
        for place, reason in enumerate(read_codes(record.outcomes), start=source.first):
            if reason is not None:
                self._reasons[source.partition, place] = reason

    def add_post(self, partition: int, offset: int, key: bytes | None) -> None:
        """Take in a content record; the people of the story are those without a number."""
        self.posts += 1
        name = (key or b"").decode(errors="replace")
        if not name.startswith("member-"):
            self._posts_of.setdefault(name, []).append((partition, offset))
            self.people.setdefault(name, Person()).count(self._reasons[partition, offset])

    def add_consent(self, partition: int, offset: int, time_ms: int, key: bytes | None) -> None:
        """Take in a consent record; a person's last one counts."""
        self._withdrawn[(key or b"").decode()] = (partition, offset, time_ms)

    def total(self, verdict: str) -> int:
        """Number of posts with this verdict."""
        return sum(n for (_, reason), n in self.counts.items() if reason.verdict == verdict)

    def last_forward_ms(self, label: str) -> int:
        """When the last batch with a forwarded record of this jurisdiction was decided."""
        return max(
            entry.record.decided_at
            for entry in self._entries
            if any(
                _reason(reason).verdict is Verdict.FORWARD
                for reason in entry.record.counts.get(label, ())
            )
        )

    def withdrawal_of(self, name: str) -> Withdrawal:
        """What came of the last consent record of this person, who has withdrawn."""
        consent_partition, consent_offset, appended_ms = self._withdrawn[name]
        posts = self._posts_of[name]
        covering = next(
            entry
            for entry in self._entries
            if entry.record.source.partition == posts[0][0]
            and entry.record.consent[str(consent_partition)] > consent_offset
        )
        first = covering.record.source.first
        forwarded = [
            offset
            for partition, offset in posts
            if self._reasons[partition, offset].verdict is Verdict.FORWARD
        ]
        return Withdrawal(
            appended_ms=appended_ms,
            effect_ms=covering.appended_ms - appended_ms,
            entry=f"{self._ledger_topic}-0@{covering.offset}",
            forwarded_before=sum(offset < first for offset in forwarded),
            forwarded_after=sum(offset >= first for offset in forwarded),
            withheld=self.people[name].withheld[Reason.WITHDRAWN],
        )


async def read_aftermath(config: Config, settings: KafkaSettings, partitions: int) -> Aftermath:
    """Read ledger, content and consent, in this order."""
    topics = config.topics
    aftermath = Aftermath(topics.decisions)
    async for _, record in read_topic(settings, topics.decisions, 1):
        aftermath.add_entry(record.offset, record.timestamp, record.value)
    async for partition, record in read_topic(settings, topics.content, partitions):
        aftermath.add_post(partition, record.offset, record.key)
    async for partition, record in read_topic(settings, topics.consent, partitions):
        aftermath.add_consent(partition, record.offset, record.timestamp, record.key)
    return aftermath


_REASONS = {str(reason): reason for reason in Reason}


def _reason(name: str) -> Reason:
    return _REASONS[name]
