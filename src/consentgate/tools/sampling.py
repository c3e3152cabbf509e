"""What sampled records say of a topic: partitioner, formats, keys, countries. Counts only.

An example is a place, topic-partition@offset. No payload and no key is kept.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consentgate.config import Config
from consentgate.core.decide import Person, decide_by_key, decide_by_subject
from consentgate.core.decode import ConsentDecoder, ContentEvent, content_decoder
from consentgate.core.model import Reason, decision
from consentgate.core.policy import Basis, Policy, Rule, RulesInForce
from consentgate.kafka.murmur2 import home_partition
from consentgate.kafka.unreadable import UnreadableRecord, read_state

KEYS_MIN = 10
"""Fewer keys than these may lie anywhere by chance."""

FITS = 0.99
"""Share of the keys that lie where another partitioner puts them, if it was that one."""

_ANYBODY = Person(decision(Reason.NOT_OPTED_OUT, "*"), Rule(("*",), Basis.OPT_OUT))
"""Somebody whose content may be used whatever it is, so that the record alone is judged."""

_REGISTRY_FRAME = b"\x00"


def fnv1a_partition(key: bytes, partitions: int) -> int:
    """Where Sarama, and librdkafka's `fnv1a`, put a key: by the hash as a signed number."""
    hashed = 0x811C9DC5
    for byte in key:
        hashed = (hashed ^ byte) * 0x01000193 & 0xFFFFFFFF
    signed = hashed - (1 << 32) if hashed >> 31 else hashed
    return abs(signed) % partitions


OTHERS: Mapping[str, tuple[Callable[[bytes, int], int], str]] = {
    "crc32": (
        lambda key, partitions: zlib.crc32(key) % partitions,
        "That is librdkafka's default partitioner; set partitioner=murmur2_random in the producers",
    ),
    "fnv1a": (
        fnv1a_partition,
        "That is the default partitioner of Go's Sarama, and librdkafka's fnv1a; set a murmur2 "
        "partitioner in the producers (librdkafka: partitioner=murmur2_random)",
    ),
}
"""Other partitioners of keys by name: where they put a key, and what to do about them."""


@dataclass(slots=True)
class Placement:
    """In which partitions sampled keys lie; each key once for each partition that it lies in."""

    partitions: int
    keys: int = 0
    misplaced: int = 0
    example: str = ""  # the place of a record that is misplaced
    by_other: Counter[str] = field(default_factory=Counter)
    scattered: int = 0  # keys in more than one partition
    _seen: dict[bytes, set[int]] = field(default_factory=dict)

    def see(self, place: str, partition: int, key: bytes) -> None:
        """Take in the key of a record."""
        # Only to know it again: no id of a person is kept.
        known = self._seen.setdefault(hashlib.blake2b(key, digest_size=12).digest(), set())
        if partition in known:
            return
        known.add(partition)
        self.scattered += len(known) == 2
        self.keys += 1
        for name, (partition_of, _) in OTHERS.items():
            self.by_other[name] += partition_of(key, self.partitions) == partition
        if home_partition(key, self.partitions) != partition:
            self.misplaced += 1
            self.example = self.example or place

    def guess(self) -> str | None:
        """Which of `OTHERS` put the keys where they are; None where it was none of them alone."""
        if self.keys < KEYS_MIN:
            return None
        name, fitting = max(self.by_other.items(), key=lambda item: item[1])
        return name if fitting >= FITS * self.keys else None


@dataclass(slots=True)
class Examples:
    """How often each of several things was seen, and where for the first time."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, place: str) -> None:
        """One more."""
        self.counts[what] += 1
        self.first.setdefault(what, place)


@dataclass(slots=True)
class ContentSample:
    """What sampled content records come to if nothing is held against their authors."""

    placement: Placement
    records: int = 0
    reasons: Examples = field(default_factory=Examples)  # for which records are quarantined
    framed: int = 0  # undecodable ones that begin as those of a schema registry do
    decoded: int = 0
    keyed_by_subject: int = 0  # of those that were decoded


@dataclass(slots=True)
class ConsentSample:
    """What sampled consent records say, deletions aside."""

    placement: Placement
    records: int = 0
    deletions: int = 0
    unreadable: Examples = field(default_factory=Examples)  # by cause
    without_country: Examples = field(default_factory=Examples)
    without_rule: Counter[str] = field(default_factory=Counter)  # by country
    countries: Counter[str] = field(default_factory=Counter)


def content_taster(
    config: Config, sample: ContentSample, now_ms: int
) -> Callable[[str, int, Any], None]:
    """Takes a record with its place and partition into the sample.

    `now_ms`, epoch milliseconds, is the moment of a decision.
    """
    decode = content_decoder(config.content.fields, config.limits.max_depth)
    limits = config.limits.of_content()
    decide = decide_by_key if config.content.key_is_subject else decide_by_subject

    def see(place: str, partition: int, record: Any) -> None:
        sample.records += 1
        if record.key is not None:
            sample.placement.see(place, partition, record.key)
        if isinstance(record, UnreadableRecord):
            sample.reasons.add(Reason.UNDECODABLE, place)
            return
        reason = decide(record, lambda _: _ANYBODY, decode, limits, now_ms).reason
        if reason is not _ANYBODY.decision.reason:
            sample.reasons.add(reason, place)
        value = record.value or b""
        sample.framed += reason is Reason.UNDECODABLE and value.startswith(_REGISTRY_FRAME)
        event = decode(value) if len(value) <= limits.max_value_bytes else None
        if isinstance(event, ContentEvent):
            sample.decoded += 1
            sample.keyed_by_subject += record.key == event.subject.encode()

    return see


def consent_taster(
    decode: ConsentDecoder, policy: Policy, sample: ConsentSample, now_ms: int
) -> Callable[[str, int, Any], None]:
    """Takes a record with its place and partition into the sample, as judged at `now_ms`."""
    rules = policy.at(now_ms)

    def see(place: str, partition: int, record: Any) -> None:
        sample.records += 1
        if record.key is not None:
            sample.placement.see(place, partition, record.key)
        state, problem = read_state(decode, record)
        if problem is not None:
            sample.unreadable.add(problem, place)
        elif state is None:
            sample.deletions += 1
        else:
            _see_country(sample, state.jurisdiction, place, rules)

    return see


def _see_country(
    sample: ConsentSample, country: str | None, place: str, rules: RulesInForce
) -> None:
    if country is None:
        sample.without_country.add(Reason.JURISDICTION_UNKNOWN, place)
        return
    sample.countries[country] += 1
    if rules.find(country) is None:
        sample.without_rule[country] += 1
