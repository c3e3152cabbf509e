"""What samples come to: whose partitioner it was, which records can be read, which rules lack."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.config import Config
from consentgate.core.decode import ConsentFields, consent_decoder
from consentgate.core.model import Reason
from consentgate.core.policyfile import parse_policy
from consentgate.kafka.murmur2 import home_partition
from consentgate.tools.findings import (
    Finding,
    Severity,
    consent_formats,
    content_formats,
    coverage,
    finding_lines,
    keys,
    placed,
)
from consentgate.tools.sampling import (
    ConsentSample,
    ContentSample,
    Placement,
    consent_taster,
    content_taster,
    fnv1a_partition,
)

NOW_MS = 1_726_826_400_000
KEYS = [f"member-{number}".encode() for number in range(200)]


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW_MS
    offset: int = 0
    headers: tuple[tuple[str, bytes | None], ...] = ()


def placement(partition_of: Callable[[bytes, int], int], partitions: int = 6) -> Placement:
    """The keys as a partitioner puts them."""
    found = Placement(partitions)
    for offset, key in enumerate(KEYS):
        found.see(f"topic@{offset}", partition_of(key, partitions), key)
    return found


def by_crc32(key: bytes, partitions: int) -> int:
    return zlib.crc32(key) % partitions


def test_the_hashes_of_others_are_theirs() -> None:
    # The published test vectors of CRC-32 and FNV-1a: cbf43926, e40c292c (negative) and bf9cf968.
    assert by_crc32(b"123456789", 1000) == 0xCBF43926 % 1000
    assert fnv1a_partition(b"a", 1000) == ((1 << 32) - 0xE40C292C) % 1000
    assert fnv1a_partition(b"foobar", 1000) == ((1 << 32) - 0xBF9CF968) % 1000


def test_keys_where_murmur2_puts_them_are_fine() -> None:
    found = placement(home_partition)
    assert (found.keys, found.misplaced) == (len(KEYS), 0)
    (finding,) = placed("topic", found, in_scope=True)
    assert finding.severity is Severity.OK


@pytest.mark.parametrize(
    ("partition_of", "name"), [(by_crc32, "crc32"), (fnv1a_partition, "fnv1a")]
)
def test_another_partitioner_is_told_by_its_keys(
    partition_of: Callable[[bytes, int], int], name: str
) -> None:
    found = placement(partition_of)
    assert found.guess() == name
    (finding,) = placed("topic", found, in_scope=True)
    assert finding.severity is Severity.ERROR
    assert f"it is {name}" in finding.what
    assert "partitioner=murmur2_random" in str(finding.do)


def test_a_mixture_is_nobody_s() -> None:
    found = placement(lambda key, n: (by_crc32 if key[-1] % 2 else home_partition)(key, n))
    assert found.guess() is None
    (finding,) = placed("topic", found, in_scope=True)
    assert "neither fits alone" in finding.what
    assert finding.severity is Severity.ERROR


def test_a_few_keys_tell_nobody() -> None:
    found = Placement(6)
    key = next(key for key in KEYS if by_crc32(key, 6) != home_partition(key, 6))
    found.see("topic@0", by_crc32(key, 6), key)
    assert found.guess() is None
    (finding,) = placed("topic", found, in_scope=True)
    assert finding.severity is Severity.ERROR
    assert "0.0 % of 1 key" in finding.what


def test_one_misplaced_key_of_many_is_an_error_and_not_rounded_away() -> None:
    found = placement(lambda key, n: (home_partition(key, n) + (key == KEYS[7])) % n)
    assert (found.misplaced, found.example) == (1, "topic@7")
    (finding,) = placed("topic", found, in_scope=True)
    assert finding.severity is Severity.ERROR
    assert "99.5 % of 200 keys" in finding.what


@given(st.sets(st.binary(max_size=40), min_size=1, max_size=50), st.integers(1, 50))
def test_where_murmur2_puts_keys_nothing_is_ever_misplaced(some: set[bytes], n: int) -> None:
    found = Placement(n)
    for key in some:
        found.see("topic@0", home_partition(key, n), key)
        found.see("topic@1", home_partition(key, n), key)
    assert (found.keys, found.misplaced, found.scattered) == (len(some), 0, 0)


def test_no_key_is_kept() -> None:
    assert not any(key in repr(placement(home_partition)).encode() for key in KEYS)


# Consent.


def consent_of(country: Any, subject: str = "anna") -> Record:
    value = f'{{"subject":"{subject}","jurisdiction":{country},"choices":{{}}}}'
    return Record(subject.encode(), value.encode())


def tasted(policy: str, *records: Record) -> ConsentSample:
    sample = ConsentSample(Placement(1))
    decode = consent_decoder(ConsentFields(), "ai-training", 64)
    see = consent_taster(decode, parse_policy(policy, "p"), sample, NOW_MS)
    for offset, record in enumerate(records):
        see(f"consent-0@{offset}", 0, record)
    return sample


def policy(*rules: str) -> str:
    return f"{{name: some, purpose: ai-training, rules: [{', '.join(rules)}]}}"


US = "{jurisdictions: [US], basis: opt-in}"
GB_LATER = "{jurisdictions: [GB], basis: opt-in, from: 2024-09-21T00:00:00Z}"
ELSEWHERE = "{jurisdictions: ['*'], basis: prohibited}"


def covered(text: str, *records: Record) -> list[Finding]:
    return list(coverage(tasted(text, *records), parse_policy(text, "p")))


def test_a_country_whose_rule_is_not_in_force_yet_has_none() -> None:
    records = [
        *[consent_of('"US"')] * 5,
        consent_of('"GB"'),
        consent_of('"FR"'),
        consent_of('"FR"'),
    ]
    (finding,) = covered(policy(US, GB_LATER), *records)
    assert finding.severity is Severity.WARNING
    assert "some has no rule now for FR 2, GB 1 of 8 sampled" in finding.what


def test_a_prohibition_is_a_rule() -> None:
    (finding,) = covered(policy(US, ELSEWHERE), consent_of('"US"'), consent_of('"FR"'))
    assert finding.severity is Severity.OK


def test_most_countries_without_a_rule_are_an_error() -> None:
    (finding,) = covered(policy(US), consent_of('"FR"'))
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize("country", ["null", '"UK"', '"usa"'])
def test_what_is_no_country_is_counted_apart(country: str) -> None:
    records = [*[consent_of('"US"')] * 3, consent_of(country)]
    (finding,) = covered(policy(US), *records)
    assert "1 of 4" in finding.what
    assert "consent-0@3" in finding.what
    assert finding.severity is Severity.WARNING


def test_deletions_and_unreadable_records_have_no_country() -> None:
    sample = tasted(policy(US), Record(b"anna", None), Record(b"anna", b"{"), consent_of("7"))
    assert (sample.records, sample.deletions, dict(sample.countries)) == (3, 1, {})
    assert sample.unreadable.counts == {"not-json": 1, "wrong-type": 1}
    assert sample.unreadable.first["wrong-type"] == "consent-0@2"
    (finding,) = consent_formats("consent", sample)
    assert "2 of 3" in finding.what


# Content.


def content_of(subject: str, **changes: Any) -> Record:
    value = (
        f'{{"id":"1","subject":"{subject}","kind":"post","visibility":"public",'
        '"created_at":"2024-09-20T10:00:00Z"}'
    )
    return Record(subject.encode(), value.encode())._replace(**changes)


def seen(*records: Record, config: Config | None = None) -> ContentSample:
    sample = ContentSample(Placement(1))
    see = content_taster(config or Config(), sample, NOW_MS)
    for offset, record in enumerate(records):
        see(f"content-0@{offset}", 0, record)
    return sample


def test_each_reason_for_quarantine_is_counted() -> None:
    anna = content_of("anna")
    sample = seen(
        anna,
        anna._replace(value=None),
        anna._replace(value=b"\x00\x00\x00\x00\x01{}"),
        anna._replace(value=b"{"),
        anna._replace(value=b"{}"),
        anna._replace(key=b"ben"),
        anna._replace(key=None),
        anna._replace(timestamp=NOW_MS + 10**9),
        anna._replace(value=b" " * 900_001),
    )
    assert sample.reasons.counts == {
        Reason.TOMBSTONE: 1,
        Reason.UNDECODABLE: 2,
        Reason.MISSING_FIELD: 1,
        Reason.SUBJECT_MISMATCH: 2,
        Reason.BAD_TIMESTAMP: 1,
        Reason.TOO_LARGE: 1,
    }
    assert sample.reasons.first[Reason.UNDECODABLE] == "content-0@2"
    assert (sample.framed, sample.decoded, sample.keyed_by_subject) == (1, 4, 2)
    (finding,) = content_formats("content", sample)
    assert "subject-mismatch" not in finding.what
    assert "6 of 9" in finding.what
    assert "1 begin like those of a schema registry" in str(finding.do)


def test_a_key_that_is_not_the_subject_is_for_the_configuration() -> None:
    sample = seen(content_of("anna"), content_of("ben", key=b"thread"))
    (finding,) = keys(sample, key_is_subject=True)
    assert (finding.severity, "1 of 2" in finding.what) == (Severity.WARNING, True)
    (finding,) = keys(sample, key_is_subject=False)
    assert finding.severity is Severity.OK
    (finding,) = keys(seen(content_of("anna")), key_is_subject=False)
    assert "key_is_subject: true would do" in finding.what


def test_a_finding_is_printed_with_what_to_do_below() -> None:
    finding = Finding(Severity.WARNING, "clock", "it is late", "Wind it")
    assert finding_lines(finding) == ["warning  clock: it is late", "         -> Wind it"]
