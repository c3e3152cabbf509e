"""The verifier: what the gate did is passed, and each kind of forgery is found for what it is."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder, subject_reader
from consentgate.core.gate import Batch, Gate, Output
from consentgate.core.ledger import (
    GENESIS,
    Chain,
    LedgerRecord,
    entry_hash,
    read_codes,
    read_entry,
)
from consentgate.core.model import Choice, Verdict, consent_state
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.pseudonym import Pseudonyms
from consentgate.core.transform import Transformer
from consentgate.core.verify import (
    BROKER_TIME,
    CLOCK_SKEW_MS,
    EXPOSURE_WINDOW_MS,
    FINDINGS_MAX,
    PRODUCERS_TIMES,
    ChainVerifier,
    Headers,
    Owners,
    Placed,
    Slice,
    Verification,
    source_of,
)

NOW_MS = 1_726_826_400_000
POLICY = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_IN),))
PSEUDONYMIZING = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_IN, pseudonymize=True),))
Entry = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """A consumed record; a training record or a quarantined one, too."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_type: int = BROKER_TIME


key_of = subject_reader(content_decoder(ContentFields(), 64), key_is_subject=True)
PLAIN = Pseudonyms()
KEYED = Owners(key_of, PLAIN.forms)


@dataclass
class Written:
    """What one transaction has left behind."""

    value: bytes
    content: Batch | None
    training: list[Content]
    quarantine: list[Content]
    retractions: list[Content]
    appended_ms: int = NOW_MS

    @property
    def slice(self) -> Slice:
        return Slice(
            self.content,
            [placed(record, Verdict.FORWARD) for record in self.training],
            [placed(record, Verdict.QUARANTINE) for record in self.quarantine],
            [Placed(f"t-0@{record.offset}", record) for record in self.retractions],
        )


@dataclass
class Topics:
    """What stands in the topics: made by a gate, and spoilt by the test."""

    consent: list[ConsentChange] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    next_offset: int = 0
    previous: str = GENESIS
    sign: Callable[[str], str] | None = None
    broker_time: bool = True
    pseudonyms: Pseudonyms = PLAIN
    policy: Policy = POLICY

    def __post_init__(self) -> None:
        self.table = ConsentTable([0])
        self.gate = gate(self.table, self.sign, self.pseudonyms, self.policy)
        self.uncovered: list[ConsentChange] = []

    def choose(self, subject: str, choice: Choice, timestamp_ms: int = NOW_MS) -> None:
        """A consent record is appended."""
        offset = self.table.frontier[0]
        self.table.apply(0, subject.encode(), consent_state("GB", True, choice))
        self.table.advance(0, offset + 1)
        after = self.table.holdings[subject.encode()]
        change = ConsentChange(0, offset, timestamp_ms, subject.encode(), after)
        self.consent.append(change)
        self.uncovered.append(change)

    def post(self, *subjects: str, timestamp_ms: int = NOW_MS, headers: Headers = ()) -> Written:
        """These people's posts are decided in one transaction; `broken` cannot write JSON."""
        records = []
        for offset, subject in enumerate(subjects, self.next_offset):
            known = {"id": "e", "subject": subject, "kind": "k", "visibility": "v"}
            event = json.dumps({**known, "created_at": 0}) if subject != "broken" else "{"
            record = Content(offset, subject.encode(), event.encode(), timestamp_ms)
            records.append(replace(record, headers=headers))
        batch = Batch(self.next_offset, self.next_offset + len(subjects), records)
        # A group's first entry is its baseline.
        changes = self.uncovered if self.written else []
        outcome = self.gate.judge(batch, self.previous, NOW_MS, changes)
        self.uncovered, self.previous = [], outcome.entry.hash
        self.next_offset = batch.next_offset
        self.written.append(
            Written(
                outcome.entry.value,
                batch,
                kept(outcome.training),
                kept(outcome.quarantine),
                kept(outcome.retractions),
            )
        )
        return self.written[-1]

    def edit_content(self, number: int, **changes: Any) -> None:
        """Change the content records that an entry accounts for."""
        batch = self.written[number].content
        assert batch is not None
        records = [replace(record, **changes) for record in batch.records]  # type: ignore[type-var]
        self.written[number].content = Batch(batch.first, batch.next_offset, records)

    def rewrite(self, number: int, edit: Callable[[Entry], None]) -> None:
        """Change an entry as one would who knows how the chain is made."""
        previous = json.loads(self.written[number].value)["previous"]
        for each, written in enumerate(self.written[number:], number):
            entry = json.loads(written.value)
            entry["previous"] = previous
            if each == number:
                edit(entry)
            entry["hash"] = previous = entry_hash(entry)
            written.value = json.dumps(entry).encode()

    def verified(
        self,
        *,
        is_signed: Callable[[LedgerRecord], bool] | None = None,
        expired: Verdict | None = None,
        subject_of: Callable[[Any], bytes] = key_of,
        policies: Sequence[Policy] | None = None,
        pseudonyms: Pseudonyms | None = None,
        earlier: Sequence[ContentFields] = (),
    ) -> Verification:
        """What the verifier makes of it, with what else is given than what was in force."""
        table, verification = ConsentTable([0]), Verification()
        keys = self.pseudonyms if pseudonyms is None else pseudonyms
        given = [self.policy] if policies is None else policies
        gates = [
            {p.reference: gate(table, None, keys, p, fields) for p in given}
            for fields in (ContentFields(), *earlier)
        ]
        owners = Owners(subject_of, keys.forms)
        verifier = ChainVerifier(gates, table, verification, is_signed, owners)
        if expired is not None:
            verifier.expired(expired)
        left = list(self.consent)

        def read_consent(frontier: int) -> None:
            while left and left[0].offset < frontier:
                change = left.pop(0)
                table.apply(0, change.subject, change.after.state if change.after else None)
                place = f"consent-0@{change.offset}"
                verifier.consent(change, place, broker_time=self.broker_time)
            table.advance(0, max(table.frontier[0], frontier))

        for number, written in enumerate(self.written):
            record = msgspec.json.decode(written.value, type=LedgerRecord)
            read_consent(record.consent["0"])
            verifier.entry(f"ledger-0@{number}", written.value, record, written.slice)
            verifier.committed(written.appended_ms)
        read_consent(1_000)
        verifier.finish()
        return verification


def gate(
    table: ConsentTable,
    sign: Callable[[str], str] | None = None,
    pseudonyms: Pseudonyms = PLAIN,
    policy: Policy = POLICY,
    fields: ContentFields = ContentFields(),  # noqa: B008 - Nobody changes it.
) -> Gate:
    chain = Chain("group", "content", 0, sign)
    decode = content_decoder(fields, 64)
    transformer = Transformer(pseudonyms=pseudonyms)
    return Gate(chain, "consent", table, policy, decode, Limits(), True, transformer)


def placed(output: Content, verdict: Verdict) -> Placed:
    """As the topics hold it; its headers say whence it came."""
    offset = int(source_of(output.headers, verdict).rpartition(b"@")[2])
    return Placed(f"t-0@{output.offset}", output, offset)


def kept(outputs: Any) -> list[Content]:
    return [of_output(number, output) for number, output in enumerate(outputs)]


def of_output(number: int, output: Output) -> Content:
    return Content(number, output.key, output.value, output.timestamp_ms, tuple(output.headers))


def topics(**settings: Any) -> Topics:
    """Three entries; the second has one of each verdict, and retracts Anna."""
    made = Topics(**settings)
    for person in ("anna", "ben", "cleo"):
        made.choose(person, Choice.GRANTED)
    made.post("anna", "ben", "stranger", "nobody")
    made.choose("broken", Choice.GRANTED)
    made.choose("anna", Choice.WITHDRAWN)
    made.post("anna", "ben", "broken", "cleo")
    made.post("ben", "cleo")
    return made


def findings(verification: Verification) -> dict[str, list[str]]:
    return {name: t.findings for name, t in verification.tallies.items() if t.violations}


def unchecked(verification: Verification) -> dict[str, dict[str, int]]:
    return {name: dict(t.unchecked) for name, t in verification.tallies.items() if t.unchecked}


def set_reason(entry: Entry, offset: int, reason: str | None) -> None:
    """Say in an entry that something else became of an offset."""
    outcomes = entry["outcomes"]
    codes = bytearray(zlib.decompress(base64.b64decode(outcomes["codes"])))
    if reason is not None and reason not in outcomes["reasons"]:
        outcomes["reasons"].append(reason)
    code = 255 if reason is None else outcomes["reasons"].index(reason)
    codes[offset - entry["source"]["first"]] = code
    entry["counts"] = {"*": Counter(outcomes["reasons"][code] for code in codes if code != 255)}
    outcomes["codes"] = base64.b64encode(zlib.compress(codes)).decode()


# What is right.


def test_what_the_gate_did_is_passed() -> None:
    verification = topics().verified()
    assert findings(verification) == {}
    assert unchecked(verification) == {}
    checked = {name: tally.checked for name, tally in verification.tallies.items()}
    assert checked == {"S1": 10, "S2": 1, "S3": 6, "S4": 2, "S5": 1, "S6": 1, "S7": 10}


def test_the_figures_are_those_of_the_ledger_and_of_what_is_retracted() -> None:
    made = topics()
    made.choose("ben", Choice.OBJECTED, NOW_MS - 70)
    made.post("ben")
    figures = made.verified().figures
    by_reason: Counter[str] = Counter()
    for (_, reason, policy), number in figures.outcomes.items():
        assert policy == POLICY.reference
        by_reason[reason] += number
    entries = [json.loads(written.value)["counts"] for written in made.written]
    assert by_reason == sum(
        (Counter(counts) for entry in entries for counts in entry.values()), Counter()
    )
    assert (figures.effects_ms, figures.retractions) == ({0: 1, 70: 1}, 2)
    both = Verification.of([made.verified(), made.verified()]).figures
    assert (both.effects_ms, both.retractions) == ({0: 2, 70: 2}, 4)
    assert both.outcomes.total() == 2 * figures.outcomes.total()


def test_the_first_entry_is_a_baseline_and_needs_no_retractions() -> None:
    made = Topics()
    made.choose("anna", Choice.WITHDRAWN)
    made.post("anna")
    verification = made.verified()
    assert findings(verification) == {}
    assert verification.tallies["S6"].checked == 0


# S7: the ledger itself.


def test_an_entry_that_was_changed_is_found() -> None:
    made = topics()
    entry = json.loads(made.written[1].value)
    entry["decided_at"] += 1
    made.written[1].value = json.dumps(entry).encode()
    assert "was changed" in findings(made.verified())["S7"][0]


@pytest.mark.parametrize("edit", ["counts", "offsets"])
def test_an_entry_that_does_not_add_up_is_found_under_a_policy_that_is_not_given(edit: str) -> None:
    # Checked: nobody adds up what cannot be decided again, because content or policy is missing.
    def spoil(entry: Entry) -> None:
        if edit == "counts":
            entry["counts"]["*"]["opted-in"] += 1
        else:
            entry["source"]["last"] += 1

    made = topics()
    made.rewrite(2, spoil)
    assert findings(made.verified(policies=[])) == {
        "S7": ["ledger-0@2: the entry's counts are not those of its outcomes, or its offsets"]
    }


def test_an_entry_that_was_left_out_is_found_by_the_chain_and_by_the_offsets() -> None:
    made = topics()
    del made.written[1]
    (other_hash, no_outcome) = findings(made.verified())["S7"][:2]
    assert "does not follow the one before" in other_hash
    assert "offsets 4 to 7 have no outcome" in no_outcome


def test_an_entry_that_was_left_out_of_a_chain_made_anew_is_found_by_the_offsets() -> None:
    made = topics()
    del made.written[1]
    made.rewrite(1, lambda entry: entry.update(previous=json.loads(made.written[0].value)["hash"]))
    found = findings(made.verified())["S7"]
    assert [finding for finding in found if "does not follow" in finding] == []
    assert "offsets 4 to 7 have no outcome" in found[0]


def test_a_chain_that_was_broken_without_a_gap_is_found() -> None:
    made = topics()
    made.rewrite(2, lambda entry: entry.update(previous=GENESIS))
    assert "does not follow the one before" in findings(made.verified())["S7"][0]


def test_a_ledger_whose_beginning_has_gone_says_so() -> None:
    made = topics()
    del made.written[0]
    verification = made.verified()
    assert unchecked(verification)["S7"] == {"the ledger does not reach back to its first entry": 1}


def test_an_unsigned_entry_is_found_where_a_key_is_given() -> None:
    made = topics(sign=lambda entry_hash: f"signed {entry_hash}")
    unsigned = made.written[1].value = strip_signature(made.written[1].value)

    def is_signed(record: LedgerRecord) -> bool:
        return record.signature == f"signed {record.hash}"

    assert b"signature" not in unsigned
    assert findings(made.verified(is_signed=is_signed)) == {
        "S7": ["ledger-0@1: the ledger entry is not signed with the key given"]
    }


def strip_signature(value: bytes) -> bytes:
    entry = json.loads(value)
    del entry["signature"]
    return json.dumps(entry).encode()


def test_signatures_without_a_key_are_not_passed_in_silence() -> None:
    verification = topics(sign=lambda entry_hash: "s").verified()
    assert unchecked(verification)["S7"] == {"no public key given for the signatures": 3}


# S7: each outcome has its one record.


OUTPUTS = pytest.mark.parametrize(
    ("role", "what"), [("training", "forwarded"), ("quarantine", "quarantined")]
)


@OUTPUTS
def test_an_output_that_is_missing_is_found(role: str, what: str) -> None:
    made = topics()
    getattr(made.written[1], role).pop()
    (finding,) = findings(made.verified())["S7"]
    assert finding.endswith(f"{what}, but the record is not there")


@OUTPUTS
def test_an_output_that_is_there_twice_is_found(role: str, what: str) -> None:
    made = topics()
    outputs = getattr(made.written[1], role)
    outputs.append(outputs[-1])
    (finding,) = findings(made.verified())["S7"]
    assert finding.endswith(f"is {what} twice")


@OUTPUTS
def test_an_output_of_another_outcome_is_found(role: str, what: str) -> None:
    made = topics()
    source = {
        "training": ("consentgate.source", b"content-0@4"),
        "quarantine": ("__connect.errors.offset", b"4"),
    }
    forged = Content(9, b"anna", b"{}", headers=(source[role],))
    getattr(made.written[1], role).append(forged)
    assert findings(made.verified())["S7"] == [f"t-0@9: {what}, but the ledger says otherwise"]


def test_an_output_that_no_entry_accounts_for_is_found() -> None:
    verification = Verification()
    verifier = ChainVerifier([{}], ConsentTable([0]), verification, None, KEYED)
    verifier.surplus("t-0@9", "forwarded")
    assert findings(verification) == {
        "S7": ["t-0@9: forwarded, but no ledger entry accounts for it"]
    }


def test_an_output_of_another_topic_is_not_passed_in_silence() -> None:
    verification = Verification()
    ChainVerifier([{}], ConsentTable([0]), verification, None, KEYED).foreign()
    assert unchecked(verification) == {"S7": {"outputs that name another content topic": 1}}


def test_content_before_the_first_entry_is_not_passed_in_silence() -> None:
    verification = Verification()
    verifier = ChainVerifier([{}], ConsentTable([0]), verification, None, KEYED)
    verifier.skipped(0)
    assert unchecked(verification) == {}
    verifier.skipped(3)
    assert unchecked(verification) == {"S7": {"content before the first ledger entry": 3}}


@OUTPUTS
def test_outputs_are_compared_with_the_ledger_where_content_has_expired(
    role: str, what: str
) -> None:
    made = topics()
    made.written[1].content = None
    getattr(made.written[1], role).pop()
    verification = made.verified()
    assert len(findings(verification)["S7"]) == 1
    assert unchecked(verification)["S1"] == {"content has expired": 4}
    assert unchecked(verification)["S3"] == {"content has expired": 4}


@OUTPUTS
def test_outputs_that_have_expired_are_told_apart_from_those_that_are_missing(
    role: str, what: str
) -> None:
    made = topics()
    made.post("broken", "ben", "broken", "ben")
    verdict = Verdict.FORWARD if role == "training" else Verdict.QUARANTINE
    for written in made.written[:2]:
        getattr(written, role).clear()
    expired = sum(
        reason is not None and reason.verdict is verdict
        for written in made.written[:2]
        for reason in read_codes(read_entry(written.value).outcomes)
    )
    verification = made.verified(expired=verdict)
    assert findings(verification) == {}
    assert unchecked(verification)["S7"] == {f"{what} records have expired": expired}
    # Retention takes the oldest first: a later one that is not there is missing.
    getattr(made.written[-1], role).pop()
    assert len(findings(made.verified(expired=verdict))["S7"]) == 1
    made.post("broken", "ben")
    getattr(made.written[-1], role).clear()
    assert len(findings(made.verified(expired=verdict))["S7"]) == 2


def test_an_entry_that_is_none_is_found() -> None:
    verification = Verification()
    ChainVerifier([{}], ConsentTable([0]), verification, None, KEYED).unreadable("ledger-0@9")
    assert findings(verification) == {
        "S7": ["ledger-0@9: there should be a ledger entry, but it is unreadable"]
    }


def test_a_record_without_an_outcome_and_an_outcome_without_a_record_are_found() -> None:
    made = topics()
    made.rewrite(1, lambda entry: set_reason(entry, 4, None))
    content = made.written[2].content
    assert content is not None
    made.written[2].content = replace(content, records=content.records[:1])
    made.written[2].training.pop()
    found = findings(made.verified())["S7"]
    assert "content-0@4: has no outcome" in found
    assert "content-0@9: is opted-in, but there is no record" in found


def test_unreadable_offsets_are_decided_again_like_records() -> None:
    made = topics()
    written = made.post("ben")
    content = written.content
    assert content is not None
    batch = Batch(content.first, content.next_offset, (), (content.first,))
    previous = json.loads(written.value)["previous"]
    outcome = made.gate.judge(batch, previous, NOW_MS)
    made.written[-1] = Written(outcome.entry.value, batch, [], kept(outcome.quarantine), [])
    verification = made.verified()
    assert findings(verification) == {}
    assert verification.tallies["S1"].checked == 11


# S1 and S3: decided again.


def test_an_outcome_that_comes_out_differently_is_found() -> None:
    made = topics()
    made.rewrite(1, lambda entry: set_reason(entry, 5, "withdrawn"))
    made.written[1].training.pop(0)
    assert findings(made.verified()) == {
        "S1": ["content-0@5: is withdrawn, but comes out as opted-in"]
    }


def test_what_was_forwarded_without_permission_is_found() -> None:
    made = topics()
    made.rewrite(1, lambda entry: set_reason(entry, 4, "opted-in"))
    source = ("consentgate.source", b"content-0@4")
    made.written[1].training.insert(0, Content(9, b"anna", b"{}", headers=(source,)))
    found = findings(made.verified())
    assert found["S1"] == ["content-0@4: is opted-in, but comes out as withdrawn"]
    assert found["S3"] == ["content-0@4: forwarded without permission"]


def test_an_entry_with_other_facts_is_found_though_its_outcomes_are_the_same() -> None:
    made = topics()
    made.rewrite(1, lambda entry: entry["counts"].update(GB=entry["counts"].pop("*")))
    assert findings(made.verified()) == {
        "S1": ["ledger-0@1: the entry differs from the one recomputed"]
    }


@pytest.mark.parametrize(
    "change",
    [{"key": b"cleo"}, {"value": b"{}"}, {"timestamp": NOW_MS + 1}, {"headers": None}],
    ids=lambda change: next(iter(change)),
)
def test_a_forwarded_record_that_was_changed_is_found(change: dict[str, Any]) -> None:
    made = topics()
    record = made.written[1].training[0]
    if "headers" in change:
        change = {"headers": (*record.headers, ("more", b""))}
    made.written[1].training[0] = replace(record, **change)
    assert findings(made.verified()) == {
        "S1": ["t-0@0: the record is not the one that was decided"]
    }


def test_what_was_decided_when_content_was_read_otherwise_is_read_so_again() -> None:
    topics, otherwise = Topics(), ContentFields(kind="sort")
    topics.choose("anna", Choice.GRANTED)
    topics.gate = gate(topics.table, fields=otherwise)
    topics.post("anna", "anna")
    topics.gate = gate(topics.table)
    topics.post("anna")
    assert topics.verified().violations == 2
    assert topics.verified(earlier=[ContentFields(), otherwise]).violations == 0
    # What no reading gives is a violation under all of them.
    topics.written[0].quarantine[0] = replace(topics.written[0].quarantine[0], value=b"{}")
    assert topics.verified(earlier=[otherwise]).violations == 1
    topics.edit_content(0, value=b"{")
    assert topics.verified(earlier=[otherwise]).violations > 1


def test_a_policy_that_is_not_given_is_told() -> None:
    made = topics()
    made.rewrite(1, lambda entry: entry.update(policy="other@0123456789ab"))
    verification = made.verified()
    assert findings(verification) == {}
    why = "no policy given for other@0123456789ab"
    assert unchecked(verification) == {"S1": {why: 4}, "S3": {why: 4}, "S6": {why: 2}}


def contradicted(*, gap: bool) -> Topics:
    """An entry whose outcome rests on a consent record that is no longer there."""
    made = topics()
    made.choose("dora", Choice.WITHDRAWN)
    made.post("dora")
    if gap:
        # Compaction has taken the record that the decision rested on.
        made.consent = [change for change in made.consent if change.subject != b"dora"]
        made.choose("ben", Choice.GRANTED)
        made.post("cleo")
    else:
        made.rewrite(3, lambda entry: set_reason(entry, 10, "objected"))
    return made


def test_what_compaction_may_explain_is_not_called_wrong() -> None:
    made = contradicted(gap=True)
    made.written[3].retractions.clear()
    verification = made.verified()
    assert findings(verification) == {}
    assert unchecked(verification)["S1"] == {"consent history is compacted": 1}


def test_compaction_explains_nothing_where_nothing_was_compacted() -> None:
    found = findings(contradicted(gap=False).verified())
    assert found == {"S1": ["content-0@10: is objected, but comes out as withdrawn"]}


def test_compaction_explains_nothing_of_a_stranger_where_nothing_was_compacted() -> None:
    made = topics()
    made.rewrite(0, lambda entry: set_reason(entry, 2, "opted-in"))
    source = ("consentgate.source", b"content-0@2")
    made.written[0].training.append(Content(9, b"stranger", b"{}", headers=(source,)))
    found = findings(made.verified())
    assert found["S3"] == ["content-0@2: forwarded without permission"]


def test_compaction_explains_nothing_of_somebody_whose_record_is_still_there() -> None:
    made = contradicted(gap=True)
    made.written[3].retractions.clear()
    made.rewrite(1, lambda entry: set_reason(entry, 4, "objected"))
    found = findings(made.verified())
    assert found == {"S1": ["content-0@4: is objected, but comes out as withdrawn"]}


def test_a_later_record_explains_that_an_earlier_one_was_compacted() -> None:
    made = contradicted(gap=True)
    made.written[3].retractions.clear()
    made.choose("dora", Choice.GRANTED)
    made.post("dora")
    verification = made.verified()
    assert findings(verification) == {}
    assert unchecked(verification)["S1"] == {"consent history is compacted": 1}


def test_a_later_record_explains_nothing_where_nothing_was_compacted() -> None:
    made = contradicted(gap=False)
    made.choose("dora", Choice.GRANTED)
    made.post("dora")
    made.rewrite(3, lambda entry: set_reason(entry, 10, "objected"))
    found = findings(made.verified())
    assert found == {"S1": ["content-0@10: is objected, but comes out as withdrawn"]}


def test_consent_offsets_without_a_record_may_have_held_a_change() -> None:
    verification = contradicted(gap=True).verified()
    why = "consent offsets that hold no record: compacted, or a marker"
    assert unchecked(verification)["S6"] == {why: 1}


def test_a_later_record_of_somebody_else_explains_nothing() -> None:
    made = contradicted(gap=True)
    made.written[3].retractions.clear()
    made.choose("ben", Choice.GRANTED)
    made.choose("dora", Choice.GRANTED)
    made.post("ben")
    made.rewrite(1, lambda entry: set_reason(entry, 4, "objected"))
    found = findings(made.verified())
    assert found == {"S1": ["content-0@4: is objected, but comes out as withdrawn"]}


# S4: the frontier.


def test_a_frontier_that_goes_back_is_found() -> None:
    made = topics()
    made.rewrite(2, lambda entry: entry["consent"].update({"0": 4}))
    found = findings(made.verified())
    assert found["S4"] == ["ledger-0@2: the frontier of consent partition 0 goes back"]


def test_a_frontier_that_is_left_out_goes_back() -> None:
    made = topics()
    verification = Verification()
    table = ConsentTable([0])
    verifier = ChainVerifier([{}], table, verification, None, KEYED)
    for number, written in enumerate(made.written):
        if number == 2:
            made.rewrite(2, lambda entry: entry["consent"].clear())
        record = msgspec.json.decode(written.value, type=LedgerRecord)
        verifier.entry(f"ledger-0@{number}", written.value, record, written.slice)
    assert findings(verification)["S4"] == [
        "ledger-0@2: the frontier of consent partition 0 goes back"
    ]


# S6: retractions.


def test_a_retraction_that_is_missing_is_found() -> None:
    made = topics()
    made.written[1].retractions.clear()
    assert findings(made.verified()) == {
        "S6": ["ledger-0@1: the change at consent-0@4 is covered, but not retracted"]
    }


def test_a_retraction_of_another_change_does_not_do() -> None:
    made = topics()
    other = b'{"consent": "consent-0@3"}'
    made.written[1].retractions = [replace(made.written[1].retractions[0], value=other)]
    assert "consent-0@4" in findings(made.verified())["S6"][0]


def test_a_retraction_whose_key_and_value_name_different_people_does_not_do() -> None:
    # Checked: passed where only the key is looked at, while readers go by the value.
    made = topics()
    (retraction,) = made.written[1].retractions
    assert retraction.value is not None
    value = retraction.value.replace(b"anna", b"ben")
    made.written[1].retractions = [replace(retraction, value=value)]
    assert "consent-0@4" in findings(made.verified())["S6"][0]


@pytest.mark.parametrize("name", ["at", "changed_at"])
def test_a_retraction_with_another_time_is_found(name: str) -> None:
    # Checked: passed where only the change and its subject are compared.
    made = topics()
    (retraction,) = made.written[1].retractions
    body = json.loads(retraction.value or b"")
    body[name] -= 1
    made.written[1].retractions = [replace(retraction, value=json.dumps(body).encode())]
    assert "with other times" in findings(made.verified())["S6"][0]
    del body[name]
    made.written[1].retractions = [replace(retraction, value=json.dumps(body).encode())]
    verification = made.verified()
    assert findings(verification) == {}
    why = "a retraction does not say when the change came"
    assert unchecked(verification)["S6"] == {why: 1}


def test_retractions_are_missed_where_content_has_expired_too() -> None:
    made = topics()
    made.written[1].content = None
    assert made.verified().tallies["S6"].checked == 1
    made.written[1].retractions.clear()
    assert "consent-0@4" in findings(made.verified())["S6"][0]


ADDED_KEY = Pseudonyms((b"k" * 32,))


def test_before_the_first_pseudonym_nobody_is_retracted_under_one() -> None:
    # Checked: what was right is reported where each form is asked for under every policy. The
    # hash of a policy without pseudonyms names no keys, and so is the same before and after.
    verification = topics().verified(policies=[POLICY, PSEUDONYMIZING], pseudonyms=ADDED_KEY)
    assert findings(verification) == {}
    assert verification.tallies["S6"].checked == 1


def test_a_pseudonym_under_which_somebody_may_have_left_is_not_passed() -> None:
    made = topics()
    made.rewrite(0, lambda entry: entry.update(policy="other@0123456789ab"))
    made.written[0].training.clear()
    made.written[0].quarantine.clear()
    verification = made.verified(pseudonyms=ADDED_KEY, expired=Verdict.FORWARD)
    why = "a subject may have left under a pseudonym"
    assert unchecked(verification)["S6"] == {why: 1}


@pytest.mark.parametrize("form", [0, 1])
def test_each_form_is_to_be_retracted(form: int) -> None:
    made = topics(pseudonyms=ADDED_KEY, policy=PSEUDONYMIZING)
    assert findings(made.verified()) == {}
    del made.written[1].retractions[form]
    assert "consent-0@4" in findings(made.verified())["S6"][0]


def test_a_later_policy_without_pseudonyms_does_not_undo_earlier_ones() -> None:
    made = Topics(pseudonyms=ADDED_KEY, policy=PSEUDONYMIZING)
    made.choose("anna", Choice.GRANTED)
    made.post("anna")
    made.gate = gate(made.table, None, ADDED_KEY, POLICY)
    made.choose("anna", Choice.WITHDRAWN)
    made.post("ben")
    both = [POLICY, PSEUDONYMIZING]
    assert findings(made.verified(policies=both)) == {}
    del made.written[1].retractions[1]
    assert "consent-0@1" in findings(made.verified(policies=both))["S6"][0]


def test_withdrawals_under_a_policy_that_is_not_given_are_not_passed() -> None:
    # Checked: S2 and S5 hold in silence where nobody counts what could not be judged.
    verification = topics().verified(policies=[])
    why = f"no policy given for {POLICY.reference}"
    assert unchecked(verification)["S2"] == unchecked(verification)["S5"] == {why: 2}


# S2 and S5: fresh, and for how long exposed.


def withdrawn_at(timestamp_ms: int, posted_at_ms: int, **settings: Any) -> Topics:
    """Anna's post is forwarded before her withdrawal is covered."""
    made = Topics(**settings)
    made.choose("anna", Choice.GRANTED, timestamp_ms=timestamp_ms - 1_000)
    made.post("anna", timestamp_ms=posted_at_ms)
    made.choose("anna", Choice.WITHDRAWN, timestamp_ms=timestamp_ms)
    made.post("nobody")
    return made


@pytest.mark.parametrize(("late_ms", "wrong"), [(0, 0), (CLOCK_SKEW_MS, 0), (CLOCK_SKEW_MS + 1, 1)])
def test_what_was_appended_after_its_owner_s_withdrawal_is_found(late_ms: int, wrong: int) -> None:
    verification = withdrawn_at(NOW_MS, NOW_MS + late_ms).verified()
    assert verification.tallies["S2"].checked == 1
    assert verification.violations == verification.tallies["S2"].violations == wrong


def test_producers_times_prove_nothing() -> None:
    verification = withdrawn_at(NOW_MS, NOW_MS + 5_000, broker_time=False).verified()
    assert verification.violations == 0
    why = PRODUCERS_TIMES
    assert unchecked(verification) == {"S2": {why: 1}, "S5": {why: 1}}
    assert exposure(verification) == (0, 0, 0)


def test_the_producers_times_of_content_prove_nothing_either() -> None:
    made = withdrawn_at(NOW_MS, NOW_MS + 5_000)
    made.edit_content(0, timestamp_type=0)
    verification = made.verified()
    assert verification.violations == 0
    assert unchecked(verification) == {"S2": {PRODUCERS_TIMES: 1}}


def test_headers_of_other_places_are_not_taken_for_ours() -> None:
    made = Topics()
    made.choose("anna", Choice.GRANTED)
    made.choose("broken", Choice.GRANTED)
    came_with = (("__connect.errors.offset", b"77"), ("consentgate.source", b"elsewhere-0@88"))
    written = made.post("anna", "broken", headers=came_with)
    assert (len(written.training), len(written.quarantine)) == (1, 1)
    assert findings(made.verified()) == {}


def test_a_doubt_about_a_person_is_not_explained_by_another_one_s_gap() -> None:
    # The content is keyed by something else than its subject.
    made = Topics()
    made.choose("anna", Choice.GRANTED)
    made.post("anna")
    made.choose("anna", Choice.WITHDRAWN)
    made.choose("ben", Choice.GRANTED)
    made.consent[2] = replace(made.consent[2], offset=made.consent[2].offset + 5)
    made.rewrite(0, lambda entry: entry["consent"].update({"0": 2}))
    subject_of = subject_reader(content_decoder(ContentFields(), 64), key_is_subject=False)
    made.edit_content(0, key=b"post-1")
    assert "S3" in findings(made.verified(subject_of=subject_of))


def exposure(verification: Verification) -> tuple[int, int, int]:
    return (
        verification.exposed_records_min,
        verification.exposed_records_max,
        verification.exposure_ms_max,
    )


def test_exposure_is_from_the_withdrawal_to_the_next_entry() -> None:
    made = withdrawn_at(NOW_MS - 700, NOW_MS - 5_000)
    made.written[-1].appended_ms = NOW_MS + 50
    assert exposure(made.verified()) == (1, 1, 750)


def test_who_withdraws_twice_was_exposed_once() -> None:
    made = Topics()
    made.choose("anna", Choice.GRANTED, timestamp_ms=NOW_MS - 1_000)
    made.post("anna", "anna", timestamp_ms=NOW_MS - 5_000)
    made.choose("anna", Choice.WITHDRAWN, timestamp_ms=NOW_MS - 700)
    made.choose("anna", Choice.OBJECTED, timestamp_ms=NOW_MS - 600)
    made.post("nobody").appended_ms = NOW_MS + 50
    assert exposure(made.verified()) == (2, 2, 750)


def test_the_transaction_before_the_withdrawal_may_have_ended_after_it() -> None:
    made = withdrawn_at(NOW_MS, NOW_MS - 5_000)
    made.written[-1].appended_ms = NOW_MS + 50
    assert exposure(made.verified()) == (0, 1, 50)


def test_what_was_committed_earlier_was_not_exposed() -> None:
    made = Topics()
    made.choose("anna", Choice.GRANTED, timestamp_ms=NOW_MS - 1_000)
    made.post("anna", timestamp_ms=NOW_MS - 5_000)
    made.post("nobody")
    made.choose("anna", Choice.WITHDRAWN)
    made.post("nobody").appended_ms = NOW_MS + 50
    assert exposure(made.verified()) == (0, 0, 0)


def test_what_was_committed_long_ago_is_forgotten() -> None:
    made = Topics()
    made.choose("anna", Choice.GRANTED, timestamp_ms=NOW_MS - 1_000)
    made.post("anna", timestamp_ms=NOW_MS - 5_000)
    made.post("nobody").appended_ms = NOW_MS + EXPOSURE_WINDOW_MS + 1
    made.choose("anna", Choice.WITHDRAWN, timestamp_ms=NOW_MS - 700)
    made.post("nobody").appended_ms = NOW_MS + EXPOSURE_WINDOW_MS + 1
    assert exposure(made.verified()) == (0, 0, 0)


def test_contradictions_of_one_subject_are_counted_and_not_all_are_listed() -> None:
    made = Topics()
    made.choose("anna", Choice.GRANTED)
    made.post(*["anna"] * (FINDINGS_MAX + 5))

    def turn_all(entry: Entry) -> None:
        for offset in range(FINDINGS_MAX + 5):
            set_reason(entry, offset, "withdrawn")

    made.rewrite(0, turn_all)
    made.written[0].training.clear()
    verification = made.verified()
    assert verification.tallies["S1"].violations == FINDINGS_MAX + 5
    assert len(findings(verification)["S1"]) == FINDINGS_MAX


def test_all_violations_are_counted_and_not_all_are_listed() -> None:
    verification = Verification()
    for number in range(FINDINGS_MAX + 5):
        verification.tallies["S7"].violation(f"t-0@{number}", "wrong")
    assert verification.violations == FINDINGS_MAX + 5
    assert len(verification.tallies["S7"].findings) == FINDINGS_MAX


def test_what_several_chains_come_to_is_the_sum_of_them() -> None:
    first, second = Verification(), Verification()
    for number, each in enumerate((first, second), start=1):
        each.tallies["S7"].violation(f"t-{number}@0", "wrong")
        each.tallies["S7"].checked = number
        each.tallies["S1"].unchecked["compacted"] = number
        each.exposed_records_min = each.exposed_records_max = each.exposure_ms_max = number
    total = Verification.of([first, second])
    assert findings(total) == {"S7": ["t-1@0: wrong", "t-2@0: wrong"]}
    assert (total.violations, total.unchecked, total.tallies["S7"].checked) == (2, 3, 3)
    assert exposure(total) == (3, 3, 2)


def test_the_chains_together_list_no_more_than_one_does() -> None:
    chain = Verification()
    for number in range(FINDINGS_MAX):
        chain.tallies["S7"].violation(f"t-0@{number}", "wrong")
    total = Verification.of([chain, chain])
    assert total.violations == 2 * FINDINGS_MAX
    assert len(total.tallies["S7"].findings) == FINDINGS_MAX


def test_exposure_is_that_of_the_subject_though_a_pseudonym_has_left() -> None:
    made = Topics(pseudonyms=Pseudonyms((b"k" * 32,)), policy=PSEUDONYMIZING)
    made.choose("anna", Choice.GRANTED, NOW_MS - 10)
    made.post("anna")
    written = made.written[0]
    assert written.training[0].key != b"anna"
    written.content = None  # Expired: what left says whose it is only in its new form.
    written.appended_ms = NOW_MS + 7
    made.choose("anna", Choice.WITHDRAWN, NOW_MS + 5)
    made.post().appended_ms = NOW_MS + 9
    assert exposure(made.verified())[:2] == (1, 1)
