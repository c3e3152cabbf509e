"""Placeholders: which, in what order, and what stays as it was."""

import importlib
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import consentgate.redaction
from consentgate.core.policy import DETECTORS
from consentgate.errors import ConfigError
from consentgate.redaction import detectors, redact
from consentgate.redaction.redact import RULES_VERSION, Redactor, engine_versions, fold

# Names are for tests/presidio: what finds them is not installed here.
WITHOUT_NAMES = [name for name in DETECTORS if name != "name"]
ALL = Redactor(WITHOUT_NAMES)

IDENTIFIERS = (
    *("anna@example.org", "0171 3920012", "+49 30 23125 123", "DE89 3704 0044 0532 0130 00"),
    *("4111 1111 1111 1111", "203.0.113.7", "2001:db8::7:8", "36 574 261 809", "536-90-4399"),
    *(
        "https://x.com/annahuber",
        "https://a:b@example.org",
        "password: tulip-42",
        "ghp_" + "a1B2" * 9,
    ),
)
GLUE = (
    *(
        " ",
        "",
        "\n",
        ", ",
        "(",
        ")",
        "-",
        "/",
        ".",
        ":",
        "=",
        "@",
        "+",
        "#",
        "[",
        "]",
        "€",
        "0",
        "17",
    ),
    *(
        "\u200b",
        "\u00a0",
        "\uff11",
        "[EMAIL]",
        "[PHONE-2]",
        "[EMAIL",
        "Tel. ",
        "IBAN",
        "v",
        "token=",
    ),
)
TEXTS = st.lists(
    st.sampled_from(IDENTIFIERS + GLUE)
    | st.text(max_size=3)
    | st.text("0123456789 .-/@+:", max_size=9),
    max_size=12,
).map("".join)
COUNTRIES = st.sampled_from([None, "DE", "FR", "GB", "US", "IN", "CA", "NL", "ES"])


def test_the_first_of_a_kind_has_no_number_and_later_ones_do() -> None:
    text = "anna@example.org, ben@example.org, 0171 3920012, cleo@example.org"
    assert ALL.redact([text], "DE") == ["[EMAIL], [EMAIL-2], [PHONE], [EMAIL-3]"]


def test_the_same_identifier_has_the_same_placeholder_in_all_texts_of_a_record() -> None:
    texts = [
        "Anna@Example.org or 0171 3920012",
        "no identifier",
        "ben@example.org; anna@example.org; +49 171 3920012; 0171/39 200 12",
    ]
    assert ALL.redact(texts, "DE") == [
        "[EMAIL] or [PHONE]",
        "no identifier",
        "[EMAIL-2]; [EMAIL]; [PHONE]; [PHONE]",
    ]
    assert ALL.redact(texts[2:], "DE") == ["[EMAIL]; [EMAIL-2]; [PHONE]; [PHONE]"]


@pytest.mark.parametrize(
    ("written", "again"),
    [
        ("DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
        ("4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("36 574 261 809", "36574261809"),
        ("2001:db8::7:8", "2001:DB8:0:0::7:8"),
        ("https://www.github.com/annahuber/", "github.com/AnnaHuber"),
    ],
)
def test_ways_to_write_an_identifier_make_no_difference(written: str, again: str) -> None:
    (redacted,) = ALL.redact([f"{written}, {again}"], "DE")
    assert re.fullmatch(r"(\[[A-Z-]+\]), \1", redacted)


def test_only_what_is_asked_for_is_replaced() -> None:
    text = "anna@example.org 0171 3920012"
    assert Redactor(["email"]).redact([text], "DE") == ["[EMAIL] 0171 3920012"]
    assert Redactor(["phone"]).redact([text], "DE") == ["anna@example.org [PHONE]"]
    assert Redactor([]).redact([text], "DE") == [text]


def test_what_overlaps_is_one_placeholder_of_the_longest() -> None:
    assert ALL.redact(["https://anna:geheim@example.org/x?m=b@example.org!"], None) == ["[URL]!"]
    assert ALL.redact(["password: anna@example.org"], None) == ["password: [EMAIL]"]
    assert ALL.redact(["password=anna@example.org;4"], None) == ["password=[SECRET]"]


def test_what_overlaps_leaves_nothing_at_either_end() -> None:
    # The telephone number begins within the URL, which is longer, and ends after it.
    assert ALL.redact(["https://x.com/a(0171 3920012"], "DE") == ["[URL]"]


def test_what_a_placeholder_brings_to_light_is_found() -> None:
    assert ALL.redact(["a@b.de0171 3920012"], "DE") == ["[EMAIL][PHONE]"]


def test_a_national_id_wins_against_a_telephone_number_of_the_same_digits() -> None:
    assert ALL.redact(["36 574 261 809"], "DE") == ["[NATIONAL-ID]"]


def test_placeholders_of_before_are_left_and_separate() -> None:
    text = "[EMAIL] and [PHONE-12] and [NATIONAL-ID], password: [SECRET]"
    assert ALL.redact([text], "DE") == [text]
    assert ALL.redact(["https://x.com/anna/[EMAIL]/b"], "DE") == ["[URL][EMAIL]/b"]


@pytest.mark.parametrize(
    "written",
    [
        "\uff10\uff11\uff17\uff11 3920012",  # Full-width digits.
        "0171\u00a03920012",
        "0171\u20113920012",
        "01\u200b71 39\u00ad20012",  # Characters that nobody sees.
        "\u0660171 3920012",  # A zero of another script.
    ],
)
def test_other_characters_for_the_same_do_not_hide_an_identifier(written: str) -> None:
    assert ALL.redact([f"Müller: {written} \u200b\U0001f600"], "DE") == [
        "Müller: [PHONE] \u200b\U0001f600"
    ]


def test_folding_leaves_letters_and_superscripts_alone() -> None:
    for text in ("Grüße, œuvre, m², 1½, Ł", "Привет", "日本", "🙂"):
        assert fold(text) == text


@settings(max_examples=400)
@given(st.lists(TEXTS, max_size=3), COUNTRIES)
def test_what_has_been_redacted_stays_as_it_is(texts: list[str], country: str | None) -> None:
    once = ALL.redact(texts, country)
    assert len(once) == len(texts)
    assert ALL.redact(once, country) == once


@settings(max_examples=200)
@given(TEXTS, COUNTRIES)
def test_only_what_was_found_is_changed(text: str, country: str | None) -> None:
    spans = ALL.find(text, country)
    (redacted,) = ALL.redact([text], country)
    pieces, done = [], 0
    for span in spans:
        assert done <= span.start < span.end <= len(text)
        pieces.append(re.escape(text[done : span.start]))
        done = span.end
    pieces.append(re.escape(text[done:]))
    assert re.fullmatch(r"\[[A-Z-]+(?:-\d+)?\]".join(pieces), redacted)


@given(st.text(st.characters(categories=["Ll", "Lu", "Zs", "So"]), max_size=80), COUNTRIES)
def test_a_text_without_identifiers_is_unchanged(text: str, country: str | None) -> None:
    assert ALL.redact([text], country) == [text]


def test_a_text_of_more_numbers_than_are_checked_keeps_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(detectors, "MAX_PHONE_CHECKS", 2)
    text = "0171 1, 0999 1234567, 0999 1234568, 0999 1234569, 0171 3920012"
    assert Redactor(["phone"]).redact([text], "FR") == [
        "0171 1, 0999 1234567, 0999 1234568, [PHONE], [PHONE-2]"
    ]


def test_a_text_with_ever_new_identifiers_keeps_nothing_of_the_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redact, "MAX_PASSES", 1)
    assert ALL.redact(["x anna@example.org y [EMAIL] z"], None) == ["[EMAIL][EMAIL] z"]


HOSTILE: list[tuple[str, Callable[[int], str]]] = [
    *(
        (repr(unit), lambda n, unit=unit: unit * (n // len(unit)))  # type: ignore[misc]
        for unit in (
            *(
                "a@",
                "@",
                "a",
                "1",
                "0 ",
                ".",
                "+",
                "+ ",
                " ",
                "-",
                "/",
                "a://",
                "http://a@",
                "a.a/",
            ),
            *(
                "x.com/",
                "1.1.",
                "::",
                "a:",
                "DE12 ",
                "DE89",
                "12 34 ",
                "1234 ",
                "0171 ",
                "(0)",
                "1a",
            ),
            *(
                "password:",
                "token: ",
                "-----BEGIN PRIVATE KEY-----",
                "eyJa.",
                "sk-",
                "A1",
                "AB 12 ",
            ),
            *(
                "[EMAIL]",
                "[EMAIL",
                "\u200b",
                "a\u200b",
                "\uff11",
                "basic a",
                "é",
                "4111111111111111 ",
            ),
        )
    ),
    ("telephone numbers", lambda n: " ".join(f"030 {k:07}" for k in range(n // 12))),
    ("groups of four", lambda n: " ".join(f"{k * 7919 % 10_000:04}" for k in range(n // 5))),
]


@pytest.mark.parametrize(("name", "make"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_the_time_grows_with_the_text_and_not_faster(name: str, make: Callable[[int], str]) -> None:
    def seconds(text: str) -> float:
        started = time.process_time()
        ALL.redact([text], "DE")
        return time.process_time() - started

    small, large = make(25_000), make(100_000)
    # Four times the text takes four times as long; a square would take sixteen times. What takes
    # no time to speak of is not compared.
    assert min(seconds(large) for _ in range(2)) < 10 * max(seconds(small), 0.02)


def test_a_redactor_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(ALL))
    assert again.redact(["anna@example.org"], None) == ["[EMAIL]"]


def test_an_unknown_detector_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'email'"):
        Redactor(["emial"])


def test_the_versions_are_of_what_the_detectors_use() -> None:
    assert engine_versions([]) == {}
    assert engine_versions(["email", "ip"]) == {"rules": RULES_VERSION}
    assert set(engine_versions(["phone"])) == {"rules", "phonenumbers"}
    for name in ("iban", "card", "national-id"):
        assert set(engine_versions([name])) == {"rules", "python-stdnum"}
    assert all(engine_versions(WITHOUT_NAMES).values())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape('pip install "consentgate[redact]"')):
        importlib.reload(consentgate.redaction)


@pytest.mark.parametrize(
    "needs_names", [engine_versions, lambda names: redact.redact(["Mr Quill"], names, None)]
)
def test_without_presidio_the_error_says_what_to_install(
    needs_names: Callable[[list[str]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "consentgate.redaction.names", raising=False)
    with pytest.raises(ConfigError, match=re.escape('pip install "consentgate[presidio]"')):
        needs_names(["email", "name"])


def test_presidio_is_imported_only_where_names_are_redacted() -> None:
    code = (
        "import sys; from consentgate.redaction.redact import engine_versions, redact\n"
        "redact(['Dear Mr Smith'], ['email'], None), engine_versions(['email', 'phone'])\n"
        "sys.exit(not {'presidio_analyzer', 'consentgate.redaction.names'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
