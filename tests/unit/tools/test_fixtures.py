"""Fixture files: what a line means, and what is refused with its file and line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.model import Reason
from consentgate.errors import EXIT_CONFIG, FixtureError
from consentgate.tools.fixtures import (
    ClockLine,
    FixtureRecord,
    find_fixtures,
    read_fixture,
    write_expectations,
)

KCAT = (
    '{"topic":"content-events","partition":2,"offset":17,"tstype":"create","ts":1726826400000,'
    '"broker":1,"headers":["k","v","n",null],"key":"m1","payload":"{\\"id\\": \\"e1\\"}"}'
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "story.jsonl"


def lines(file: Path, *texts: str | bytes) -> list[FixtureRecord | ClockLine]:
    file.write_bytes(b"\n".join(t.encode() if isinstance(t, str) else t for t in texts))
    return list(read_fixture(file))


def record(file: Path, **members: Any) -> FixtureRecord:
    (found,) = lines(file, json.dumps({"topic": "t", **members}))
    assert isinstance(found, FixtureRecord)
    return found


def refused(file: Path, text: str | bytes) -> str:
    with pytest.raises(FixtureError) as raised:
        lines(file, b"", text)
    assert raised.value.exit_code == EXIT_CONFIG
    start, message = str(raised.value).split(": ", 1)
    assert start == f"{file}:2"
    return message


# What a line means.


def test_what_kcat_prints_is_read(file: Path) -> None:
    assert lines(file, KCAT) == [
        FixtureRecord(
            line=1,
            topic="content-events",
            key=b"m1",
            value=b'{"id": "e1"}',
            timestamp_ms=1726826400000,
            headers=[("k", b"v"), ("n", None)],
            partition=2,
            offset=17,
        )
    ]


def test_a_topic_is_all_that_a_record_needs(file: Path) -> None:
    assert record(file) == FixtureRecord(1, "t", None, None, None)
    assert record(file, key=None, payload=None, ts=None, headers=None, expect=None) == record(file)


def test_blank_lines_and_comments_are_passed_over_and_counted(file: Path) -> None:
    found = lines(
        file, "# a story", "", '{"topic": "a"}', "  \t", '  # {"no": 1}', '{"topic": "b"}'
    )
    assert [each.line for each in found] == [3, 6]


def test_an_empty_file_has_no_lines(file: Path) -> None:
    assert lines(file) == []


def test_lines_come_in_file_order_whatever_their_times(file: Path) -> None:
    found = lines(file, '{"topic": "b", "ts": 5}', '{"now": 3}', '{"topic": "a", "ts": 4}')
    assert found == [
        FixtureRecord(1, "b", None, None, 5),
        ClockLine(2, 3),
        FixtureRecord(3, "a", None, None, 4),
    ]


def test_windows_line_ends_are_no_part_of_a_line(file: Path) -> None:
    assert lines(file, b'{"topic": "t"}\r', b'{"topic": "t"}\r') == [
        FixtureRecord(1, "t", None, None, None),
        FixtureRecord(2, "t", None, None, None),
    ]


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        ("text", b"text"),
        ("", b""),
        ("ü😀", "ü😀".encode()),
        ({"b": 1, "a": [True, None]}, b'{"b":1,"a":[true,null]}'),
        ({"ü": "ß\n"}, '{"ü":"ß\\n"}'.encode()),
        ({"big": 2**70, "real": 1.5}, b'{"big":1180591620717411303424,"real":1.5}'),
        ([], b"[]"),
        ({}, b"{}"),
        (0, b"0"),
        (False, b"false"),
        (float("nan"), b"NaN"),
    ],
)
def test_a_payload_is_text_or_the_compact_json_in_file_order(
    file: Path, payload: Any, value: bytes
) -> None:
    assert record(file, payload=payload).value == value


def test_raw_bytes_come_in_base64(file: Path) -> None:
    assert record(file, payload_base64="/wB7").value == b"\xff\x00{"
    assert record(file, payload_base64="").value == b""
    assert record(file, payload_base64="/w==", payload="x").value == b"\xff"


def test_bytes_that_are_no_utf8_can_be_written_as_python_reads_them(file: Path) -> None:
    odd = record(file, key="a\udcff", payload="\udc80", headers=["h", "\udcfe"])
    assert (odd.key, odd.value, odd.headers) == (b"a\xff", b"\x80", [("h", b"\xfe")])
    assert record(file, payload={"x": "\udc80"}).value == b'{"x":"\x80"}'


def test_the_timestamp_is_epoch_milliseconds_or_a_zoned_time(file: Path) -> None:
    assert record(file, ts=1726826400000).timestamp_ms == 1726826400000
    assert record(file, ts=0).timestamp_ms == 0
    assert record(file, ts="2024-09-20T12:00:00.5+02:00").timestamp_ms == 1726826400500


def test_the_clock_is_set_by_epoch_milliseconds_or_a_zoned_time(file: Path) -> None:
    assert lines(file, '{"now": "2024-09-20T10:00:00Z"}', '{"now": 5}') == [
        ClockLine(1, 1726826400000),
        ClockLine(2, 5),
    ]


@pytest.mark.parametrize(
    "expect",
    ["forward", "withhold", "quarantine"] + [f"{reason.verdict}:{reason}" for reason in Reason],
)
def test_an_outcome_can_be_expected_with_or_without_its_reason(file: Path, expect: str) -> None:
    assert record(file, expect=expect).expect == expect


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.text(max_size=5), JSON, st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3))))
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    key: str,
    payload: Any,
    headers: list[tuple[str, str]],
) -> None:
    file = tmp_path_factory.getbasetemp() / "drawn.jsonl"
    flat = [each for pair in headers for each in pair]
    read = record(file, key=key, payload=payload, headers=flat)
    assert read.key == key.encode()
    assert read.headers == [(name, value.encode()) for name, value in headers]
    if isinstance(payload, str):
        assert read.value == payload.encode()
    elif payload is None:
        assert read.value is None
    else:
        assert json.loads(read.value or b"") == payload


# What is refused.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "the line is not JSON"),
        ('{"topic": "t"', "the line is not JSON"),
        (b'{"topic": "\xff"}', "the line is not JSON"),
        ('{"topic": "t"} {}', "the line is not JSON"),
        ("[]", "the line is not a JSON object"),
        ("null", "the line is not a JSON object"),
        ("{}", '"topic" is missing or is not a string'),
        ('{"topic": 5}', '"topic" is missing or is not a string'),
        ('{"topic": "t", "value": 1, "epxect": 2}', "unknown key 'epxect'"),
        ('{"topic": "t", "key": 5}', '"key" must be a string or null'),
        ('{"topic": "t", "partition": "1"}', '"partition" must be an integer'),
        ('{"topic": "t", "offset": true}', '"offset" must be an integer'),
        ('{"topic": "t", "payload_base64": "?"}', '"payload_base64" is not base64'),
        ('{"topic": "t", "payload_base64": null}', '"payload_base64" is not base64'),
        ('{"topic": "t", "payload_base64": "/w"}', '"payload_base64" is not base64'),
        ('{"topic": "t", "headers": ["a"]}', '"headers" must be a list of names and values'),
        ('{"topic": "t", "headers": "ab"}', '"headers" must be a list of names and values'),
        ('{"topic": "t", "headers": ["a", 5]}', '"headers" must be a string or null'),
    ],
)
def test_a_line_that_means_nothing_is_refused(file: Path, text: str | bytes, message: str) -> None:
    assert refused(file, text).startswith(message)


@pytest.mark.parametrize("name", ["ts", "now"])
@pytest.mark.parametrize(
    "time", ["2024-09-20T10:00:00", "2024-09-20", "1726826400000", "", 1.5, True, [], {}]
)
def test_what_is_no_time_is_refused(file: Path, name: str, time: Any) -> None:
    message = refused(file, json.dumps({"topic": "t", name: time}))
    assert message.startswith(f'"{name}" must be epoch milliseconds or a time with a zone')


@pytest.mark.parametrize("expect", ["forwards", "", "minor", "Forward", 5, ["forward"]])
def test_what_is_no_outcome_is_not_expected(file: Path, expect: Any) -> None:
    message = refused(file, json.dumps({"topic": "t", "expect": expect}))
    assert message == '"expect" must begin with one of forward, withhold, quarantine'


@pytest.mark.parametrize("expect", ["forward:minor", "withhold:opted-in", "quarantine:minr"])
def test_a_reason_is_expected_with_its_own_verdict_only(file: Path, expect: str) -> None:
    message = refused(file, json.dumps({"topic": "t", "expect": expect}))
    assert message.startswith(f'"expect": {expect.partition(":")[0]} has the reasons ')


@pytest.mark.parametrize("name", ["key", "payload"])
@pytest.mark.parametrize("half", ["\ud800", "a\udc00b"])
def test_half_of_a_surrogate_pair_means_no_bytes(file: Path, name: str, half: str) -> None:
    message = f'"{name}" has half of a surrogate pair, which no bytes mean'
    assert refused(file, json.dumps({"topic": "t", name: half})) == message
    if name == "payload":
        assert refused(file, json.dumps({"topic": "t", name: {"x": [half]}})) == message


def test_a_payload_that_nests_too_deep_for_json_is_told_to_be_a_string(file: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    message = refused(file, f'{{"topic": "t", "payload": {deep}}}')
    assert message == "the line nests too deep, write such a payload as a string"
    assert record(file, payload=deep).value == deep.encode()


def test_lines_before_a_broken_one_are_read(file: Path) -> None:
    file.write_text('{"topic": "t"}\nbroken\n', "utf-8")
    reading = read_fixture(file)
    assert next(reading) == FixtureRecord(1, "t", None, None, None)
    with pytest.raises(FixtureError, match=r"story.jsonl:2: the line is not JSON"):
        next(reading)


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(FixtureError, match=r"story.jsonl: cannot be read: No such file"):
        list(read_fixture(file))
    with pytest.raises(FixtureError, match="cannot be read: Is a directory"):
        list(read_fixture(file.parent))


# Directories, and expectations that are written.


def test_a_directory_stands_for_all_fixtures_below_it(tmp_path: Path) -> None:
    (tmp_path / "b" / "empty").mkdir(parents=True)
    paths = [tmp_path / name for name in ("a.jsonl", "b/c.jsonl", "z.jsonl")]
    for path in (*paths, tmp_path / "b" / "other.json"):
        path.touch()
    assert find_fixtures([tmp_path]) == paths
    assert find_fixtures([paths[2], tmp_path / "b"]) == [paths[2], paths[1]]
    assert find_fixtures([tmp_path / "b" / "other.json"]) == [tmp_path / "b" / "other.json"]
    with pytest.raises(FixtureError, match=r"empty: there is no \*.jsonl below"):
        find_fixtures([tmp_path / "b" / "empty"])


FORWARD, MINOR = "forward:opted-in", "withhold:minor"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '{"topic": "t", "payload": {"a": 1}}',
            '{"topic": "t", "payload": {"a": 1}, "expect": ""}',
        ),
        ('{"topic":"t","payload":[ ] } ', '{"topic":"t","payload":[ ],"expect":"" } '),
        ('{"topic": "t", "expect" : "forward", "ts": 5}', '{"topic": "t", "expect" : "", "ts": 5}'),
        ('  {"expect":"forward","topic":"t"}\r', '  {"expect":"","topic":"t"}\r'),
        (
            '{"topic": "t", "payload": {"expect": "x"}, "key": "\\"expect\\": \\u00e9 é 😀"}',
            '{"topic": "t", "payload": {"expect": "x"}, "key": "\\"expect\\": \\u00e9 é 😀", '
            '"expect": ""}',
        ),
        ('{"expect":null,"topic":"t","expect":"x"}', '{"expect":null,"topic":"t","expect":""}'),
        (
            '{"topic": "t", "ts": 1.50e3, "key": null}',
            '{"topic": "t", "ts": 1.50e3, "key": null, "expect": ""}',
        ),
    ],
)
def test_an_expectation_is_written_and_every_other_byte_stays(
    file: Path, before: str, after: str
) -> None:
    around = ("# A comment\r\n\n", '\n{"now": 5}\nnot even JSON')
    file.write_bytes((around[0] + before + around[1]).encode())
    write_expectations(file, {3: MINOR})
    wanted = after.replace('"expect":""', f'"expect":"{MINOR}"')
    wanted = wanted.replace('"expect": ""', f'"expect": "{MINOR}"')
    wanted = wanted.replace('"expect" : ""', f'"expect" : "{MINOR}"')
    assert file.read_bytes() == (around[0] + wanted + around[1]).encode()


def test_bytes_that_json_takes_and_utf_8_does_not_stay(file: Path) -> None:
    line = b'{"topic": "t", "payload": "\xed\xa0\x80"}'
    file.write_bytes(line)
    write_expectations(file, {1: FORWARD})
    assert file.read_bytes() == line[:-1] + b', "expect": "forward:opted-in"}'


def test_an_update_replaces_the_file_or_leaves_it(tmp_path: Path, file: Path) -> None:
    file.write_text('{"topic": "t"}\n')
    file.chmod(0o640)
    with file.open("rb") as opened:
        write_expectations(file, {1: FORWARD})
        # Whoever has it open still reads the old one, whole.
        assert opened.read() == b'{"topic": "t"}\n'
    assert file.read_text() == '{"topic": "t", "expect": "forward:opted-in"}\n'
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_an_update_of_a_link_updates_what_it_leads_to(tmp_path: Path, file: Path) -> None:
    file.write_text('{"topic": "t"}')
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    write_expectations(link, {1: FORWARD})
    assert link.is_symlink()
    assert "expect" in file.read_text()


def test_nothing_is_written_where_nothing_changes(file: Path) -> None:
    file.write_text('{"topic": "t"}')
    inode = file.stat().st_ino
    write_expectations(file, {})
    assert file.stat().st_ino == inode


def test_a_file_that_cannot_be_updated_is_told(file: Path) -> None:
    with pytest.raises(FixtureError, match="cannot be updated: No such file"):
        write_expectations(file, {1: FORWARD})


def test_a_clock_stands_alone_in_its_line(file: Path) -> None:
    assert (
        refused(file, '{"now": 5, "expect": "forward"}') == '"now" must stand in a line of its own'
    )
