"""The public enforcer in memory: what it shows of a decision, and its clock."""

import dataclasses
import json
from pathlib import Path

import pytest

import consentgate.testing
from consentgate.config import Config, ContentConfig, LimitsConfig
from consentgate.core.decode import ContentFields
from consentgate.core.ledger import GENESIS
from consentgate.core.model import UNREADABLE, Reason, Verdict, consent_state
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.errors import ConfigError
from consentgate.testing import Clock, Enforcer

NOW = "2024-09-19T12:00:00Z"
NOW_MS = 1_726_747_200_000
OPT_OUT = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT),))
POST = {
    "id": "e1",
    "subject": "m1",
    "kind": "post",
    "visibility": "public",
    "created_at": "2024-09-19T10:00:00Z",
}


def state(choice: str | None = None, subject: str = "m1", country: str = "GB") -> dict[str, object]:
    choices = {} if choice is None else {"ai-training": {"choice": choice}}
    return {"subject": subject, "jurisdiction": country, "choices": choices}


@pytest.fixture
def enforcer() -> Enforcer:
    return Enforcer(OPT_OUT, now=NOW)


def test_the_example_of_the_module_runs() -> None:
    text = consentgate.testing.__doc__ or ""
    example = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert sum(line.startswith("assert ") for line in example) == 2
    exec("from consentgate.testing import Enforcer\n" + "\n".join(example))


def test_an_outcome_shows_the_training_record_with_its_headers(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state())
    outcome = enforcer.content("m1", POST, headers=[("trace", b"t1")], timestamp_ms=5)
    assert outcome.verdict is Verdict.FORWARD
    assert outcome.reason is Reason.NOT_OPTED_OUT
    assert outcome.label == "*"
    forwarded = outcome.forwarded
    assert forwarded is not None
    assert (forwarded.timestamp_ms, forwarded.key) == (5, b"m1")
    assert forwarded.value == (
        b'{"id":"e1","subject":"m1","kind":"post","visibility":"public",'
        b'"created_at":"2024-09-19T10:00:00Z"}'
    )
    assert forwarded.headers == [
        ("trace", b"t1"),
        ("consentgate.source", b"content-events-0@0"),
        ("consentgate.consent", b"consent-state-0@1"),
        ("consentgate.policy", OPT_OUT.reference.encode()),
    ]
    assert outcome.quarantined is None


def test_an_outcome_shows_whose_state_and_which_rule_decided(enforcer: Enforcer) -> None:
    stranger = enforcer.content("m1", POST)
    assert (stranger.reason, stranger.state, stranger.rule) == (
        Reason.NO_CONSENT_RECORD,
        None,
        None,
    )
    enforcer.consent("m1", state())
    known = enforcer.content("m1", POST)
    assert (known.state, known.rule) == (consent_state("GB", None, None), OPT_OUT.rules[0])
    assert enforcer.consent("m1", "{") == "not-json"
    broken = enforcer.content("m1", POST)
    assert (broken.reason, broken.state, broken.rule) == (
        Reason.CONSENT_UNREADABLE,
        UNREADABLE,
        None,
    )


def test_what_is_quarantined_goes_with_its_reason_in_the_headers(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state())
    outcome = enforcer.content("m1", b"\xff")
    assert (outcome.verdict, outcome.forwarded) == (Verdict.QUARANTINE, None)
    assert outcome.quarantined is not None
    assert outcome.quarantined.value == b"\xff"
    header = ("__connect.errors.exception.class.name", b"undecodable")
    assert header in outcome.quarantined.headers


def test_the_entries_are_a_chain(enforcer: Enforcer) -> None:
    first, second = enforcer.content("m1", POST), enforcer.content("m1", POST)
    assert (first.entry.previous, second.entry.previous) == (GENESIS, first.entry.hash)
    assert (second.entry.source.first, second.entry.source.last) == (1, 1)
    assert second.entry.counts == {"unknown": {"no-consent-record": 1}}
    assert second.entry.decided_at == NOW_MS


def test_a_withdrawal_is_retracted_with_the_next_outcome(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state())
    assert enforcer.content("m1", POST).retractions == ()
    enforcer.consent("m1", state("withdrawn"))
    (retraction,) = enforcer.content("m1", POST).retractions
    assert retraction.key == b"m1"
    assert b'"reason":"withdrawn"' in (retraction.value or b"")
    assert enforcer.content("m1", POST).retractions == ()


def test_a_withdrawal_is_retracted_without_content_too(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state("granted"))
    enforcer.consent("m1", state("objected"))
    (retraction,) = enforcer.settle()
    assert b'"before":"content-events-0@0"' in (retraction.value or b"")
    assert enforcer.settle() == ()


def test_a_record_without_a_key_is_nobody_s_consent(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state())
    assert enforcer.consent(None, state("withdrawn")) == "no-key"
    assert enforcer.content("m1", POST).verdict == "forward"
    assert enforcer.settle() == ()


def test_a_tombstone_is_nothing(enforcer: Enforcer) -> None:
    enforcer.consent("m1", state())
    assert enforcer.consent("m1", None) is None
    assert enforcer.content("m1", POST).reason == "no-consent-record"
    assert enforcer.content("m1", None).reason == "tombstone"


def test_the_clock_stands_still_until_it_is_set() -> None:
    paused = (
        Rule(("GB",), Basis.OPT_OUT, until_ms=NOW_MS),
        Rule(("GB",), Basis.SUSPENDED, from_ms=NOW_MS),
    )
    enforcer = Enforcer(Policy("p", "ai-training", {}, paused), now=NOW_MS - 1)
    enforcer.consent("m1", state())
    found = [enforcer.content("m1", POST).verdict for _ in range(2)]
    enforcer.clock.set(NOW)
    found.append(enforcer.content("m1", POST).verdict)
    assert found == ["forward", "forward", "withhold"]
    assert enforcer.clock.now_ms == NOW_MS


@pytest.mark.parametrize("moment", ["2024-09-19", "2024-09-19T12:00:00", "soon"])
def test_a_moment_has_a_zone(moment: str) -> None:
    with pytest.raises(ValueError, match="not a time with a zone"):
        Clock(moment)


def test_the_configuration_says_where_the_fields_are_and_what_is_allowed() -> None:
    config = Config(
        content=ContentConfig(fields=ContentFields(subject="author.id")),
        limits=LimitsConfig(max_value_bytes=150),
    )
    enforcer = Enforcer(OPT_OUT, config=config, now=NOW)
    enforcer.consent("m1", state())
    nested = {**POST, "author": {"id": "m1"}}
    del nested["subject"]
    assert enforcer.content("m1", nested).verdict == "forward"
    assert enforcer.content("m1", POST).reason == "missing-field"
    assert enforcer.content("m1", {**nested, "body": "x" * 150}).reason == "too-large"


def test_content_that_is_keyed_by_something_else_is_its_subject_s() -> None:
    config = Config(content=ContentConfig(key_is_subject=False))
    enforcer = Enforcer(OPT_OUT, config=config, now=NOW)
    enforcer.consent("m1", state())
    outcome = enforcer.content("thread-7", POST)
    assert (outcome.verdict, outcome.state) == ("forward", consent_state("GB", None, None))


def test_an_outcome_cannot_be_changed(enforcer: Enforcer) -> None:
    outcome = enforcer.content("m1", POST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.reason = Reason.OPTED_IN  # type: ignore[misc]


def test_a_policy_comes_by_its_name_or_path(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("{name: own, purpose: p, rules: [{jurisdictions: ['*'], basis: opt-in}]}")
    assert Enforcer("linkedin").policy.name == "linkedin"
    assert Enforcer(str(file)).policy.name == "own"


def test_a_policy_that_pseudonymizes_needs_a_key() -> None:
    rules = (Rule(("*",), Basis.OPT_OUT, pseudonymize=True, line=7),)
    with pytest.raises(ConfigError, match=r"line 7.*keys\.pseudonym"):
        Enforcer(Policy("p", "ai-training", {}, rules))


def test_what_a_rule_makes_of_a_record_is_what_is_forwarded() -> None:
    rules = (Rule(("*",), Basis.OPT_OUT, fields=("text",), redact=("email",)),)
    enforcer = Enforcer(Policy("p", "ai-training", {}, rules))
    enforcer.consent("m1", {"subject": "m1", "jurisdiction": "GB"})
    body = {"text": "write to anna@example.org", "author": "Anna"}
    forwarded = enforcer.content("m1", {**POST, "body": body}).forwarded
    assert forwarded is not None
    assert json.loads(forwarded.value or b"")["body"] == {"text": "write to [EMAIL]"}
