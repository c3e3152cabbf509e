"""Names of persons behind a mark: which are found, and what only looks like one.

They need presidio: `make test-presidio` runs them.
"""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from presidio_analyzer import pattern_recognizer

from consentgate.config import Config
from consentgate.core.policy import DETECTORS, Basis, Policy, Rule
from consentgate.core.transform import Work
from consentgate.engines import equip
from consentgate.redaction.redact import Redactor, engine_versions
from redaction_report import NAMES, PARTS, name_scores, read_part

NAME = Redactor(["name"])
ALL = Redactor(DETECTORS)


def found(text: str) -> list[str]:
    return [text[span.start : span.end] for span in NAME.find(text, None)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Ask Mr Quill.", "Quill"),
        ("Ask Mrs. Quill, please", "Quill"),
        ("Miss Ada Quill sang.", "Ada Quill"),
        ("Ms Quill's bicycle", "Quill"),
        ("Dear Dr. J. R. Quill-Okafor:", "J. R. Quill-Okafor"),
        ("by Prof Quill", "Quill"),
        ("Mr. O'Quill and I", "O'Quill"),
        ("Mr and Mrs Quill", "Quill"),
        ("Sehr geehrte Frau Prof. Dr. von der Aue,", "von der Aue"),
        ("mit Herrn Jörg Aue gesprochen", "Jörg Aue"),
        ("Frau Doktor Aue", "Aue"),
        ("Frau Bürgermeisterin Aue kam", "Aue"),
        ("M. Aubin viendra", "Aubin"),
        ("Mme de La Rive", "de La Rive"),
        ("selon Me d'Aubin", "d'Aubin"),
        ("Mlle Zoé Aubin", "Zoé Aubin"),
        ("Monsieur Aubin", "Aubin"),
        ("Hi, my name is Ada Quill.", "Ada Quill"),
        ("my name\u2019s Ada", "Ada"),
        ("Ich heiße Jörg Aue und", "Jörg Aue"),
        ("ich heisse Jörg", "Jörg"),
        ("Mein Name ist Dr. Jörg Aue", "Jörg Aue"),
        ("Je m'appelle Zoé Aubin", "Zoé Aubin"),
        ("See you.\n\nKind regards,\nAda Quill", "Ada Quill"),
        ("Viele Grüße, Jörg", "Jörg"),
        ("LG Jörg", "Jörg"),
        ("Cordialement,\r\n\r\nZoé Aubin\r\nAchats", "Zoé Aubin"),
        ("Thanks\nAda\n", "Ada"),
        ("Best regards,\nAda & Ben", "Ada & Ben"),
    ],
)
def test_a_name_behind_a_mark_is_found_without_it(text: str, name: str) -> None:
    assert found(text) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "Frau Holle",
        "Pizza von Dr. Oetker",
        "Miss World tonight",
        "M. 3",
        "size M. The shirt",
        "I miss London",
        "Herr der Ringe",
        "Monsieur le Maire",
        "Mr Speaker, please",
        "Mr. A1 or Mr @Quill",
        "Follow Me Home",
        "my name is on the list",
        "Ich heiße Sie willkommen",
        "Je m'appelle souvent",
        "Viele Grüße aus Hamburg",
        "Kind regards,\nThe Support Team",
        "Mit freundlichen Grüßen\nIhr Kundendienst",
        "Thanks, Everybody who came",
        "Ada Quill met Jörg.",
    ],
)
def test_what_has_no_mark_or_is_no_person_is_left(text: str) -> None:
    assert found(text) == []


def test_placeholders_are_stable_within_the_record() -> None:
    texts = ["Mr Quill, Mrs Aue and Mr QUILL", "Kind regards,\nQuill (mr.quill@example.org)"]
    assert ALL.redact(texts, None) == [
        "Mr [NAME], Mrs [NAME-2] and Mr [NAME]",
        "Kind regards,\n[NAME] ([EMAIL])",
    ]


def test_an_identifier_that_a_name_overlaps_leaves_nothing() -> None:
    assert ALL.redact(["Mr Quill@example.org"], None) == ["Mr [EMAIL]"]
    assert ALL.redact(["Mr\u00a0Qu\u00adill"], None) == ["Mr\u00a0[NAME]"]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                *("Mr ", "Frau ", "Dr. ", "M. ", "Me ", "my name is ", "Grüße,\n", "LG ", "de la "),
                *("Ada ", "Quill", "J. ", "d'Aue", "The ", " and ", "\n", ", ", ".", "'s ", "-"),
                *("[NAME]", "[NAME-2", "[EMAIL]", "a@b.de", "\u200b", "\u0301"),
            ]
        )
        | st.text(max_size=2),
        max_size=14,
    ).map("".join)
)
def test_what_has_been_redacted_stays_as_it_is(text: str) -> None:
    once = ALL.redact([text], "DE")
    assert ALL.redact(once, "DE") == once


@pytest.mark.parametrize(
    "unit",
    [
        *("Mr ", "Mr A ", "Mr A-", "Mr A'", "Mr von de la ", "Mr Team ", "Dr. ", "Dr. A Frau B "),
        *("Prof. Dr. med. ", "Me ", "M. ", "MM. ", "Frau ", "Frau und Herr ", "Frau Anna Aue "),
        *("Herr der ", "my name is ", "my name is A ", "Grüße\n", "Grüße ", "LG A & ", "J. "),
        *("thanks \n  \n", "best regards ", "[NAME]", "d'", "A.", "A-a", "a", " ", "é"),
    ],
)
def test_the_time_grows_with_the_text_and_not_faster(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        started = time.process_time()
        NAME.redact([text], None)
        return time.process_time() - started

    # Four times the text takes four times as long; a square would take sixteen times.
    assert min(seconds(60_000) for _ in range(2)) < 10 * max(seconds(15_000), 0.02)


def test_a_text_that_presidio_did_not_search_to_its_end_is_withheld(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It leaves a pattern out then, and says so only in a log.
    monkeypatch.setattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 0.002)
    with pytest.raises(TimeoutError, match="REGEX_TIMEOUT_SECONDS"):
        NAME.redact(["Grüße " * 20_000 + "Mr Quill"], None)


def test_a_policy_that_redacts_names_is_carried_out_under_the_version_of_presidio() -> None:
    rule = Rule(("*",), Basis.OPT_OUT, redact=("name",))
    equipped, transformer = equip(Config(), Policy("p", "ai-training", {}, (rule,)))
    assert equipped.engines == engine_versions(["name"])
    assert {"rules", "presidio-analyzer"} <= equipped.engines.keys()
    work = Work(b'{"body":{"text":"Dear Mr Quill"}}', b"m1", rule, "GB")
    assert transformer.value(work) == b'{"body":{"text":"Dear Mr [NAME]"}}'


@pytest.mark.parametrize("part", PARTS)
def test_most_names_behind_a_mark_are_found_and_little_else(part: str) -> None:
    score = name_scores(read_part(part, NAMES))["marked"]
    assert score.recall >= 0.8
    assert score.precision >= 0.8
