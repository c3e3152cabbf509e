"""The decision ledger: one entry for each committed batch, chained by hash.

An entry accounts for every offset from `first` to `last`. It holds no personal data. The chain is
the hex SHA-256 of the entry without `hash` and `signature`, its keys sorted, without spaces, in
UTF-8; the first entry of a group and input partition names 64 zeros as its `previous`.
"""

import base64
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson

from consentgate.core.model import Decision, Reason

GENESIS = "0" * 64
"""What the first entry of a chain names as the hash before it."""

NO_RECORD = 255
"""The outcome code of an offset that holds no record: a marker, aborted or compacted."""


_REASONS = {str(reason): reason for reason in Reason}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An encoded entry and what the next one needs to know of it."""

    key: bytes
    value: bytes
    hash: str


class LedgerSource(msgspec.Struct, frozen=True):
    """The input partition and the offsets that an entry accounts for; both ends included."""

    topic: str
    partition: int
    first: int
    last: int


class LedgerOutcomes(msgspec.Struct, frozen=True):
    """One code for each offset, an index into `reasons`; base64 of zlib of the codes."""

    reasons: list[str]
    codes: str


class LedgerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An entry as it stands in the topic."""

    group: str
    source: LedgerSource
    decided_at: int  # epoch milliseconds
    consent: dict[str, int]  # consent partition to frontier
    policy: str  # name@hash, the first 12 hex digits
    counts: dict[str, dict[str, int]]  # jurisdiction label to reason to number of records
    outcomes: LedgerOutcomes
    previous: str
    hash: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """Whose entries these are: one group's over one input partition."""

    group: str
    topic: str
    partition: int
    sign: Callable[[str], str] | None = None  # an entry's hash to its signature, in base64

    @property
    def key(self) -> bytes:
        """The key of every entry of the chain."""
        return f"{self.group}/{self.topic}-{self.partition}".encode()


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What an entry states of one batch."""

    first: int  # the first offset that the batch accounts for
    last: int  # the last one; `first` - 1 where it accounts for none
    decided_at_ms: int
    frontier: Mapping[int, int]  # consent partition to frontier
    policy: str  # name@hash, the first 12 hex digits
    offsets: Sequence[int]  # of the records, ascending
    decisions: Sequence[Decision]  # one for each of `offsets`


def write_entry(chain: Chain, facts: BatchFacts, previous: str) -> LedgerEntry:
    """The next entry of the chain, after the one with the hash `previous`."""
    entry: dict[str, Any] = {
        "group": chain.group,
        "source": {
            "topic": chain.topic,
            "partition": chain.partition,
            "first": facts.first,
            "last": facts.last,
        },
        "decided_at": facts.decided_at_ms,
        "consent": {str(partition): offset for partition, offset in facts.frontier.items()},
        "policy": facts.policy,
        "counts": _count(facts.decisions),
        "outcomes": _encode_outcomes(facts),
        "previous": previous,
    }
    entry["hash"] = entry_hash(entry)
    if chain.sign is not None:
        entry["signature"] = chain.sign(entry["hash"])
    return LedgerEntry(chain.key, _canonical(entry), entry["hash"])


def read_entry(value: bytes) -> LedgerRecord:
    """An entry from the topic.

    Raises:
        ValueError: if it is no ledger entry, or its hash is not that of its content.
    """
    record = msgspec.json.decode(value, type=LedgerRecord)
    if entry_hash(msgspec.json.decode(value)) != record.hash:
        raise ValueError("the ledger entry's hash is not that of its content")
    return record


def read_codes(outcomes: LedgerOutcomes) -> list[Reason | None]:
    """The reason of each offset from first to last; None where there is no record."""
    if not outcomes.codes:
        return []
    reasons = [_REASONS[name] for name in outcomes.reasons]
    codes = zlib.decompress(base64.b64decode(outcomes.codes))
    return [None if code == NO_RECORD else reasons[code] for code in codes]


def entry_hash(entry: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the entry without its `hash` and `signature`."""
    signed = {name: value for name, value in entry.items() if name not in ("hash", "signature")}
    return hashlib.sha256(_canonical(signed)).hexdigest()


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)


def _count(decisions: Sequence[Decision]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for made, number in Counter(decisions).items():
        by_reason = counts.setdefault(made.label, {})
        by_reason[str(made.reason)] = by_reason.get(str(made.reason), 0) + number
    return counts


def _encode_outcomes(facts: BatchFacts) -> dict[str, Any]:
    if facts.last < facts.first:
        return {"reasons": [], "codes": ""}
    reasons = list(dict.fromkeys(made.reason for made in set(facts.decisions)))
    reasons.sort()
    code_of = {reason: code for code, reason in enumerate(reasons)}
    codes = bytearray([NO_RECORD]) * (facts.last - facts.first + 1)
    for offset, made in zip(facts.offsets, facts.decisions, strict=True):
        codes[offset - facts.first] = code_of[made.reason]
    packed = base64.b64encode(zlib.compress(codes)).decode()
    return {"reasons": [str(reason) for reason in reasons], "codes": packed}


_TwoCounts = Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]


class Bookmark(msgspec.Struct, frozen=True):
    """What is committed beside a source offset, for whoever takes the partition over."""

    ledger_partition: int
    ledger_offset: int
    hash: str  # of the last ledger entry
    scope: Literal["partition", "global"]  # settled at the group's first start
    partitions: _TwoCounts  # of content and of consent partitions, settled likewise

    def encode(self) -> str:
        """The metadata of the committed offset; far below the broker's limit of 4,096 bytes."""
        return orjson.dumps(msgspec.structs.asdict(self), option=orjson.OPT_SORT_KEYS).decode()

    @staticmethod
    def decode(metadata: str) -> "Bookmark | None":
        """The bookmark in an offset's metadata; None where somebody else has set the offset."""
        try:
            return msgspec.json.decode(metadata, type=Bookmark)
        except msgspec.MsgspecError:
            return None
