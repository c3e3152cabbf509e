"""Reading content and consent: what is accepted, and the reason for whatever is not."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.decode import (
    ConsentFields,
    ContentEvent,
    ContentFields,
    consent_decoder,
    content_decoder,
    nested_too_deep,
)
from consentgate.core.model import UNREADABLE, Choice, ConsentState, Reason, consent_state
from unit.core.reference import TIME, Pairs, read_consent, read_content

MAX_DEPTH = 64
BOM = b"\xef\xbb\xbf"
NAMES = ("id", "subject", "kind", "visibility", "created_at")
EVENT: dict[str, Any] = {
    "id": "e1",
    "subject": "m1",
    "kind": "post",
    "visibility": "public",
    "created_at": "2024-09-20T10:00:00Z",
    "body": {"text": "hello"},
}
DECODED = ContentEvent("e1", "m1", "post", "public", 1726826400000)
ANYWHERE = ContentFields()

decode_content = content_decoder(ANYWHERE, MAX_DEPTH)


def content(**changes: Any) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def with_raw(name: bytes, raw: bytes) -> bytes:
    """The event with one more member, whose value is `raw` as it stands."""
    return content()[:-1] + b', "' + name + b'": ' + raw + b"}"


def nested(levels: int, brackets: bytes = b"[]") -> bytes:
    opening, closing = (b'{"a":', b"}") if brackets == b"{}" else (b"[", b"]")
    return opening * levels + b"1" + closing * levels


# Content: what is read.


def test_a_content_event_is_read() -> None:
    assert decode_content(content()) == DECODED


def test_the_body_is_optional_and_whatever_it_likes() -> None:
    without = {name: EVENT[name] for name in NAMES}
    assert decode_content(json.dumps(without).encode()) == DECODED
    bodies: list[Any] = [None, 5, "text", [], {"deep": [{}]}]
    for body in bodies:
        assert decode_content(content(body=body)) == DECODED


def test_unknown_members_and_white_space_are_passed_over() -> None:
    pretty = json.dumps({"x": [1, {}], **EVENT, "id2": None}, indent=3).encode()
    assert decode_content(b" \r\n\t" + pretty + b"\n") == DECODED


def test_escapes_and_characters_mean_the_same() -> None:
    escaped = content(subject="ü😀")
    assert b"\\u00fc\\ud83d\\ude00" in escaped
    plain = json.dumps({**EVENT, "subject": "ü😀"}, ensure_ascii=False).encode()
    assert decode_content(escaped) == decode_content(plain)
    assert decode_content(content().replace(b'"id"', b'"\\u0069d"')) == DECODED


@pytest.mark.parametrize("name", NAMES)
def test_every_required_field_is_required(name: str) -> None:
    without = {key: value for key, value in EVENT.items() if key != name}
    assert decode_content(json.dumps(without).encode()) is Reason.MISSING_FIELD


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["", None, True, False, 1.5, [], {}, ["x"], {"x": "y"}])
def test_a_field_that_is_empty_or_of_the_wrong_type_is_missing(name: str, wrong: Any) -> None:
    assert decode_content(content(**{name: wrong})) is Reason.MISSING_FIELD


@pytest.mark.parametrize("name", NAMES[:4])
def test_an_integer_id_is_missing(name: str) -> None:
    assert decode_content(content(**{name: 1})) is Reason.MISSING_FIELD


@pytest.mark.parametrize(
    "value", [b"[]", b"1", b"null", b'"text"', b"true", b"{}", b'["id"]', b'{"id": "e1"}']
)
def test_json_that_is_no_event_misses_its_fields(value: bytes) -> None:
    assert decode_content(value) is Reason.MISSING_FIELD


# Content: the time of its creation.


@pytest.mark.parametrize(
    ("created_at", "ms"),
    [
        ("2024-09-20T10:00:00Z", 1726826400000),
        ("2024-09-20t10:00:00z", 1726826400000),
        ("2024-09-20T12:00:00+02:00", 1726826400000),
        ("2024-09-20T06:30:00-03:30", 1726826400000),
        ("2024-09-20T10:00:00-00:00", 1726826400000),
        ("2024-09-20T10:00:00.1Z", 1726826400100),
        ("2024-09-20T10:00:00.123Z", 1726826400123),
        ("2024-09-20T10:00:00.123999Z", 1726826400123),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("0001-01-01T00:00:00+23:59", -62135683140000),
        ("9999-12-31T23:59:59-23:59", 253402387139000),
        (0, 0),
        (-5, -5),
        (1726826400000, 1726826400000),
        (10**30, 10**30),
    ],
)
def test_a_time_is_rfc_3339_with_a_zone_or_epoch_milliseconds(
    created_at: str | int, ms: int
) -> None:
    event = decode_content(content(created_at=created_at))
    assert isinstance(event, ContentEvent)
    assert event.created_at_ms == ms


@pytest.mark.parametrize(
    "created_at",
    [
        "2024-09-20T10:00:00",
        "2024-09-20",
        "2024-09-20T10:00Z",
        "2024-02-30T10:00:00Z",
        "2024-09-20T24:00:00Z",
        "2024-09-20T10:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "2024-09-20T10:00:00Z ",
        "2024-09-20T10:00:00X",
        "2024-09-20T10-00-00Z",
        "2024-09-20T10:00:0\u0661Z",
        "1726826400000",
        "yesterday",
        1726826400000.0,
        1e3,
        True,
        False,
    ],
)
def test_anything_else_is_no_time(created_at: Any) -> None:
    assert decode_content(content(created_at=created_at)) is Reason.MISSING_FIELD


@pytest.mark.parametrize("zone", ["+0200", "-0000"])
def test_a_zone_without_its_colon_is_no_rfc_3339(zone: str) -> None:
    value = content(created_at=f"2024-09-20T10:00:00{zone}")
    assert decode_content(value) is Reason.MISSING_FIELD


def test_a_time_is_rounded_down_however_fine_it_is() -> None:
    event = decode_content(content(created_at="2024-09-20T09:59:59.9999999Z"))
    assert isinstance(event, ContentEvent)
    assert event.created_at_ms == 1726826399999


def test_an_integer_beyond_all_measure_is_no_time_and_no_error() -> None:
    value = content().replace(b'"2024-09-20T10:00:00Z"', b"9" * 5_000)
    assert decode_content(value) is Reason.MISSING_FIELD


# Content: what is no JSON.

_NOT_JSON = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b'"\xff"',
    b'"\xc0\xaf"',
    b'"\xed\xa0\x80"',
    b'"\xf5\x80\x80\x80"',
    b'"cut \xe2\x82"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\x41"',
    b'"\\u12"',
    b'"a\nb"',
    b'"a\x00b"',
    b"01",
    b"1.",
    b".5",
    b"+1",
    b"1e",
    b"-",
    b"0x10",
    b"nul",
    b"True",
    b"'x'",
    b"[1,]",
    b'{"a":1,}',
    b'{"a"}',
    b"{a:1}",
    b"[1 2]",
    b"/* */ 1",
    b"",
]


@pytest.mark.parametrize("raw", _NOT_JSON)
def test_what_is_no_json_is_undecodable_also_where_nobody_looks(raw: bytes) -> None:
    assert decode_content(with_raw(b"unused", raw)) is Reason.UNDECODABLE
    assert decode_content(with_raw(b"unused", b'[{"a": ' + raw + b"}]")) is Reason.UNDECODABLE
    assert decode_content(with_raw(b"subject", raw)) is Reason.UNDECODABLE


@pytest.mark.parametrize("key", [b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\n", b"\\q"])
def test_a_key_that_is_no_json_is_undecodable(key: bytes) -> None:
    assert decode_content(with_raw(key, b"1")) is Reason.UNDECODABLE


def test_a_byte_order_mark_is_undecodable() -> None:
    assert decode_content(BOM + content()) is Reason.UNDECODABLE
    assert decode_content(content().decode().encode("utf-16")) is Reason.UNDECODABLE


@pytest.mark.parametrize("value", [b"", b" ", b"\x00", b"\x00\x00\x00\x00\x07{}", b"x", b"{} {}"])
def test_what_is_no_json_at_all_is_undecodable(value: bytes) -> None:
    assert decode_content(value) is Reason.UNDECODABLE


def test_an_event_that_is_cut_off_anywhere_is_undecodable() -> None:
    whole = content()
    for end in range(len(whole)):
        assert decode_content(whole[:end]) is Reason.UNDECODABLE


@pytest.mark.parametrize("after", [b"x", b"{}", b",", b"\x00", b"]", b"}"])
def test_an_event_with_something_after_it_is_undecodable(after: bytes) -> None:
    assert decode_content(content() + after) is Reason.UNDECODABLE


def test_being_no_json_outweighs_a_missing_field() -> None:
    # Whether a record can be read never depends on where in it the first problem stands.
    assert decode_content(b'{"id": 5, "x": NaN}') is Reason.UNDECODABLE
    assert decode_content(b'{"id": 5') is Reason.UNDECODABLE


# Content: how deep it may nest.


@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_sixty_four_levels_are_read_and_sixty_five_are_undecodable(brackets: bytes) -> None:
    # The event itself is the first level.
    assert decode_content(with_raw(b"unused", nested(63, brackets))) == DECODED
    assert decode_content(with_raw(b"unused", nested(64, brackets))) is Reason.UNDECODABLE


def test_levels_are_counted_not_brackets() -> None:
    assert decode_content(with_raw(b"unused", b"[" + b"[],{}," * 500 + b"1]")) == DECODED


@pytest.mark.parametrize(
    "text", ["[" * 200, "{" * 200, '"[' * 100, '\\"[' * 100, "\\[" * 100, "[\\", '\\\\"' + "[" * 99]
)
def test_brackets_in_strings_and_keys_are_text(text: str) -> None:
    assert decode_content(content(body={"text": text})) == DECODED
    assert decode_content(content(body={text: "text"})) == DECODED
    # And they hide none of the brackets that come after them.
    assert decode_content(content(body=[text, json.loads(nested(63))])) is Reason.UNDECODABLE


def test_an_early_field_does_not_hide_a_deep_one() -> None:
    assert decode_content(b'{"id": 5, "x": ' + nested(70) + b"}") is Reason.UNDECODABLE


@pytest.mark.parametrize("max_depth", [1, 2, 250])
def test_the_limit_of_depth_is_the_configured_one(max_depth: int) -> None:
    decode = content_decoder(ANYWHERE, max_depth)
    flat = json.dumps({name: EVENT[name] for name in NAMES}).encode()[:-1]
    fits = flat + b', "x": ' + nested(max_depth - 1) + b"}"
    assert decode(fits) == DECODED
    assert decode(flat + b', "x": ' + nested(max_depth) + b"}") is Reason.UNDECODABLE


def test_a_string_without_an_end_costs_no_more_than_one_with_an_end() -> None:
    # Each of its quotes could be taken for the start of a string that reaches to the end.
    hostile = b"[]" * 65 + b'"' + b'\\"' * 450_000
    started = time.process_time()
    assert not nested_too_deep(hostile, MAX_DEPTH)
    assert decode_content(hostile) is Reason.UNDECODABLE
    assert time.process_time() - started < 2


# Content: repeated keys, and fields at other places.


@pytest.mark.parametrize("name", NAMES)
def test_of_a_repeated_key_the_last_counts(name: str) -> None:
    twice = with_raw(name.encode(), b'"2024-09-20T10:00:01Z"')
    last = content(**{name: "2024-09-20T10:00:01Z"})
    assert decode_content(twice) == decode_content(last) != DECODED


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [b"[]", b"{}", b"1.5", b"null", b"true", b'""'])
def test_of_a_repeated_key_only_the_last_is_looked_at(name: str, wrong: bytes) -> None:
    member = b'"' + name.encode() + b'": '
    wrong_first = b"{" + member + wrong + b", " + content()[1:]
    assert decode_content(wrong_first) == DECODED
    assert decode_content(with_raw(name.encode(), wrong)) is Reason.MISSING_FIELD


NESTED = ContentFields("meta.id", "meta.author.id", "type", "meta.seen-by", "@timestamp", "payload")


def nested_event(**meta: Any) -> dict[str, Any]:
    known = {"id": "e1", "author": {"id": "m1"}, "seen-by": "public"}
    return {"meta": {**known, **meta}, "type": "post", "@timestamp": 1726826400000}


def test_fields_are_found_at_dotted_paths() -> None:
    decode = content_decoder(NESTED, MAX_DEPTH)
    assert decode(json.dumps(nested_event()).encode()) == DECODED
    assert decode(json.dumps(nested_event(author={})).encode()) is Reason.MISSING_FIELD
    assert decode(json.dumps(nested_event(author="m1")).encode()) is Reason.MISSING_FIELD
    assert decode(json.dumps({"type": "post"}).encode()) is Reason.MISSING_FIELD
    assert decode(content()) is Reason.MISSING_FIELD


def test_a_repeated_parent_replaces_all_that_was_below_it() -> None:
    decode = content_decoder(NESTED, MAX_DEPTH)
    text = json.dumps(nested_event())
    assert decode((text[:-1] + ', "meta": {"id": "e2"}}').encode()) is Reason.MISSING_FIELD
    assert decode(('{"meta": 5, ' + text[1:]).encode()) == DECODED
    assert decode(('{"meta": {"id": "e0", "author": 1}, ' + text[1:]).encode()) == DECODED


@pytest.mark.parametrize(
    "name", ["created-at", "@id", "class", "_id", "a b", "1", "é", "__dict__", "__slots__", "None"]
)
def test_a_field_may_have_any_name_that_json_allows(name: str) -> None:
    decode = content_decoder(ContentFields(id=name), MAX_DEPTH)
    value = {**EVENT, name: "e1", "id": 7}
    assert decode(json.dumps(value).encode()) == DECODED


@pytest.mark.parametrize(
    "fields",
    [
        ContentFields(id="subject"),
        ContentFields(id="subject.id"),
        ContentFields(subject="id.subject"),
        ContentFields(id="meta", created_at="meta.at"),
        ContentFields(id="meta.at.id", created_at="meta.at"),
        ContentFields(kind="meta.x", visibility="meta.x"),
    ],
)
def test_a_path_through_another_field_is_refused(fields: ContentFields) -> None:
    with pytest.raises(ValueError, match="meets another field's path"):
        content_decoder(fields, MAX_DEPTH)


@pytest.mark.parametrize("path", ["", ".", "meta.", ".id", "meta..id"])
def test_a_path_with_an_empty_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="has an empty name in it"):
        content_decoder(ContentFields(id=path), MAX_DEPTH)


# Content against the reference.


def written(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["[", "{", '"', "\\", '\\"[', "\ud800", "\udc00x", "😀", "\x00", "\x7f", "é"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.tuples(TEXTS, inner), max_size=4).map(Pairs)
        | st.tuples(inner, st.integers(55, 70)).map(lambda drawn: json.loads(deep(*drawn)))
    ),
    max_leaves=8,
)


def deep(inner: Any, levels: int) -> str:
    return "[" * levels + ("{}" if isinstance(inner, list) else "1") + "]" * levels


TIMES = st.one_of(
    st.integers(-(10**18), 10**18),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
    st.from_regex(TIME, fullmatch=True),
    st.sampled_from(["2024-09-20T10:00:00", "2024-09-20", 1.0, True, ""]),
)
PLACES = (ANYWHERE, ContentFields(id="a.id", subject="a.b.c", kind="a.kind"))
FIELDS = st.sampled_from(PLACES)


@st.composite
def events(draw: st.DrawFn, fields: ContentFields) -> Pairs:
    """Mostly events: fields at their paths, in any order, now and then repeated or broken."""
    event = Pairs()
    for name in NAMES:
        broken = draw(st.integers(0, 19)) == 0
        right = TIMES if name == "created_at" else TEXTS.filter(bool)
        put(event, getattr(fields, name).split("."), draw(JSON if broken else right))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        path = getattr(fields, draw(st.sampled_from(NAMES))).split(".")
        place = draw(st.integers(0, len(event)))
        event.insert(place, (path[0], draw(JSON | TEXTS | TIMES)))
    event.extend(draw(st.lists(st.tuples(TEXTS, JSON), max_size=2)))
    return event


def put(event: Pairs, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inside = next((v for k, v in event if k == name), None)
        if inside is None:
            event.append((name, inside := Pairs()))
        event = inside
    event.append((path[-1], value))


DECODERS = {fields: content_decoder(fields, MAX_DEPTH) for fields in PLACES}


def agrees(value: bytes, fields: ContentFields) -> bool:
    return DECODERS[fields](value) == read_content(value, fields, MAX_DEPTH)


@settings(max_examples=250)
@given(st.data())
def test_events_are_read_as_by_the_reference(data: st.DataObject) -> None:
    fields = data.draw(FIELDS)
    value = written(data.draw(events(fields))).encode(errors="surrogatepass")
    assert agrees(value, fields)


@settings(max_examples=150)
@given(JSON, FIELDS)
def test_arbitrary_json_is_read_as_by_the_reference(value: Any, fields: ContentFields) -> None:
    assert agrees(written(value).encode(errors="surrogatepass"), fields)


@settings(max_examples=150)
@given(st.binary(max_size=60), FIELDS)
def test_arbitrary_bytes_are_read_as_by_the_reference(value: bytes, fields: ContentFields) -> None:
    assert agrees(value, fields)


@settings(max_examples=250)
@given(st.data())
def test_damaged_events_are_read_as_by_the_reference(data: st.DataObject) -> None:
    value = content()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(value)))
        end = data.draw(st.integers(start, min(start + 3, len(value))))
        damage = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b"{", b"}", b","]))
        value = value[:start] + damage + value[end:]
    assert agrees(value, ANYWHERE)


# Consent: what is read.

STATE: dict[str, Any] = {
    "subject": "m1",
    "jurisdiction": "GB",
    "adult": True,
    "choices": {"ai-training": {"choice": "granted", "at": "2024-09-18T10:00:00Z"}},
}
decode_consent = consent_decoder(ConsentFields(), "ai-training", MAX_DEPTH)


def consent(**changes: Any) -> bytes:
    return json.dumps({**STATE, **changes}).encode()


def readable(value: bytes, key: bytes | None = b"m1") -> ConsentState:
    state, problem = decode_consent(key, value)
    assert problem is None
    assert state is not None
    assert state is not UNREADABLE
    return state


def unreadable(value: bytes, key: bytes | None = b"m1") -> str:
    state, problem = decode_consent(key, value)
    assert state is UNREADABLE
    assert problem is not None
    return problem


def test_a_consent_record_is_read() -> None:
    assert readable(consent()) is consent_state("GB", True, Choice.GRANTED)


def test_states_of_the_same_values_are_the_same_object() -> None:
    assert readable(consent(extra=[1])) is readable(consent())
    assert readable(consent(adult=False)) is not readable(consent())


@pytest.mark.parametrize("choice", list(Choice))
def test_each_choice_is_read(choice: Choice) -> None:
    state = readable(consent(choices={"ai-training": {"choice": str(choice)}}))
    assert state.choice is choice


def test_a_tombstone_is_no_consent_record_whatever_its_key() -> None:
    assert decode_consent(b"m1", None) == (None, None)
    assert decode_consent(None, None) == (None, None)


def test_without_a_jurisdiction_it_is_unknown() -> None:
    without = {key: value for key, value in STATE.items() if key != "jurisdiction"}
    assert readable(json.dumps(without).encode()).jurisdiction is None
    assert readable(consent(jurisdiction=None)).jurisdiction is None


@pytest.mark.parametrize("code", ["gb", "Gb", "UK", "EU", "XK", "GBR", " GB", "", "*", "EEA", "ZZ"])
def test_what_is_no_upper_case_country_code_is_an_unknown_jurisdiction(code: str) -> None:
    assert readable(consent(jurisdiction=code)).jurisdiction is None


@pytest.mark.parametrize("code", ["RE", "GP", "GI", "JE", "PR", "HK", "AX", "NO"])
def test_a_territory_counts_as_itself(code: str) -> None:
    assert readable(consent(jurisdiction=code)).jurisdiction == code


def test_without_a_word_on_age_it_is_unknown() -> None:
    without = {key: value for key, value in STATE.items() if key != "adult"}
    assert readable(json.dumps(without).encode()).adult is None
    assert readable(consent(adult=None)).adult is None
    assert readable(consent(adult=False)).adult is False


def test_without_choices_nothing_was_chosen() -> None:
    without = {key: value for key, value in STATE.items() if key != "choices"}
    assert readable(json.dumps(without).encode()).choice is None
    assert readable(consent(choices={})).choice is None


def test_only_the_choice_for_the_policys_purpose_counts() -> None:
    others = {"ads": {"choice": "granted"}, "AI-training": {"choice": "granted"}}
    assert readable(consent(choices=others)).choice is None
    both = {"ads": {"choice": "granted"}, "ai-training": {"choice": "withdrawn"}}
    assert readable(consent(choices=both)).choice is Choice.WITHDRAWN


def test_consent_fields_are_found_at_dotted_paths() -> None:
    fields = ConsentFields("who.id", "who.lives.in", "who.of-age", "said.so")
    decode = consent_decoder(fields, "ai-training", MAX_DEPTH)
    who = {"id": "m1", "lives": {"in": "FR"}, "of-age": False}
    value = {"who": who, "said": {"so": {"ai-training": {"choice": "denied"}}}}
    assert decode(b"m1", json.dumps(value).encode()) == (
        consent_state("FR", False, Choice.DENIED),
        None,
    )
    assert decode(b"m1", b'{"who": {"id": "m1"}}') == (consent_state(None, None, None), None)
    assert decode(b"m1", b'{"who": {"id": "m1", "lives": "FR"}}') == (UNREADABLE, "wrong-type")


def test_an_unreadable_state_is_no_state_without_values() -> None:
    assert consent_state(None, None, None) is not UNREADABLE


# Consent: what cannot be trusted.


@pytest.mark.parametrize("raw", _NOT_JSON)
def test_consent_that_is_no_json_is_unreadable(raw: bytes) -> None:
    assert unreadable(raw) == "not-json"
    assert unreadable(consent()[:-1] + b', "x": ' + raw + b"}") == "not-json"
    assert unreadable(consent()[:-1] + b', "x": [{"y": ' + raw + b"}]}") == "not-json"


@pytest.mark.parametrize("value", [b"", b"\xff", BOM + consent(), consent()[:-1], consent() + b"x"])
def test_consent_that_is_not_one_json_text_is_unreadable(value: bytes) -> None:
    assert unreadable(value) == "not-json"


@pytest.mark.parametrize("value", [b"[]", b"null", b"1", b'"m1"', b"true"])
def test_consent_that_is_no_object_is_unreadable(value: bytes) -> None:
    assert unreadable(value) == "wrong-type"


def test_consent_whose_path_leads_through_something_else_is_unreadable() -> None:
    decode = consent_decoder(ConsentFields(adult="person.adult"), "ai-training", MAX_DEPTH)
    value = consent()[:-1] + b', "person": "m1"}'
    assert decode(b"m1", value) == (UNREADABLE, "wrong-type")


@pytest.mark.parametrize(
    "value",
    [
        consent()[:-1] + b', "subject": "m1"}',
        consent()[:-1] + b', "adult": true}',
        consent()[:-1] + b', "x": 1, "x": 1}',
        consent()[:-1] + b', "x": 1, "\\u0078": 1}',
        consent()[:-1] + b', "x": [{"y": {"z": 1, "z": 2}}]}',
        consent().replace(b'"choice":', b'"choice": "granted", "choice":'),
        consent().replace(b'{"ai-training":', b'{"ai-training": {}, "ai-training":'),
    ],
)
def test_a_repeated_key_at_any_level_makes_consent_unreadable(value: bytes) -> None:
    assert unreadable(value) == "duplicate-key"


@pytest.mark.parametrize("key", [None, b"", b"m2", b"M1", b"m1 ", b"\xff", b'"m1"'])
def test_a_key_that_is_not_the_subject_makes_consent_unreadable(key: bytes | None) -> None:
    assert unreadable(consent(), key) == "key-is-not-subject"


def test_the_key_is_compared_as_utf8() -> None:
    readable(consent(subject="ü😀"), "ü😀".encode())
    assert unreadable(consent(subject="ü"), "ü".encode("latin-1")) == "key-is-not-subject"


@pytest.mark.parametrize("subject", [None, "", 1, True, ["m1"], {"id": "m1"}])
def test_consent_without_a_subject_is_unreadable(subject: Any) -> None:
    assert unreadable(consent(subject=subject)) == "no-subject"


def test_an_integer_subject_is_no_string_of_its_digits() -> None:
    assert unreadable(consent(subject=18446744073709551616), b"18446744073709551616")


@pytest.mark.parametrize(
    "changes",
    [
        {"jurisdiction": 44},
        {"jurisdiction": ["GB"]},
        {"jurisdiction": True},
        {"adult": "true"},
        {"adult": "false"},
        {"adult": 1},
        {"adult": 0},
        {"adult": {}},
        {"choices": None},
        {"choices": []},
        {"choices": "granted"},
        {"choices": {"ai-training": "granted"}},
        {"choices": {"ai-training": None}},
        {"choices": {"ai-training": ["granted"]}},
        {"choices": {"other": None}},
    ],
)
def test_a_wrong_type_makes_consent_unreadable(changes: dict[str, Any]) -> None:
    assert unreadable(consent(**changes)) == "wrong-type"


@pytest.mark.parametrize("purpose", ["ai-training", "something-else"])
@pytest.mark.parametrize(
    "choice", ["yes", "Granted", "granted ", "", None, True, 1, ["granted"], {"choice": "granted"}]
)
def test_an_unknown_choice_for_any_purpose_makes_consent_unreadable(
    purpose: str, choice: Any
) -> None:
    choices = {"ai-training": {"choice": "granted"}, purpose: {"choice": choice}}
    assert unreadable(consent(choices=choices)) == "unknown-choice"
    assert unreadable(consent(choices={purpose: {"at": 5}})) == "unknown-choice"


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_constant_that_json_does_not_have_makes_consent_unreadable(constant: bytes) -> None:
    assert unreadable(consent()[:-1] + b', "x": [' + constant + b"]}") == "not-json"


def test_consent_may_nest_sixty_four_levels_and_no_more() -> None:
    readable(consent()[:-1] + b', "x": ' + nested(63) + b"}")
    assert unreadable(consent()[:-1] + b', "x": ' + nested(64) + b"}") == "nested-too-deep"
    readable(consent(note="[" * 500))
    decode = consent_decoder(ConsentFields(), "ai-training", 250)
    compact = json.dumps(STATE, separators=(",", ":")).encode()[:-1]
    for brackets in (b"[]", b"{}"):
        assert decode(b"m1", compact + b',"x":' + nested(249, brackets) + b"}")[1] is None
        assert decode(b"m1", compact + b',"x":' + nested(250, brackets) + b"}")[1] == (
            "nested-too-deep"
        )


def test_an_integer_beyond_all_measure_makes_consent_unreadable() -> None:
    assert unreadable(consent()[:-1] + b', "x": ' + b"9" * 5_000 + b"}") == "not-json"


CHOICES = st.lists(
    st.tuples(
        st.sampled_from(["ai-training", "ads"]),
        st.sampled_from([*map(str, Choice), "maybe", None, 1]).map(lambda c: Pairs([("choice", c)]))
        | JSON,
    ),
    max_size=2,
).map(Pairs)
CONSENT = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.sampled_from(["m1", "m1", "m1", "m2", 5]),
        "jurisdiction": st.sampled_from(["GB", "NO", "RE", "gb", None, 5]),
        "adult": st.sampled_from([True, False, None, "true"]),
        "choices": CHOICES,
        "more": JSON,
    },
)


@settings(max_examples=300)
@given(CONSENT, st.lists(st.tuples(st.sampled_from(["subject", "x"]), JSON), max_size=1))
def test_consent_is_read_as_by_the_reference(drawn: dict[str, Any], more: Any) -> None:
    value = written(Pairs([*{"subject": "m1", **drawn}.items(), *more])).encode(
        errors="surrogatepass"
    )
    state, problem = decode_consent(b"m1", value)
    assert state is read_consent(b"m1", value, "ai-training", MAX_DEPTH)
    assert (problem is None) == (state is not UNREADABLE)


@settings(max_examples=150)
@given(st.none() | st.binary(max_size=4), st.binary(max_size=40) | JSON)
def test_whatever_cannot_be_trusted_raises_nothing(key: bytes | None, drawn: Any) -> None:
    value = drawn if isinstance(drawn, bytes) else written(drawn).encode(errors="surrogatepass")
    state, problem = decode_consent(key, value)
    assert (state is UNREADABLE) == (problem is not None)
