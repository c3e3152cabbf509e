"""The verifier: one chain of the ledger against the records that it speaks of.

It feeds the gate again with what the ledger says the gate saw - the offsets, the frontier, the
policy, the moment - and compares everything that comes out with what the topics hold. It shares
the decision with the enforcer, and nothing that makes the enforcer's transactions.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.gate import SOURCE_HEADER, Batch, BatchOutcome, Gate, Output
from consentgate.core.ledger import GENESIS, LedgerRecord, entry_hash, read_codes
from consentgate.core.model import Decision, Reason, Verdict

PROPERTIES = {
    "S1": "pinned: decided again at the recorded frontier, policy and moment",
    "S2": "fresh: nothing appended after its owner's withdrawal was forwarded",
    "S3": "deny by default: every forwarded record was permitted",
    "S4": "fence: frontiers never go back",
    "S5": "bounded exposure: records committed between a withdrawal and its effect",
    "S6": "compensated: every covered change that leaves somebody ineligible is retracted",
    "S7": "complete: every offset has one outcome, and every outcome its record",
}

FINDINGS_MAX = 100
"""How many findings are listed for each property; all are counted."""

EXPOSURE_WINDOW_MS = 120_000
"""How long forwarded records are remembered to see whether a withdrawal came in before them."""

CLOCK_SKEW_MS = 1_000

PRODUCERS_TIMES = (
    "record times are the producers', since a topic has not message.timestamp.type=LogAppendTime"
)
"""Why something about the times of content or of consent could not be checked."""

BROKER_TIME = 1
"""The timestamp type of records whose time the broker has set."""

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(slots=True)
class Tally:
    """What was looked at for one property, and what came of it."""

    checked: int = 0
    violations: int = 0
    findings: list[str] = field(default_factory=list)
    unchecked: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(tallies: Sequence["Tally"]) -> "Tally":
        """The sum of some tallies."""
        return Tally(
            sum(tally.checked for tally in tallies),
            sum(tally.violations for tally in tallies),
            [finding for tally in tallies for finding in tally.findings][:FINDINGS_MAX],
            sum((tally.unchecked for tally in tallies), Counter()),
        )

    def violation(self, place: str, message: str) -> None:
        """Something is wrong at this place (topic-partition@offset)."""
        self.violations += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(f"{place}: {message}")


@dataclass(slots=True)
class Figures:
    """What the chains come to; the transparency report must say the same."""

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Number of records by jurisdiction label, reason and policy, as in the ledger."""
    effects_ms: Counter[int] = field(default_factory=Counter)
    """How often a change that was retracted took so long to be covered by a decision, once for each
    input partition. Only of policies that were given."""
    retractions: int = 0
    """Records that retract these changes."""

    def add(self, other: "Figures") -> None:
        """Count what another one has counted."""
        self.outcomes.update(other.outcomes)
        self.effects_ms.update(other.effects_ms)
        self.retractions += other.retractions


@dataclass(slots=True)
class Verification:
    """The tallies of all properties over all chains."""

    tallies: dict[str, Tally] = field(
        default_factory=lambda: {name: Tally() for name in PROPERTIES}
    )
    figures: Figures = field(default_factory=Figures)
    exposed_records_min: int = 0
    exposed_records_max: int = 0
    exposure_ms_max: int = 0
    """Exposed are records committed after their owner's withdrawal was appended. Nobody but the
    broker knows when a commit came; it lies between the append of its ledger entry and that of the
    next one."""

    @property
    def violations(self) -> int:
        """Over all properties."""
        return sum(tally.violations for tally in self.tallies.values())

    @property
    def unchecked(self) -> int:
        """Over all properties."""
        return sum(tally.unchecked.total() for tally in self.tallies.values())

    @staticmethod
    def of(chains: Sequence["Verification"]) -> "Verification":
        """What the verifications of some chains come to, findings in the order of the chains."""
        figures = Figures()
        for chain in chains:
            figures.add(chain.figures)
        return Verification(
            {name: Tally.of([chain.tallies[name] for chain in chains]) for name in PROPERTIES},
            figures,
            sum(chain.exposed_records_min for chain in chains),
            sum(chain.exposed_records_max for chain in chains),
            max((chain.exposure_ms_max for chain in chains), default=0),
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """A record and where it stands."""

    place: str  # topic-partition@offset
    record: Any
    source_offset: int | None = None  # of the content record that an output came of


@dataclass(frozen=True, slots=True)
class Slice:
    """What the topics hold of one ledger entry's offsets."""

    content: Batch | None  # None where it has expired
    training: Sequence[Placed]
    quarantine: Sequence[Placed]
    retractions: Sequence[Placed]  # those of the chain with the entry's first offset as `before`


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A decision that comes out differently, which compaction of the consent topic may explain."""

    place: str
    recorded: Reason
    recomputed: Reason


@dataclass(slots=True)
class _Doubts:
    """Those about one subject; the first are kept, all are counted."""

    first: list[_Doubt] = field(default_factory=list)
    number: int = 0
    forwarded: int = 0

    def add(self, doubt: _Doubt) -> None:
        self.number += 1
        self.forwarded += doubt.recorded.verdict is Verdict.FORWARD
        if len(self.first) < FINDINGS_MAX:
            self.first.append(doubt)


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose a record is, and under which forms that subject can have left."""

    subject_of: Callable[[Any], bytes]
    forms_of: Callable[[bytes], Sequence[bytes]]


class ChainVerifier:
    """Checks the entries of one group and input partition, in their order."""

    def __init__(
        self,
        gates: Sequence[Mapping[str, Gate]],
        table: ConsentTable,
        verification: Verification,
        is_signed: Callable[[LedgerRecord], bool] | None,
        owners: Owners,
    ) -> None:
        # Content may have been read otherwise before, so there are gates for each reading.
        self._gates, *self._earlier = gates
        self._subject_of = owners.subject_of
        self._forms_of = owners.forms_of
        self._is_signed = is_signed
        self._table = table
        self._tallies = verification.tallies
        self._verification = verification
        self._previous: LedgerRecord | None = None
        self._changes: list[ConsentChange] = []
        self._next_consent: dict[int, int] = {}
        self._compacted: set[int] = set()
        self._doubts: dict[bytes, _Doubts] = {}
        self._latest: dict[bytes, tuple[int, str, bool]] = {}
        self._owners: list[bytes] = []  # of what the last entry forwarded
        self._recent: deque[tuple[int, Counter[bytes]]] = deque()
        self._exposed_since_ms: list[int] = []
        self._expired: set[Verdict] = set()
        self._pseudonymized = False  # by a policy of the entries so far
        self._policy_was_missing = False

    def expired(self, verdict: Verdict) -> None:
        """The topic of these outcomes does not begin at its first offset any more."""
        self._expired.add(verdict)

    def consent(self, change: ConsentChange, place: str, *, broker_time: bool) -> None:
        """Take in a consent record that was applied to the table."""
        expected = self._next_consent.get(change.partition, 0)
        if change.offset > expected:
            self._compacted.add(change.partition)
            if self._previous is not None:
                why = "consent offsets that hold no record: compacted, or a marker"
                self._tallies["S6"].unchecked[why] += change.offset - expected
        self._next_consent[change.partition] = change.offset + 1
        if self._previous is not None:  # Before that there is nothing to retract.
            self._changes.append(change)
        if change.partition in self._compacted and (
            doubts := self._doubts.pop(change.subject, None)
        ):
            # A later record of the subject may have compacted an earlier one away.
            self._tallies["S1"].unchecked["consent history is compacted"] += doubts.number
        if self._leaves_ineligible(change):
            self._check_fresh(change, place, broker_time=broker_time)
            self._measure_exposure(change, broker_time=broker_time)

    def entry(self, place: str, value: bytes, record: LedgerRecord, slice_: Slice) -> None:
        """Check one ledger entry; the table stands at its frontier, exactly."""
        self._check_chain(place, value, record)
        if not _adds_up(record):
            why = "the entry's counts are not those of its outcomes, or its offsets"
            self._tallies["S7"].violation(place, why)
        for label, by_reason in record.counts.items():
            for reason, number in by_reason.items():
                self._verification.figures.outcomes[label, reason, record.policy] += number
        self._owners = self._find_owners(slice_)
        gate = self._gates.get(record.policy)
        if gate is None or slice_.content is None:
            why = f"no policy given for {record.policy}" if gate is None else "content has expired"
            recorded = _outcomes(record)
            for name in ("S1", "S3"):
                self._tallies[name].unchecked[why] += len(recorded)
            self._check_presence(recorded, slice_)
            self._check_changes(place, record, gate, slice_)
        else:
            self._check_outcome(place, record, gate, slice_)
        self._previous = record
        self._changes.clear()

    def committed(self, appended_ms: int) -> None:
        """The last entry was appended at this time; remember whose records came with it."""
        for since_ms in self._exposed_since_ms:
            self._verification.exposure_ms_max = max(
                self._verification.exposure_ms_max, appended_ms - since_ms
            )
        self._exposed_since_ms.clear()
        self._recent.append((appended_ms, Counter(self._owners)))
        while self._recent and self._recent[0][0] < appended_ms - EXPOSURE_WINDOW_MS:
            self._recent.popleft()

    def finish(self) -> None:
        """The topics are at their end; what could not be explained by now is wrong."""
        for subject, doubts in self._doubts.items():
            if self._compacted and subject not in self._table.holdings:
                self._tallies["S1"].unchecked["consent history is compacted"] += doubts.number
            else:
                self._contradict(doubts)
        self._doubts.clear()

    def unreadable(self, place: str) -> None:
        """A record under the chain's key that is no ledger entry."""
        self._tallies["S7"].violation(place, "there should be a ledger entry, but it is unreadable")

    def surplus(self, place: str, what: str) -> None:
        """An output that no ledger entry accounts for."""
        self._tallies["S7"].violation(place, f"{what}, but no ledger entry accounts for it")

    def foreign(self) -> None:
        """An output that names another content topic as its source."""
        self._tallies["S7"].unchecked["outputs that name another content topic"] += 1

    def skipped(self, records: int) -> None:
        """So many content records that are still there lie before the first ledger entry."""
        if records:
            self._tallies["S7"].unchecked["content before the first ledger entry"] += records

    def _find_owners(self, slice_: Slice) -> list[bytes]:
        """Whose each forwarded record is: by its source, or by itself where that has expired."""
        content = slice_.content.records if slice_.content is not None else ()
        sources: dict[int | None, Any] = {record.offset: record for record in content}
        return [
            self._subject_of(sources.get(placed.source_offset, placed.record))
            for placed in slice_.training
        ]

    def _check_chain(self, place: str, value: bytes, record: LedgerRecord) -> None:
        tally, previous = self._tallies["S7"], self._previous
        tally.checked += max(0, record.source.last - record.source.first + 1)
        if entry_hash(orjson.loads(value)) != record.hash:
            tally.violation(place, "the ledger entry was changed: its hash is not its content's")
        if self._is_signed is not None and not self._is_signed(record):
            tally.violation(place, "the ledger entry is not signed with the key given")
        if self._is_signed is None and record.signature is not None:
            tally.unchecked["no public key given for the signatures"] += 1
        if previous is None:
            if record.previous != GENESIS:
                tally.unchecked["the ledger does not reach back to its first entry"] += 1
            return
        if record.previous != previous.hash:
            tally.violation(place, "the ledger entry does not follow the one before: other hash")
        if record.source.first != previous.source.last + 1:
            tally.violation(
                place,
                f"offsets {previous.source.last + 1} to {record.source.first - 1} have no outcome",
            )
        self._tallies["S4"].checked += 1
        for partition, frontier in previous.consent.items():
            if record.consent.get(partition, -1) < frontier:
                self._tallies["S4"].violation(
                    place, f"the frontier of consent partition {partition} goes back"
                )

    def _check_outcome(self, place: str, record: LedgerRecord, gate: Gate, slice_: Slice) -> None:
        assert slice_.content is not None, "expired content is not decided again"
        outcome = self._judged(record, gate, slice_.content)
        self._check_retractions(place, gate, outcome, slice_)
        recorded = _outcomes(record)
        recomputed = {
            r.offset: made
            for r, made in zip(slice_.content.records, outcome.decisions, strict=False)
        }
        for offset in slice_.content.unreadable:
            recomputed[offset] = outcome.decisions[-1]
        self._tallies["S1"].checked += len(recomputed)
        if outcome.entry.hash != record.hash:
            self._compare(place, record, recorded, recomputed, slice_.content)
        self._check_outputs(recorded, recomputed, outcome, slice_)

    def _judged(self, record: LedgerRecord, gate: Gate, content: Batch) -> BatchOutcome:
        """What the batch comes to: as content was read when that gives the entry, else as now."""
        outcome = gate.judge(content, record.previous, record.decided_at, self._changes)
        for gates in self._earlier:
            if outcome.entry.hash == record.hash:
                break
            before = gates[record.policy].judge(
                content, record.previous, record.decided_at, self._changes
            )
            if before.entry.hash == record.hash:
                return before
        return outcome

    def _compare(
        self,
        place: str,
        record: LedgerRecord,
        recorded: Mapping[int, Reason],
        recomputed: Mapping[int, Decision],
        content: Batch,
    ) -> None:
        """Find what differs between the recorded entry and the recomputed one."""
        source = f"{record.source.topic}-{record.source.partition}"
        subjects = {r.offset: self._subject_of(r) for r in content.records}
        same = True
        for offset in sorted(recorded.keys() | recomputed.keys()):
            was, made = recorded.get(offset), recomputed.get(offset)
            if was is None or made is None:
                same = False
                what = "has no outcome" if was is None else f"is {was}, but there is no record"
                self._tallies["S7"].violation(f"{source}@{offset}", what)
            elif was is not made.reason:
                same = False
                doubts = self._doubts.setdefault(subjects.get(offset, b""), _Doubts())
                doubts.add(_Doubt(f"{source}@{offset}", was, made.reason))
        if same:
            self._tallies["S1"].violation(place, "the entry differs from the one recomputed")

    def _check_outputs(
        self,
        recorded: Mapping[int, Reason],
        recomputed: Mapping[int, Decision],
        outcome: BatchOutcome,
        slice_: Slice,
    ) -> None:
        for what, expected, found, verdict in (
            ("forwarded", outcome.training, slice_.training, Verdict.FORWARD),
            ("quarantined", outcome.quarantine, slice_.quarantine, Verdict.QUARANTINE),
        ):
            self._check_places(what, recorded, found, verdict)
            offsets = (
                offset for offset, made in recomputed.items() if made.reason.verdict is verdict
            )
            wanted: dict[int | None, Output] = dict(zip(offsets, expected, strict=True))
            for placed in found:
                output = wanted.get(placed.source_offset)
                if output is not None and not _same(output, placed.record):
                    self._tallies["S1"].violation(
                        placed.place, "the record is not the one that was decided"
                    )
        assert slice_.content is not None, "expired content is not decided again"
        by_broker = {
            r.offset
            for r in slice_.content.records
            if getattr(r, "timestamp_type", 0) == BROKER_TIME
        }
        for placed, owner in zip(slice_.training, self._owners, strict=True):
            self._latest_of(placed, owner, broker_time=placed.source_offset in by_broker)
        self._tallies["S3"].checked += len(slice_.training)

    def _check_presence(self, recorded: Mapping[int, Reason], slice_: Slice) -> None:
        self._check_places("forwarded", recorded, slice_.training, Verdict.FORWARD)
        self._check_places("quarantined", recorded, slice_.quarantine, Verdict.QUARANTINE)

    def _check_changes(
        self, place: str, record: LedgerRecord, gate: Gate | None, slice_: Slice
    ) -> None:
        """What is to be retracted follows from the changes alone, without any content."""
        if gate is not None:
            nothing = Batch(record.source.first, record.source.last + 1, ())
            outcome = gate.judge(nothing, record.previous, record.decided_at, self._changes)
            self._check_retractions(place, gate, outcome, slice_)
            return
        self._policy_was_missing = True
        if self._changes:
            why = f"no policy given for {record.policy}"
            self._tallies["S6"].unchecked[why] += len(self._changes)

    def _check_places(
        self, what: str, recorded: Mapping[int, Reason], found: Sequence[Placed], verdict: Verdict
    ) -> None:
        """Each outcome has its one record, and each record its outcome."""
        tally = self._tallies["S7"]
        wanted = {offset for offset, reason in recorded.items() if reason.verdict is verdict}
        places = sorted(p.source_offset for p in found if p.source_offset is not None)
        seen: set[int | None] = set()
        for placed in found:
            offset = placed.source_offset
            if offset in seen:
                tally.violation(placed.place, f"source offset {offset} is {what} twice")
            elif offset not in wanted:
                tally.violation(placed.place, f"{what}, but the ledger says otherwise")
            seen.add(offset)
        for offset in sorted(wanted - seen):
            if verdict in self._expired and (not places or offset < places[0]):
                tally.unchecked[f"{what} records have expired"] += 1
            else:
                tally.violation(f"source offset {offset}", f"{what}, but the record is not there")
        if places:
            # Retention removes the oldest first: what comes after the first one left is there.
            self._expired.discard(verdict)

    def _check_retractions(
        self, place: str, gate: Gate, outcome: BatchOutcome, slice_: Slice
    ) -> None:
        tally = self._tallies["S6"]
        self._pseudonymized |= any(rule.pseudonymize for rule in gate.policy.rules)
        found = dict(_retraction(placed.record) for placed in slice_.retractions)
        # Somebody's records in several partitions can have come in another order.
        scattered = len(outcome.frontier) > 1
        figures = self._verification.figures
        for change in outcome.retracted:
            figures.effects_ms[max(0, outcome.decided_at_ms - change.timestamp_ms)] += 1
        others = {key for _, key in found if scattered}
        plain = {change.subject for change in outcome.retracted}
        for retraction in outcome.retractions:
            (wanted, _), times = _retraction(retraction)
            if (wanted, retraction.key) in found or retraction.key in others:
                tally.checked += 1
                figures.retractions += 1
                told = found.get((wanted, retraction.key), times)
                if None in told:
                    tally.unchecked["a retraction does not say when the change came"] += 1
                elif told != times:
                    why = f"the change at {wanted} is retracted, but with other times"
                    tally.violation(place, why)
            elif retraction.key in plain or self._pseudonymized:
                tally.checked += 1
                tally.violation(place, f"the change at {wanted} is covered, but not retracted")
            elif self._policy_was_missing:
                # A key may have been added since: the hash of a policy without pseudonyms names
                # none. Where every policy so far is such a one, nothing left under a pseudonym.
                tally.unchecked["a subject may have left under a pseudonym"] += 1

    def _leaves_ineligible(self, change: ConsentChange) -> bool:
        if self._previous is None:
            return False
        gate = self._gates.get(self._previous.policy)
        if gate is None:
            for name in ("S2", "S5"):
                self._tallies[name].unchecked[f"no policy given for {self._previous.policy}"] += 1
            return False
        return bool(gate.ineligible([change], change.timestamp_ms))

    def _check_fresh(self, change: ConsentChange, place: str, *, broker_time: bool) -> None:
        tally = self._tallies["S2"]
        latest = self._latest.get(change.subject)
        if latest is None:
            return
        appended_ms, content_place, content_broker_time = latest
        if not (broker_time and content_broker_time):
            tally.unchecked[PRODUCERS_TIMES] += 1
            return
        tally.checked += 1
        if appended_ms > change.timestamp_ms + CLOCK_SKEW_MS:
            tally.violation(content_place, f"appended after the withdrawal at {place}, forwarded")

    def _measure_exposure(self, change: ConsentChange, *, broker_time: bool) -> None:
        verification = self._verification
        if not broker_time:
            self._tallies["S5"].unchecked[PRODUCERS_TIMES] += 1
            return
        self._tallies["S5"].checked += 1
        before = verification.exposed_records_max
        forms = self._forms_of(change.subject)
        for appended_ms, subjects in reversed(self._recent):
            # Once, however often somebody changes.
            records = sum(subjects.pop(form, 0) for form in forms)
            verification.exposed_records_max += records
            if appended_ms <= change.timestamp_ms:
                # Its transaction may have ended before the change, or after it; no other one.
                break
            verification.exposed_records_min += records
        if verification.exposed_records_max > before:
            self._exposed_since_ms.append(change.timestamp_ms)

    def _latest_of(self, placed: Placed, owner: bytes, *, broker_time: bool) -> None:
        time_ms = placed.record.timestamp
        if owner not in self._latest or self._latest[owner][0] < time_ms:
            self._latest[owner] = (time_ms, placed.place, broker_time)

    def _contradict(self, doubts: _Doubts) -> None:
        decided, permitted = self._tallies["S1"], self._tallies["S3"]
        for doubt in doubts.first:
            message = f"is {doubt.recorded}, but comes out as {doubt.recomputed}"
            decided.violation(doubt.place, message)
            if doubt.recorded.verdict is Verdict.FORWARD:
                permitted.violation(doubt.place, "forwarded without permission")
        decided.violations += doubts.number - len(doubts.first)
        listed = sum(doubt.recorded.verdict is Verdict.FORWARD for doubt in doubts.first)
        permitted.violations += doubts.forwarded - listed


def _outcomes(record: LedgerRecord) -> dict[int, Reason]:
    """The recorded reason of each offset that holds a record."""
    codes = enumerate(read_codes(record.outcomes), start=record.source.first)
    return {offset: reason for offset, reason in codes if reason is not None}


def _adds_up(record: LedgerRecord) -> bool:
    """Whether there is one code for each offset, and whether each outcome is counted."""
    counts: Counter[str] = Counter()
    for by_reason in record.counts.values():
        counts.update(by_reason)
    codes = read_codes(record.outcomes)
    offsets = record.source.last - record.source.first + 1
    return len(codes) == offsets and counts == Counter(map(str, filter(None, codes)))


def source_of(headers: Headers, verdict: Verdict) -> bytes:
    """Where an output of this verdict came from, as topic-partition@offset.

    It may have come with headers of the other kind, or of the same, from elsewhere.
    """
    source = _training_source if verdict is Verdict.FORWARD else _quarantine_source
    return source(headers)


def _training_source(headers: Headers) -> bytes:
    # The last one: the enforcer adds it behind what came.
    return next((value or b"" for name, value in reversed(headers) if name == SOURCE_HEADER), b"")


def _quarantine_source(headers: Headers) -> bytes:
    by_name = dict(headers)
    topic, partition, offset = (
        by_name.get(f"__connect.errors.{name}") or b"" for name in ("topic", "partition", "offset")
    )
    return topic + b"-" + partition + b"@" + offset


def _retraction(record: Any) -> tuple[tuple[str, bytes | None], tuple[Any, Any]]:
    """Which change is retracted and of whom; when that change came, and when it was covered.

    Of nobody where key and value name different ones; None for a time that is not told.
    """
    body, key = orjson.loads(record.value or b"{}"), record.key or b""
    is_of_key = body.get("subject") == key.decode(errors="replace")
    what = str(body.get("consent")), key if is_of_key else None
    return what, (body.get("changed_at"), body.get("at"))


def _same(output: Output, record: Any) -> bool:
    return (
        output.key == record.key
        and output.value == record.value
        and list(output.headers) == list(record.headers)
        and output.timestamp_ms == record.timestamp
    )
