"""What rules make of records: nothing goes on beyond what they let through."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Batch, BatchOutcome, Gate
from consentgate.core.ledger import GENESIS, Chain
from consentgate.core.model import Choice, Reason, consent_state
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.pseudonym import Pseudonyms
from consentgate.core.transform import Transformer, Work

NOW_MS = 1_726_826_400_000
KEY = b"k" * 32
PSEUDONYMS = Pseudonyms((KEY, b"r" * 32))
PSEUDONYM = PSEUDONYMS.of(b"m1").decode()
RULE = Rule(("*",), Basis.OPT_OUT)


def censor(texts: Sequence[str], detectors: Sequence[str], jurisdiction: str | None) -> list[str]:
    """Stands for the engine: takes out the word `secret`, and says what it was asked for."""
    mark = f"[{','.join(detectors)} {jurisdiction}]"
    return [text.replace("secret", mark) for text in texts]


TRANSFORMER = Transformer(pseudonyms=PSEUDONYMS, redact=censor)


def event(subject: str = "m1", **fields: Any) -> bytes:
    known = {"id": "e1", "subject": subject, "kind": "post", "visibility": "public"}
    return json.dumps({**known, "created_at": 0, **fields}, separators=(",", ":")).encode()


def transformed(value: bytes, rule: Rule, subject: bytes = b"m1") -> bytes:
    return TRANSFORMER.value(Work(value, subject, rule, "GB"))


def body_of(value: bytes) -> Any:
    return json.loads(value)["body"]


# Fields.


def test_only_the_named_fields_of_the_body_are_left_and_all_else_is() -> None:
    value = event(body={"text": "t", "author": "a", "media": {"alt": "x", "url": "y"}}, lang="de")
    left = transformed(value, replace(RULE, fields=("media.alt", "text")))
    selected = {"text": "t", "media": {"alt": "x"}}
    assert json.loads(left) == json.loads(event(body=selected, lang="de"))


def test_of_a_repeated_body_nothing_but_the_last_is_left() -> None:
    value = event(body={"text": "t"}).replace(b'"body"', b'"body":{"author":"a"},"body"')
    assert b"author" not in transformed(value, replace(RULE, fields=("text",)))


def test_an_event_without_a_body_needs_no_selection() -> None:
    assert transformed(event(), replace(RULE, fields=("text",))) == event()
    assert transformed(event(body=None), replace(RULE, fields=("text",))) == event(body=None)


@pytest.mark.parametrize("body", ["text", ["text"], 1])
def test_a_body_that_has_no_fields_cannot_be_selected_from(body: Any) -> None:
    with pytest.raises(ValueError, match="Expected `object`"):
        transformed(event(body=body), replace(RULE, fields=("text",)))


# Redaction.

REDACTING = replace(RULE, redact=("email", "phone"))


def test_every_string_of_the_body_is_redacted_at_any_depth() -> None:
    value = event(body={"text": "a secret", "tags": ["secret", {"secret": "x"}], "n": 1.50})
    mark = "[email,phone GB]"
    assert body_of(transformed(value, REDACTING)) == {
        "text": f"a {mark}",
        "tags": [mark, {mark: "x"}],
        "n": 1.5,
    }


def test_what_is_no_string_keeps_its_bytes() -> None:
    value = event().replace(b"}", b',"body":{"n":1.50e+3,"big":123456789012345678901234567890}}')
    assert transformed(value, REDACTING) == value


def test_escapes_hide_nothing() -> None:
    value = event(body={}).replace(b'"body":{}', b'"body":{"text":"\\u0073ecret \\"secret\\""}')
    assert body_of(transformed(value, REDACTING))["text"] == ('[email,phone GB] "[email,phone GB]"')


def test_a_body_may_be_a_text_alone() -> None:
    assert body_of(transformed(event(body="secret"), REDACTING)) == "[email,phone GB]"


def test_redaction_comes_after_selection() -> None:
    value = event(body={"text": "secret", "secret": 1})
    left = transformed(value, replace(REDACTING, fields=("secret", "text")))
    assert body_of(left) == {"text": "[email,phone GB]", "[email,phone GB]": 1}


def test_without_an_engine_nothing_is_redacted_and_so_nothing_goes_on() -> None:
    with pytest.raises(LookupError):
        Transformer().value(Work(event(body={"text": "t"}), b"m1", REDACTING, "GB"))


def test_the_body_is_where_the_paths_say() -> None:
    fields = ContentFields(body="data.post")
    value = json.dumps({"data": {"post": {"text": "secret"}, "text": "secret"}}).encode()
    left = Transformer(fields, redact=censor).value(Work(value, b"m1", REDACTING, None))
    assert json.loads(left) == {"data": {"post": {"text": "[email,phone None]"}, "text": "secret"}}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@given(JSON, st.booleans())
def test_what_holds_nothing_to_be_redacted_means_the_same(body: Any, ascii_: bool) -> None:
    value = json.dumps({"subject": "m1", "body": body}, ensure_ascii=ascii_).encode()
    assert json.loads(transformed(value, REDACTING)) == json.loads(value)


# Pseudonyms.

PSEUDONYMIZING = replace(RULE, pseudonymize=True)


def test_the_subject_is_replaced_wherever_it_is_a_whole_string() -> None:
    value = event(body={"author": "m1", "m1": "by m1", "text": "m12"})
    left = transformed(value, PSEUDONYMIZING)
    assert json.loads(left)["subject"] == PSEUDONYM
    assert body_of(left) == {"author": PSEUDONYM, PSEUDONYM: "by m1", "text": "m12"}


def test_a_repeated_or_an_escaped_subject_is_replaced_too() -> None:
    value = event().replace(b'"subject":"m1"', b'"subject":"m1","subject":"\\u006d1"')
    left = transformed(value, PSEUDONYMIZING)
    assert left.count(PSEUDONYM.encode()) == 2


def test_what_stands_between_two_strings_is_no_subject() -> None:
    value = event(",", body={"a": ["x", "y"]})
    left = transformed(value, PSEUDONYMIZING, b",")
    assert body_of(left) == {"a": ["x", "y"]}


def test_an_address_as_subject_is_no_less_redacted_in_the_body() -> None:
    value = event("secret", body={"text": "secret"})
    left = transformed(value, replace(REDACTING, pseudonymize=True), b"secret")
    assert body_of(left) == {"text": "[email,phone GB]"}
    assert json.loads(left)["subject"] == PSEUDONYMS.of(b"secret").decode()


# The gate.


@dataclass(frozen=True)
class Content:
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW_MS
    headers: Any = ()


def gate(*rules: Rule, transformer: Transformer = TRANSFORMER, **settings: Any) -> Gate:
    table = ConsentTable([0])
    table.apply(0, b"m1", consent_state("GB", True, Choice.GRANTED))
    table.advance(0, 5)
    policy = Policy("p", "ai-training", {}, rules)
    limits = Limits(**settings)
    decode = content_decoder(ContentFields(), 64)
    chain = Chain("g", "content", 0)
    return Gate(chain, "consent", table, policy, decode, limits, True, transformer)


def batch(*values: bytes, headers: Any = ()) -> Batch:
    records = [Content(n, b"m1", value, headers=headers) for n, value in enumerate(values)]
    return Batch(0, len(values), records)


def reasons(outcome: BatchOutcome) -> list[Reason]:
    return [made.reason for made in outcome.decisions]


def test_the_gate_forwards_what_the_rule_makes_of_a_record() -> None:
    rule = replace(REDACTING, fields=("text",), pseudonymize=True)
    headers = [("trace", b"1"), ("author", b"m1")]
    value = event(body={"text": "secret", "author": "m1"})
    outcome = gate(rule).judge(batch(value, headers=headers), GENESIS, NOW_MS)
    (output,) = outcome.training
    assert output.key == PSEUDONYM.encode()
    assert output.value == event(PSEUDONYM, body={"text": "[email,phone GB]"})
    assert output.headers[:2] == [("trace", b"1"), ("author", PSEUDONYM.encode())]
    assert reasons(outcome) == [Reason.NOT_OPTED_OUT]


def test_the_subject_is_what_everything_else_goes_by() -> None:
    outcome = gate(PSEUDONYMIZING).judge(batch(event()), GENESIS, NOW_MS)
    assert [subject for subject, *_ in outcome.forwarded] == [b"m1"]


@pytest.mark.parametrize("rule", [REDACTING, PSEUDONYMIZING])
def test_what_cannot_be_transformed_is_withheld(rule: Rule) -> None:
    outcome = gate(rule, transformer=Transformer()).judge(
        batch(event(body={"text": "t"})), GENESIS, NOW_MS
    )
    assert not outcome.training
    assert not outcome.forwarded
    assert reasons(outcome) == [Reason.REDACTION_FAILED]
    assert {made.label for made in outcome.decisions} == {"*"}


def test_what_grows_beyond_the_limit_is_withheld() -> None:
    value = event(body={"text": "secret"})
    judge = gate(REDACTING, max_value_bytes=len(value)).judge
    assert reasons(judge(batch(value), GENESIS, NOW_MS)) == [Reason.REDACTION_FAILED]


def test_headers_that_grow_beyond_the_limit_are_withheld() -> None:
    # Checked: the broker refuses the record, for ever, where pseudonyms in headers are not counted.
    headers = [("h", b"m1")] * 3
    for limit, left in ((3 * 65, Reason.NOT_OPTED_OUT), (3 * 65 - 1, Reason.REDACTION_FAILED)):
        judge = gate(PSEUDONYMIZING, max_headers_bytes=limit).judge
        assert reasons(judge(batch(event(), headers=headers), GENESIS, NOW_MS)) == [left]


def test_what_was_foreseen_and_done_is_taken_and_what_was_not_is_done() -> None:
    judge = gate(REDACTING)
    values = batch(event(body={"text": "secret"}), event(body={"text": "secret"}))
    (first, _), work = judge.foresee(values, NOW_MS), judge.foresee(values, NOW_MS)
    assert [w.jurisdiction for w in work.values()] == ["GB", "GB"]
    outcome = judge.judge(values, GENESIS, NOW_MS, transformed={first: b"done before"})
    assert [output.value for output in outcome.training] == [
        b"done before",
        event(body={"text": "[email,phone GB]"}),
    ]


def test_what_was_foreseen_under_another_state_is_done_anew() -> None:
    judge = gate(REDACTING)
    values = batch(event(body={"text": "secret"}))
    done = dict.fromkeys(judge.foresee(values, NOW_MS), b"as of before")
    judge.table.apply(0, b"m1", consent_state("DE", True, Choice.GRANTED))
    outcome = judge.judge(values, GENESIS, NOW_MS, transformed=done)
    assert [output.value for output in outcome.training] == [
        event(body={"text": "[email,phone DE]"})
    ]


def test_nothing_is_foreseen_for_who_may_not_be_used_nor_where_nothing_is_redacted() -> None:
    values = batch(event(body={"text": "secret"}))
    judge = gate(REDACTING)
    judge.table.apply(0, b"m1", consent_state("GB", True, Choice.WITHDRAWN))
    assert judge.foresee(values, NOW_MS) == {}
    assert gate(PSEUDONYMIZING).foresee(values, NOW_MS) == {}
    assert gate(RULE).foresee(values, NOW_MS) == {}


def change(offset: int, judge: Gate) -> ConsentChange:
    return ConsentChange(0, offset, NOW_MS, b"m1", judge.table.holdings.get(b"m1"))


def test_who_moves_to_where_another_rule_transforms_turns_what_was_decided() -> None:
    judge = gate(replace(RULE, jurisdictions=("GB",)), replace(REDACTING, jurisdictions=("DE",)))
    outcome = judge.judge(batch(event(body={"text": "secret"})), GENESIS, NOW_MS)
    judge.table.apply(0, b"m1", consent_state("DE", True, Choice.GRANTED))
    judge.table.advance(0, 6)
    assert judge.is_overtaken(outcome, [change(5, judge)], NOW_MS)


def test_a_change_that_leaves_rule_and_place_as_they_are_turns_nothing() -> None:
    judge = gate(REDACTING)
    outcome = judge.judge(batch(event(body={"text": "secret"})), GENESIS, NOW_MS)
    judge.table.apply(0, b"m1", consent_state("GB", True, None))
    judge.table.advance(0, 6)
    assert not judge.is_overtaken(outcome, [change(5, judge)], NOW_MS)


def test_each_form_under_which_somebody_may_have_left_is_retracted() -> None:
    judge = gate(PSEUDONYMIZING)
    judge.table.apply(0, b"m1", consent_state("GB", True, Choice.WITHDRAWN))
    judge.table.advance(0, 6)
    outcome = judge.judge(batch(), GENESIS, NOW_MS, [change(5, judge)])
    assert [retraction.key for retraction in outcome.retractions] == [*PSEUDONYMS.forms(b"m1")]
    assert [json.loads(r.value or b"")["subject"].encode() for r in outcome.retractions] == [
        *PSEUDONYMS.forms(b"m1")
    ]
    assert len(outcome.retracted) == 1
