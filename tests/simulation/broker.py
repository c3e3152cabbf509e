"""A fake broker: logs with markers, transactions that hang, ids that fence. Without I/O.

`tests/conformance` holds it, and the transport on it, to what Kafka does.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from consentgate.core.gate import Headers
from consentgate.core.ledger import LedgerRecord, read_entry

OUTPUTS = ("training", "quarantine", "retractions")
"""The topics of one input partition, its ledger apart."""


class Fenced(Exception):
    """A newer producer has the transactional id."""


class Payload(NamedTuple):
    """What is appended."""

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers | tuple[()] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of a log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers | tuple[()]


@dataclass(slots=True, eq=False)
class Log:
    """One partition. An offset may hold no record: a marker stands there, or it was aborted."""

    start: int = 0
    _places: list[LogRecord | None] = field(default_factory=list)
    _open: dict["Transaction", list[int]] = field(default_factory=dict)

    @property
    def high_watermark(self) -> int:
        """The offset after the last one, whatever stands there."""
        return len(self._places)

    @property
    def stable(self) -> int:
        """The offset up to which every transaction has ended, and its marker has been written."""
        return min((offsets[0] for offsets in self._open.values()), default=self.high_watermark)

    def append(self, payload: Payload, transaction: "Transaction | None" = None) -> int:
        """Append a record; its offset."""
        offset = self.high_watermark
        self._places.append(LogRecord(offset, *payload))
        if transaction is not None:
            self._open.setdefault(transaction, []).append(offset)
        return offset

    def end(self, transaction: "Transaction", *, commit: bool) -> None:
        """Write the marker of a transaction."""
        for offset in self._open.pop(transaction):
            if not commit:
                self._places[offset] = None
        self._places.append(None)

    def committed(self, start: int = 0, end: int | None = None) -> list[LogRecord]:
        """The records that readers of committed records get."""
        stop = self.stable if end is None else min(end, self.stable)
        places = self._places[max(start, self.start) : stop]
        return [record for record in places if record is not None]

    def at(self, offset: int) -> LogRecord:
        """The record at an offset, for whoever knows that it is committed.

        It may lie beyond a transaction that is still open, and so beyond the stable offset.
        """
        record = self._places[offset]
        assert record is not None, "an offset that holds a record"
        return record

    def recreate(self) -> None:
        """Delete the topic and make it anew."""
        self._places.clear()
        self._open.clear()
        self.start = 0


class GroupOffset(NamedTuple):
    """A committed source offset, and where the ledger entry is that was committed with it."""

    next_offset: int
    ledger_offset: int


@dataclass(slots=True, eq=False)
class Transaction:
    """What a producer has written since it began."""

    logs: list[Log] = field(default_factory=list)
    offsets: dict[int, GroupOffset] = field(default_factory=dict)

    def append(self, log: Log, payload: Payload) -> int:
        """Append a record to a log; its offset."""
        if log not in self.logs:
            self.logs.append(log)
        return log.append(payload, self)


@dataclass(slots=True)
class TransactionalId:
    """A transactional id: of its producers only the latest may write."""

    group_offsets: dict[int, GroupOffset]
    epoch: int = 0
    _open: Transaction | None = None
    _ended: tuple[Transaction, bool] | None = None  # decided; the markers are not written yet

    def fence(self) -> int:
        """The epoch of a new producer; what an earlier one has left is settled."""
        self.epoch += 1
        self.write_markers()
        self._end(commit=False)
        self.write_markers()
        return self.epoch

    def open(self, epoch: int) -> Transaction:
        """The producer's open transaction; begun where there is none."""
        self._refuse_fenced(epoch)
        self.write_markers()
        self._open = self._open or Transaction()
        return self._open

    def end(self, epoch: int, *, commit: bool) -> None:
        """End whatever transaction is open, be it not the one that was meant: that is the hazard.

        The end is acknowledged before the markers are written.
        """
        self._refuse_fenced(epoch)
        self.write_markers()
        self._end(commit=commit)

    @property
    def is_ending(self) -> bool:
        """Whether markers are still to be written."""
        return self._ended is not None

    def write_markers(self) -> None:
        """Let readers see how the last transaction ended."""
        if self._ended is None:
            return
        (transaction, commit), self._ended = self._ended, None
        for log in transaction.logs:
            log.end(transaction, commit=commit)
        if commit:
            self.group_offsets.update(transaction.offsets)

    def _end(self, *, commit: bool) -> None:
        if self._open is not None:
            self._ended, self._open = (self._open, commit), None

    def _refuse_fenced(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced


class Broker:
    """The topics, the transactional ids, and the offsets of one group."""

    def __init__(self, partitions: int, consent_partitions: int) -> None:
        self.now_ms = 1_000
        self.content = [Log() for _ in range(partitions)]
        self.consent = [Log() for _ in range(consent_partitions)]
        self.outputs = [{topic: Log() for topic in OUTPUTS} for _ in range(partitions)]
        self.decisions = Log()
        self.group_offsets: dict[int, GroupOffset] = {}
        self._ids: dict[str, TransactionalId] = defaultdict(
            lambda: TransactionalId(self.group_offsets)
        )

    def transactional_id(self, name: str) -> TransactionalId:
        """The state of a transactional id; made when it is first asked for."""
        return self._ids[name]

    def ending(self) -> list[TransactionalId]:
        """The ids whose last transaction was ended, while its markers are not written yet."""
        return [state for state in self._ids.values() if state.is_ending]

    def last_entry(self, partition: int) -> LedgerRecord | None:
        """The ledger entry that goes with the committed offset of an input partition."""
        committed = self.group_offsets.get(partition)
        if committed is None:
            return None
        value = self.decisions.at(committed.ledger_offset).value
        assert value is not None, "an entry has a value"
        return read_entry(value)

    def ledger(self, partition: int) -> Iterator[LedgerRecord]:
        """The committed entries of one input partition."""
        for record in self.decisions.committed():
            assert record.value is not None, "an entry has a value"
            entry = read_entry(record.value)
            if entry.source.partition == partition:
                yield entry
