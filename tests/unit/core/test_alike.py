"""Decoding records that are alike once: nothing may come out otherwise than it does one by one."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consentgate.core.alike import PATTERN_BYTES_MAX, PATTERNS_MAX, decoding_alike_once
from consentgate.core.decode import ConsentFields, consent_decoder
from consentgate.core.model import Choice, ConsentState, consent_state

Keyed = tuple[bytes | None, bytes | None]

PURPOSE = "ai-training"
MAX_DEPTH = 8
ANYWHERE = ConsentFields()
decode_one_by_one = consent_decoder(ANYWHERE, PURPOSE, MAX_DEPTH)
GRANTED = consent_state("GB", True, Choice.GRANTED)


def usual(subject: str = "m1", at: Any = "2024-09-18T10:00:00Z", **more: Any) -> bytes:
    choices = {PURPOSE: {"choice": "granted", "at": at}}
    state = {"subject": subject, "jurisdiction": "GB", "adult": True, "choices": choices}
    return json.dumps({**state, **more}, separators=(",", ":")).encode()


def is_read_as_one_by_one(
    records: Iterable[Keyed], purpose: str = PURPOSE, fields: ConsentFields = ANYWHERE
) -> bool:
    """Of each of them twice, in this order: what was read before must not make a difference."""
    strict = consent_decoder(fields, purpose, MAX_DEPTH)
    decode = decoding_alike_once(strict)
    return all(decode(key, value) == strict(key, value) for key, value in records for _ in range(2))


class Counting:
    """The strict decoder, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(
        self, key: bytes | None, value: bytes | None
    ) -> tuple[ConsentState | None, str | None]:
        self.asked += 1
        return decode_one_by_one(key, value)


# What is remembered.


def test_records_that_differ_in_their_subject_and_in_digits_are_decoded_once() -> None:
    strict = Counting()
    decode = decoding_alike_once(strict)
    for _ in range(2):
        assert decode(b"m1", usual("m1")) == (GRANTED, None)
    first = strict.asked
    for number in range(2, 100):
        value = usual(f"m-{number}@x.org", at=f"2023-01-{number:02}T00:00:00Z")
        assert decode(f"m-{number}@x.org".encode(), value) == (GRANTED, None)
    assert strict.asked == first
    assert decode(b"m1", usual("m1", adult=False))[0] is consent_state("GB", False, Choice.GRANTED)


def test_times_in_milliseconds_are_alike_as_well() -> None:
    strict = Counting()
    decode = decoding_alike_once(strict)
    for _ in range(2):
        decode(b"m1", usual("m1", at=1726826400000, version=3))
    first = strict.asked
    assert decode(b"m2", usual("m2", at=1800000000001, version=0)) == (GRANTED, None)
    assert strict.asked == first


def test_what_cannot_be_remembered_is_looked_at_once() -> None:
    strict = Counting()
    decode = decoding_alike_once(strict)
    for _ in range(2):
        decode(b"m1", usual("m1", v2=True))
    first = strict.asked
    for number in range(2, 10):
        decode(b"m%d" % number, usual(f"m{number}", v2=True))
    assert strict.asked == first + 8


def test_a_pattern_that_comes_once_is_not_looked_at() -> None:
    # Where each record has a text of its own, that would take several times as long as to decode.
    strict = Counting()
    decode = decoding_alike_once(strict)
    for number in range(26):
        decode(b"m1", usual("m1", event=chr(97 + number)))
    assert strict.asked == 26


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    strict = Counting()
    decode = decoding_alike_once(strict)

    def costs(**more: Any) -> int:
        before = strict.asked
        for _ in range(9):
            decode(b"m1", usual("m1", **more))
        return strict.asked - before

    # For two records, and once for their pattern.
    assert costs(x="-") == 3
    assert costs(x="-" * PATTERN_BYTES_MAX) == 9
    for number in range(PATTERNS_MAX):
        # Letters for the digits of a number that tells the patterns apart.
        decode(b"m1", usual("m1", y=f"{number:o}".translate(str.maketrans("01234567", "abcdefgh"))))
    assert costs(z="new") == 9
    assert costs(x="-") == 0


# What may not make a difference.


def test_a_key_is_text_and_nothing_else() -> None:
    key = b'm2","adult":true,"x":"y'
    value = usual("m1").replace(b"m1", key)
    assert is_read_as_one_by_one([(b"m1", usual("m1")), (key, value)])
    for odd in (b"m\\", b"m\n", b"m\0", b"m\xff", b"\xed\xa0\x80", "mü".encode(), b"\x7f", b""):
        value = usual("m1").replace(b"m1", odd)
        assert is_read_as_one_by_one([(b"m1", usual("m1")), (odd, value)])


def test_what_stands_for_the_subject_is_no_subject() -> None:
    value = usual("m1").replace(b'"m1"', b"\0")
    assert is_read_as_one_by_one([(b"m1", usual("m1")), (b"m1", value), (b"m2", value)])


def test_the_subject_is_looked_for_where_it_stands() -> None:
    for name in ("m1", "0", "1", "subject", "x", ":", ",", '":"'):
        key, own = name.encode(), json.dumps(name)
        twice = f'{{"x":{own},"subject":{own}}}'
        other = f'{{"x":"m2","subject":{own}}}'
        assert is_read_as_one_by_one(
            [(key, twice.encode()), (b"m2", other.encode()), (key, usual(name))]
        )


def test_digits_tell_names_apart() -> None:
    first, second = (usual("m1", choices={ai: {"choice": "withdrawn"}}) for ai in ("ai-1", "ai-2"))
    assert is_read_as_one_by_one([(b"m1", first), (b"m1", second)], purpose="ai-2")
    names = usual("m1", x1=1, x2=1)
    assert is_read_as_one_by_one([(b"m1", names), (b"m1", names.replace(b"x2", b"x1"))])


def test_digits_tell_names_within_others_apart() -> None:
    fields = ConsentFields(adult="data.v2.adult")
    first, second = (usual("m1", data={name: {"adult": False}}) for name in ("v1", "v2"))
    assert is_read_as_one_by_one([(b"m1", first), (b"m1", second)], fields=fields)


def test_digits_say_which_character_is_escaped() -> None:
    first = usual("m1")[:-1] + b',"\\u1111dult":true}'
    second = usual("m1")[:-1] + b',"\\u0061dult":true}'
    assert decode_one_by_one(b"m1", first)[1] is None
    assert decode_one_by_one(b"m1", second)[1] == "duplicate-key"
    assert is_read_as_one_by_one([(b"m1", first), (b"m1", second)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("12", "02"),
        ("-12", "-02"),
        ("[7,12]", "[7,02]"),
        ("1e111", "9e999"),
        ("[1e111]", "[9e999]"),
    ],
)
def test_digits_make_a_number_one_that_cannot_be_read(first: str, second: str) -> None:
    one, other = (usual("m1")[:-1] + f',"x":{x}}}'.encode() for x in (first, second))
    assert decode_one_by_one(b"m1", one)[1] is None
    assert decode_one_by_one(b"m1", other)[1] == "not-json"
    assert is_read_as_one_by_one([(b"m1", one), (b"m2", one.replace(b"m1", b"m2")), (b"m1", other)])


def test_a_digit_outside_of_values_is_no_json() -> None:
    for place in range(len(usual())):
        value = usual()[:place] + b"7" + usual()[place:]
        assert is_read_as_one_by_one([(b"m1", usual()), (b"m1", value)])


# Whatever comes.

SUBJECTS = st.sampled_from(
    ["m1", "m2", "0", "1", "adult", "a b", "ü", ":", ",", '"', "\\", "", "GB"]
)
TIMES = st.sampled_from(["2024-09-18T10:00:00Z", "2023-01-02T03:04:05.678Z", 1726826400000, 0, 1.5])
ENTRIES = st.fixed_dictionaries(
    {"choice": st.sampled_from([*map(str, Choice), "maybe"])},
    optional={"at": TIMES, "source": st.sampled_from(["web", "app2", None, [1, {"a": 2}]])},
)
STATES = st.fixed_dictionaries(
    {"subject": SUBJECTS},
    optional={
        "jurisdiction": st.sampled_from(["GB", "FR", "G1", None, 5]),
        "adult": st.sampled_from([True, False, None, 1]),
        "choices": st.dictionaries(st.sampled_from([PURPOSE, "ads", "ads1", "ads2"]), ENTRIES),
        "version": st.sampled_from([0, 7, 10, 42, -3, 2**64, 10**400, 1.25, "v1"]),
        "n1": st.none(),
        "n2": st.none(),
    },
)
PIECES = st.sampled_from(
    [
        *(b"0", b"1", b"00", b"9", b"-", b".", b"e", b" ", b"\t", b"\0", b"m1", b"m2", b"null"),
        *(b'"', b"\\", b"\\u0061", b"\\u1111", b"\\ud800", b"\xff", b"\xc3\xbc", b"\xef\xbb\xbf"),
        *(b"{", b"}", b"[", b"]", b",", b":", b'{"a":' * MAX_DEPTH, b"[" * MAX_DEPTH),
        *(b'"m1"', b'"0"', b'"subject":"m1",', b'"adult":true,', b',"adult":true'),
        *(b"NaN", b"1e999", b"9" * 400),
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A record in some order of its members, compact or not, escaped or not."""
    state = draw(STATES)
    members = draw(st.permutations(list(state.items()))) if draw(st.booleans()) else state.items()
    separators = draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": "), (" ,", " :")]))
    ascii_only = draw(st.booleans())
    return json.dumps(dict(members), separators=separators, ensure_ascii=ascii_only).encode()


@st.composite
def damaged(draw: st.DrawFn, value: bytes) -> bytes:
    """The same with other digits, and now and then with some other change."""
    if draw(st.booleans()):
        shift = draw(st.integers(1, 9))
        value = bytes(48 + (byte - 48 + shift) % 10 if 48 <= byte < 58 else byte for byte in value)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        start = draw(st.integers(0, len(value)))
        end = draw(st.integers(start, min(start + 4, len(value))))
        value = value[:start] + draw(PIECES | st.binary(max_size=2)) + value[end:]
    return value


@st.composite
def rows(draw: st.DrawFn) -> list[Keyed]:
    """A record, others made of it, and keys that are mostly theirs."""
    first = draw(texts())
    values = [first, first, *(draw(damaged(first)) for _ in range(draw(st.integers(1, 6))))]
    return [(draw(keys(value)), value) for value in values]


@st.composite
def keys(draw: st.DrawFn, value: bytes) -> bytes | None:
    """Mostly what the value names as its subject."""
    try:
        named = json.loads(value)["subject"].encode(errors="surrogatepass")
    except (ValueError, KeyError, TypeError, AttributeError):
        named = b"m1"
    others = [b"m1", b"m2", b"", None, b"0", b'm1","adult":true,"x":"m1', b"subject", b":", b"m\0"]
    return draw(st.sampled_from([*[named] * 9, *others]))


@settings(max_examples=1_000)
@given(rows())
@example([(b"m1", usual("m1")), (b"m1", None), (None, usual("m1")), (None, None)])
def test_records_are_read_as_they_are_one_by_one(drawn: list[Keyed]) -> None:
    assert is_read_as_one_by_one(drawn)


@settings(max_examples=300)
@given(st.data())
def test_damaged_records_are_read_as_they_are_one_by_one(data: st.DataObject) -> None:
    whole = usual("m1", at=1726826400000, source="web", version=12)
    value = data.draw(damaged(whole))
    key = data.draw(keys(value))
    assert is_read_as_one_by_one([(b"m1", whole), (key, value), (key, value)])
