"""What is answered: the figures of all partitions as of one position, as JSON and as CSV."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import msgspec

from consentgate.core.histogram import nearest_rank
from consentgate.core.model import Reason, Verdict
from consentgate.core.policy import EVERYWHERE_ELSE, Policy, Rule, utc_text
from consentgate.core.timeline import courses
from consentgate.report.figures import (
    SIZES_MS,
    TIME_MS_END,
    Counted,
    Head,
    Key,
    LedgerHead,
    LedgerWindow,
    Link,
    Outcomes,
    RetractionHead,
    RetractionWindow,
    Size,
    Withdrawals,
    add_outcomes,
    is_expired,
)

WINDOWS_MAX = 1_500
"""How many windows one answer spans at the most: all minutes of a day, and some."""

CSV_COLUMNS = (
    "row",
    "window_start",
    "jurisdiction",
    "reason",
    "verdict",
    "policy",
    "count",
    "input_partition",
    "ledger_offset",
    "ledger_time",
    "ledger_hash",
)
"""A row is a `position` in the ledger, or an `outcome`; what does not belong to it is empty."""

_Head = TypeVar("_Head", bound=Head)
_Window = TypeVar("_Window", bound=Counted)

_REASONS = {str(reason): reason for reason in Reason}


class BadRange(ValueError):
    """A time or a size that nobody can answer for; the message is for the one who asked."""


class Held(Generic[_Head, _Window]):
    """What a table has told so far, whoever has written it.

    A partition's windows count as told when the head has come that belongs to them, so that windows
    and totals are of the same position. A worker that stood still may write what is older than what
    is there already: the value that has counted more is kept.
    """

    def __init__(self, head: type[_Head], window: type[_Window]) -> None:
        self._head_type = head
        self._window_type = window
        self.heads: dict[int, _Head] = {}
        self._windows: dict[Key, _Window] = {}
        self._untold: list[tuple[Key, _Window | None]] = []

    def apply(self, encoded_key: bytes, value: bytes | None) -> None:
        """Take in a record of the table's changelog."""
        key = Key.decode(encoded_key)
        if key.size is not None:
            window = None if value is None else msgspec.json.decode(value, type=self._window_type)
            self._untold.append((key, window))
        elif value is not None:
            head = msgspec.json.decode(value, type=self._head_type)
            if key.partition not in self.heads or head.at >= self.heads[key.partition].at:
                self.heads[key.partition] = head
                self._tell(key.partition, head.at)

    def windows(self, size: Size, begin_ms: range) -> dict[int, list[_Window]]:
        """The windows of one size that are kept and begin in this range, by their beginnings."""
        found: dict[int, list[_Window]] = defaultdict(list)
        newest_ms = self.newest_ms
        for key, window in self._windows.items():
            wanted = key.size == size and key.start_ms in begin_ms
            if wanted and not is_expired(key, newest_ms):
                found[key.start_ms].append(window)
        return found

    @property
    def newest_ms(self) -> int:
        """The time of the newest record, epoch milliseconds; 0 where there is none."""
        return max((head.newest_ms for head in self.heads.values()), default=0)

    def _tell(self, partition: int, at: int) -> None:
        arrived, self._untold = self._untold, []
        for key, window in arrived:
            if key.partition != partition or (window is not None and window.at > at):
                self._untold.append((key, window))
            elif window is None:
                self._windows.pop(key, None)
            elif key not in self._windows or window.at >= self._windows[key].at:
                self._windows[key] = window


@dataclass(frozen=True, slots=True)
class ConfiguredPolicy:
    """The policy that is configured; its hash is None where this machine cannot know it."""

    policy: Policy
    hash: str | None  # the first 12 hex digits

    @property
    def reference(self) -> str | None:
        """As ledger entries name it."""
        return None if self.hash is None else f"{self.policy.name}@{self.hash}"


class Answers:
    """The figures, and how they are told."""

    def __init__(self, configured: ConfiguredPolicy, topics: Sequence[str]) -> None:
        """`topics`: the changelogs of the two tables, of the ledger and of the retractions."""
        self.are_read = False
        """Whether all that was there at the start has been taken in."""
        self.heard_ms = 0
        """When Kafka last said that there is no more, or what there is; epoch milliseconds."""
        self._configured = configured
        self._ledger = Held(LedgerHead, LedgerWindow)
        self._retractions = Held(RetractionHead, RetractionWindow)
        self._held: Mapping[str, Held[Any, Any]] = dict(
            zip(topics, (self._ledger, self._retractions), strict=True)
        )

    def apply(self, topic: str, key: bytes, value: bytes | None) -> None:
        """Take in a record of one of the changelogs."""
        self._held[topic].apply(key, value)

    def totals(self, now_ms: int) -> dict[str, Any]:
        """Everything since the beginning."""
        outcomes: Outcomes = {}
        withdrawals = Withdrawals()
        for head in self._ledger.heads.values():
            add_outcomes(outcomes, head.outcomes)
        for retracted in self._retractions.heads.values():
            withdrawals.add(retracted.withdrawals)
        rows = _rows(outcomes)
        by_verdict = dict.fromkeys(Verdict, 0)
        for row in rows:
            by_verdict[row["verdict"]] += row["count"]
        return {
            "generated_at_ms": now_ms,
            "through": self._through(),
            "retractions_through": self._retractions_through(),
            "totals": {
                "in": sum(by_verdict.values()),
                "forwarded": by_verdict[Verdict.FORWARD],
                "withheld": by_verdict[Verdict.WITHHOLD],
                "quarantined": by_verdict[Verdict.QUARANTINE],
            },
            "outcomes": rows,
            "withdrawals": _withdrawals_json(withdrawals),
            "chain": self._chain(),
            "policies": self._policies(),
        }

    def windows(self, size: Size, from_ms: int | None, until_ms: int | None) -> dict[str, Any]:
        """The windows that begin from `from_ms` to before `until_ms`, those with something in them.

        Without a time: as far as one answer reaches, to the newest.

        Raises:
            BadRange: if one answer does not reach so far.
        """
        length_ms = SIZES_MS[size]
        newest_ms = max(self._ledger.newest_ms, self._retractions.newest_ms)
        if until_ms is None:
            after_the_newest_ms = newest_ms - newest_ms % length_ms + length_ms
            reach_ms = WINDOWS_MAX * length_ms
            until_ms = after_the_newest_ms if from_ms is None else from_ms + reach_ms
        if from_ms is None:
            from_ms = max(0, until_ms - WINDOWS_MAX * length_ms)
        if from_ms > until_ms:
            raise BadRange("from_ms must not be after until_ms")
        if until_ms - from_ms > WINDOWS_MAX * length_ms:
            raise BadRange(
                f"from_ms and until_ms may be {WINDOWS_MAX:,} windows apart at the most, which is "
                f"{_in_words(WINDOWS_MAX * length_ms)}; ask in parts, or for larger windows"
            )
        return {
            "size_ms": length_ms,
            "through": self._through(),
            "retractions_through": self._retractions_through(),
            "windows": [
                {
                    "start_ms": start_ms,
                    "outcomes": _rows(outcomes),
                    "withdrawals": _withdrawals_json(withdrawals),
                }
                for start_ms, outcomes, withdrawals in self._merged(size, range(from_ms, until_ms))
            ],
        }

    def outcomes_csv(self, size: Size) -> str:
        """All windows of a size that are kept, after the positions up to which they count."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(CSV_COLUMNS)
        for position in self._through():
            time = utc_text(position["ledger_time_ms"])
            place = [position["partition"], position["ledger_offset"], time, position["hash"]]
            rows.writerow(["position", *[""] * 6, *place])
        for start_ms, outcomes, _ in self._merged(size, range(TIME_MS_END)):
            for row in _rows(outcomes):
                told = [row[name] for name in ("jurisdiction", "reason", "verdict", "policy")]
                cells = [utc_text(start_ms), *map(_no_formula, told), row["count"]]
                rows.writerow(["outcome", *cells, *[""] * 4])
        return text.getvalue()

    def _links(self) -> list[tuple[int, Link]]:
        """The last entry of each chain, by its input partition."""
        heads = self._ledger.heads.values()
        return sorted({p: link for head in heads for p, link in head.links.items()}.items())

    def _through(self) -> list[dict[str, Any]]:
        return [
            {
                "partition": partition,
                "ledger_offset": link.at,
                "ledger_time_ms": link.time_ms,
                "hash": link.hash,
            }
            for partition, link in self._links()
        ]

    def _retractions_through(self) -> list[dict[str, Any]]:
        """Withdrawals are counted from another topic than outcomes, which is read on its own."""
        heads = sorted(self._retractions.heads.items())
        return [{"partition": partition, "offset": head.at} for partition, head in heads]

    def _chain(self) -> dict[str, Any]:
        links = self._links()
        heads = [head for _, head in sorted(self._ledger.heads.items())]
        problems = [problem for head in heads for problem in head.problems]
        more = sum(head.problem_count for head in heads) - len(problems)
        if more:
            problems.append(f"and {more:,} more")
        begun_late = [
            f"input partition {partition}: the ledger does not reach back to its first entry"
            for partition, link in links
            if not link.from_the_beginning
        ]
        whole = "verified" if links and not begun_late else "unknown"
        return {
            "state": "broken" if problems else whole,
            "entries": sum(link.entries for _, link in links),
            "problems": [*problems, *begun_late],
        }

    def _policies(self) -> list[dict[str, Any]]:
        seen: dict[str, int] = {}
        for head in self._ledger.heads.values():
            for reference, time_ms in head.policies.items():
                seen[reference] = min(time_ms, seen.get(reference, time_ms))
        configured = self._configured
        changes = policy_changes(configured.policy)
        listed = [
            {
                "hash": reference.rpartition("@")[2],
                "name": reference.rpartition("@")[0],
                "first_seen_ms": time_ms,
                "timeline": changes if reference == configured.reference else [],
            }
            for reference, time_ms in sorted(seen.items(), key=lambda each: each[1])
        ]
        if configured.reference not in seen:
            name = configured.policy.name
            listed.append(
                {"hash": configured.hash, "name": name, "first_seen_ms": None, "timeline": changes}
            )
        return listed

    def _merged(self, size: Size, begin_ms: range) -> Iterator[tuple[int, Outcomes, Withdrawals]]:
        """Each window in a range with what all partitions have counted in it, in order of time."""
        decided = self._ledger.windows(size, begin_ms)
        retracted = self._retractions.windows(size, begin_ms)
        for start_ms in sorted({*decided, *retracted}):
            outcomes: Outcomes = {}
            withdrawals = Withdrawals()
            for window in decided.get(start_ms, ()):
                add_outcomes(outcomes, window.outcomes)
            for other in retracted.get(start_ms, ()):
                withdrawals.add(other.withdrawals)
            yield start_ms, outcomes, withdrawals


def policy_changes(policy: Policy) -> list[dict[str, Any]]:
    """Each moment at which another basis begins somewhere, in the order of time."""
    changes = [
        {
            "at_ms": after.from_ms,
            "jurisdiction": label,
            "label": "everywhere else" if label == EVERYWHERE_ELSE else label,
            "basis_before": _basis(before.rule),
            "basis_after": _basis(after.rule),
        }
        for course in courses(policy)
        for before, after in pairwise(course.stretches)
        for label in course.labels
    ]
    return sorted(changes, key=lambda each: (each["at_ms"], each["jurisdiction"]))


def _basis(rule: Rule | None) -> str | None:
    return None if rule is None else str(rule.basis)


def _rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    return [
        {
            "jurisdiction": label,
            "reason": reason,
            "verdict": _REASONS[reason].verdict,
            "policy": policy,
            "count": number,
        }
        for policy, by_label in sorted(outcomes.items())
        for label, by_reason in sorted(by_label.items())
        for reason, number in sorted(by_reason.items())
    ]


def _withdrawals_json(withdrawals: Withdrawals) -> dict[str, Any]:
    longest_ms = withdrawals.max_ms

    def percentile(percent: int) -> int | None:
        ranked = nearest_rank(withdrawals.effects_ms, percent)
        return None if ranked is None or longest_ms is None else min(ranked, longest_ms)

    return {
        "count": withdrawals.count,
        "effect_ms": {"p50": percentile(50), "p95": percentile(95), "max": longest_ms},
        "retracted_records": withdrawals.records,
    }


def _in_words(span_ms: int) -> str:
    hours = span_ms / SIZES_MS["hour"]
    return f"{hours:,g} hours" if hours < 48 else f"{hours / 24:,g} days"


def _no_formula(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; labels are what a policy's author wrote."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
