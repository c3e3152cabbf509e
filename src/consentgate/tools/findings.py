"""What the doctor finds, in words: how bad it is, what it is, and what to do about it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from consentgate.core.model import Reason
from consentgate.core.policy import Policy
from consentgate.tools.sampling import OTHERS, ConsentSample, ContentSample, Examples, Placement

AGAIN = "Run consentgate doctor again when that is put right"

LISTED_MAX = 8
"""How many names are listed at once."""


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a check came to, and what to do about it."""

    severity: Severity
    check: str
    what: str
    do: str | None = None


# What samples come to.


def placed(topic: str, placement: Placement, *, in_scope: bool) -> Iterator[Finding]:
    """Whether the keys lie where murmur2 puts them; in global scope, whether each lies in one."""
    known = f"{topic}: {count(placement.keys, 'key')} in {placement.partitions} partitions"
    if not placement.keys:
        return
    if not in_scope and placement.scattered:
        yield error(
            "partitioner",
            f"{topic}: {count(placement.scattered, 'key')} of {placement.keys:,} lie in more than "
            "one partition; nobody can say which record is the later one",
            "Let all producers use one partitioner, murmur2 at best, and append these keys anew",
        )
    elif not in_scope or not placement.misplaced:
        fits = "as murmur2 puts them" if not placement.misplaced else "each in one partition"
        yield fine("partitioner", f"{known}, {fits}")
    else:
        right = placement.keys - placement.misplaced
        name = placement.guess()
        verdict = "neither fits alone" if name is None else f"it is {name}"
        shares = ", ".join(
            f"{other} {_percent(placement.by_other[other], placement.keys)}" for other in OTHERS
        )
        yield error(
            "partitioner",
            f"{topic}: {_percent(right, placement.keys)} of {count(placement.keys, 'key')} lie "
            f"where murmur2 puts them ({shares}): content and consent of the others, such as "
            f"{placement.example}, do not meet; {verdict}",
            OTHERS[name][1] + ", then append the records anew in a new topic"
            if name
            else "See which producers write there, and since when it has so many partitions; all "
            "must use murmur2 (librdkafka: partitioner=murmur2_random)",
        )


def consent_formats(topic: str, sample: ConsentSample) -> Iterator[Finding]:
    """Consent records that cannot be read, whose subjects are withheld."""
    unreadable = sample.unreadable.counts.total()
    if unreadable:
        yield Finding(
            _worse_than_half(unreadable, sample.records),
            "consent records",
            f"{topic}: {unreadable:,} of {sample.records:,} sampled cannot be read, and their "
            f"subjects are withheld: {_with_examples(sample.unreadable)}",
            "Compare one with consent.fields and with the format in docs/semantics.md, correct its "
            "producer, and append these records anew",
        )
    elif sample.records:
        yield fine("consent records", f"all of {sample.records:,} sampled can be read")
    else:
        yield fine("consent records", f"{topic} holds none: all content is withheld")


def content_formats(topic: str, sample: ContentSample) -> Iterator[Finding]:
    """Content records that would be quarantined whoever wrote them."""
    # What is wrong with keys is another finding.
    reasons = Examples(
        Counter({r: n for r, n in sample.reasons.counts.items() if r != Reason.SUBJECT_MISMATCH}),
        sample.reasons.first,
    )
    bad = reasons.counts.total()
    if bad:
        framed = (
            f" {sample.framed:,} begin like those of a schema registry: write them as plain JSON."
            if sample.framed
            else ""
        )
        yield Finding(
            _worse_than_half(bad, sample.records),
            "content records",
            f"{topic}: {bad:,} of {sample.records:,} sampled are for quarantine: "
            f"{_with_examples(reasons)}",
            "Ask consentgate explain about one, compare it with content.fields and limits, and "
            f"correct its producer.{framed}",
        )
    elif sample.records:
        yield fine("content records", f"all of {sample.records:,} sampled can be decoded")
    else:
        yield fine("content records", f"{topic} holds none")


def keys(sample: ContentSample, *, key_is_subject: bool) -> Iterator[Finding]:
    """Whether `content.key_is_subject` is what the sampled records say."""
    others = sample.decoded - sample.keyed_by_subject
    if key_is_subject and others:
        place = sample.reasons.first.get(Reason.SUBJECT_MISMATCH, "")
        severity = _worse_than_half(others, sample.decoded)
        yield Finding(
            severity,
            "keys",
            f"content.key_is_subject is true, but {others:,} of {sample.decoded:,} sampled have "
            f"another key than their subject, or none, such as {place}; they are quarantined",
            "Key content by its subject, or set content.key_is_subject: false"
            if severity is Severity.ERROR
            else "Correct the producer of these: the key must be the subject, byte for byte",
        )
    elif not key_is_subject and sample.decoded and not others:
        yield fine(
            "keys",
            "every sampled key is its subject: content.key_is_subject: true would do, with less "
            "work, for a new group",
        )
    elif sample.decoded:
        yield fine("keys", f"content.key_is_subject: {str(key_is_subject).lower()} fits the sample")


def coverage(sample: ConsentSample, policy: Policy) -> Iterator[Finding]:
    """Whether the policy has a rule in force for the countries that were seen."""
    unknown, total = sample.without_country.counts.total(), sample.countries.total()
    if unknown:
        place = next(iter(sample.without_country.first.values()))
        yield Finding(
            _worse_than_half(unknown, total + unknown),
            "jurisdictions",
            f"{unknown:,} of {total + unknown:,} sampled consent records have no country, or none "
            f"by its ISO 3166-1 code (such as {place}): they are withheld as jurisdiction-unknown",
            "Let their producer write two capital letters, GB and not UK, at "
            "consent.fields.jurisdiction",
        )
    if sample.without_rule:
        most = sample.without_rule.most_common()
        shown = [f"{country} {number:,}" for country, number in most]
        yield Finding(
            _worse_than_half(sample.without_rule.total(), total),
            "jurisdictions",
            f"{policy.name} has no rule now for {listed(shown)} of {total:,} sampled consent "
            "records: they are withheld as no-rule",
            f"If that is not meant, add a rule for them or for '*'; consentgate timeline shows "
            f"what {policy.name} says where",
        )
    elif total and not unknown:
        yield fine(
            "jurisdictions",
            f"{policy.name} has a rule now for every country in {total:,} sampled consent records: "
            f"{listed([country for country, _ in sample.countries.most_common()])}",
        )


# For people.


def findings_line(counts: Mapping[Severity, int]) -> str:
    """The last line of what `doctor` prints."""
    return (
        f"{count(counts[Severity.ERROR], 'error')}, {count(counts[Severity.WARNING], 'warning')}, "
        f"{counts[Severity.OK]} ok"
    )


def finding_lines(finding: Finding) -> list[str]:
    """A finding as `doctor` prints it for people."""
    lines = [f"{finding.severity:<8} {finding.check}: {finding.what}"]
    if finding.do is not None:
        lines.append(f"{'':<8} -> {finding.do}")
    return lines


def fine(check: str, what: str) -> Finding:
    """That nothing is wrong."""
    return Finding(Severity.OK, check, what)


def warning(check: str, what: str, do: str) -> Finding:
    """What may be meant, or what could not be checked."""
    return Finding(Severity.WARNING, check, what, do)


def error(check: str, what: str, do: str) -> Finding:
    """What is wrong, or would keep a worker from starting."""
    return Finding(Severity.ERROR, check, what, do)


def _worse_than_half(bad: int, total: int) -> Severity:
    """Some are to be expected; most of them mean that something is set up wrongly."""
    return Severity.ERROR if 2 * bad > total else Severity.WARNING


def _with_examples(seen: Examples) -> str:
    return ", ".join(
        f"{what} {number:,} (such as {seen.first[what]})"
        for what, number in seen.counts.most_common()
    )


def _percent(part: int, whole: int) -> str:
    # Never 100 where one is missing.
    return f"{int(1000 * part / whole) / 10:.1f} %"


def count(number: int, noun: str) -> str:
    """The number with its noun."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Collection[Any]) -> str:
    """The names, the first of them where they are many."""
    shown = ", ".join(str(name) for name in list(names)[:LISTED_MAX])
    left = len(names) - LISTED_MAX
    return f"{shown} and {left} more" if left > 0 else shown
