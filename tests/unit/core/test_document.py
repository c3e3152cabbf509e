"""YAML documents: what is read, what is refused, and on which line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.document import (
    MAX_DEPTH,
    Problem,
    Value,
    did_you_mean,
    key_text,
    nearest,
    parse_document,
    shown,
    type_name,
)


def problems_of(text: str) -> list[str]:
    return [str(problem) for problem in parse_document(text, "f.yaml").problems]


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("NO", "NO"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("Y", "Y"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ('"true"', "true"),
        ("", None),
        ("~", None),
        ("null", None),
        ('""', ""),
        ("42", 42),
        ("-7", -7),
        ("'42'", "42"),
        ("010", 10),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("0x1f", "0x1f"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        (".", "."),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2024-09-20", "2024-09-20"),
        ("2024-09-20T00:00:00Z", "2024-09-20T00:00:00Z"),
        ("1726826400000", 1726826400000),
        ("1234567890123456789", "1234567890123456789"),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_scalars_follow_the_core_schema(scalar: str, value: Value) -> None:
    document = parse_document(f"key: {scalar}\n", "f.yaml")
    assert document.problems == ()
    assert document.value == {"key": value}
    assert isinstance(document.value, dict)
    assert type(document.value["key"]) is type(value)


def test_an_unquoted_no_is_norway_also_as_a_key_and_in_a_list() -> None:
    assert parse_document("NO: [SE, NO]", "f").value == {"NO": ["SE", "NO"]}


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "~"])
def test_an_empty_file_has_no_value_and_no_problem(text: str) -> None:
    document = parse_document(text, "f")
    assert document.value is None
    assert document.problems == ()


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_document("\ufeffa: 1", "f").value == {"a": 1}


def test_every_path_has_its_line() -> None:
    text = "# comment\nname: x\nrules:\n  - basis: a\n    until:\n      later\n  -\n    basis: b\n"
    document = parse_document(text, "f")
    lines = {
        (): 2,
        ("name",): 2,
        ("rules",): 3,
        ("rules", 0): 4,
        ("rules", 0, "basis"): 4,
        ("rules", 0, "until"): 5,
        ("rules", 1): 8,
        ("rules", 1, "basis"): 8,
    }
    assert {path: document.line(path) for path in lines} == lines


def test_a_missing_key_has_the_line_of_what_should_hold_it() -> None:
    document = parse_document("a: 1\nb:\n  c: 2\n", "f")
    assert document.line(("b", "x")) == 2
    assert document.line(("x", 0, "y")) == 1
    assert parse_document("", "f").line(("x",)) == 1


def test_a_problem_prints_as_file_line_key_message() -> None:
    document = parse_document("a: 1\nb:\n  - c: 2\n", "dir/f.yaml")
    problem = document.problem(("b", 0, "c"), "is odd", "warning")
    assert problem == Problem("dir/f.yaml", 3, "b[0].c", "is odd", "warning")
    assert str(problem) == "dir/f.yaml:3: b[0].c: is odd"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: repeats the key of line 1, take one of them out"),
        (
            "x:\n  - {a: 1,\n     'a': 2}\n",
            "f.yaml:3: x[0].a: repeats the key of line 2, take one of them out",
        ),
        ("a: 1\n7: 2\n", "f.yaml:2: (document): the key '7' is not a string, put it into quotes"),
        ("a:\n  true: 2\n", "f.yaml:2: a: the key 'true' is not a string, put it into quotes"),
        (
            "a: 1\n? [b]\n: 2\n",
            "f.yaml:2: (document): a key of (document) is not a string, write a word",
        ),
        (
            "a: &x [1]\nb: *x\n",
            "f.yaml:2: b: aliases are not supported, write the value out",
        ),
        (
            "a: [*]\n",
            'f.yaml:1: a: an asterisk without quotes would be an alias, write "*"',
        ),
        ("a: !!str 5\n", "f.yaml:1: a: tags are not supported, quote what is meant as a string"),
        (
            "a: !!python/object/apply:os.getcwd []\n",
            "f.yaml:1: a: tags are not supported, quote what is meant as a string",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "f.yaml:2: (document): a second document begins, put it into a file of its own",
        ),
        (
            "a: 1\nb: \x07\n",
            "f.yaml:2: (document): the character U+0007, which YAML does not allow, take it out",
        ),
        (
            "a: \ud800\n",
            "f.yaml:1: (document): the character U+D800, which YAML does not allow, take it out",
        ),
        ('a: "\\ud800"\n', "f.yaml:1: a: an escape that is half of a surrogate pair"),
        (
            'a: 1\nb: "\\UFFFFFFFF"\n',
            "f.yaml:2: b: a number or an escape that is out of range, here or below, correct it",
        ),
        (
            "a: b: c\n",
            "f.yaml:1: (document): a colon where no key can be, indent the line like its "
            "neighbours, or put a text with a colon into quotes",
        ),
        (
            "a: [1,\nb: 2\n",
            "f.yaml:1: a: a list in brackets that goes wrong, look for a missing comma or ]",
        ),
        (
            "a: {b: 1, c\nd: 2\n",
            "f.yaml:1: a: a mapping in braces that goes wrong, look for a missing comma or }",
        ),
        (
            'a: 1\nb: "c\nd: 2\n',
            "f.yaml:2: b: a text in quotes that does not end, close the quotes",
        ),
        ("a:\n\tb: 1\n", "f.yaml:2: a: a tab, indent with spaces"),
        (
            "a: &\n",
            "f.yaml:1: a: an ampersand without quotes would be an anchor, put it into quotes",
        ),
        (
            "a: 1\nb\n",
            "f.yaml:3: (document): a line that is neither a key nor an item of a list, write "
            "'key: value' or '- item'",
        ),
        (
            "a:\n  b: 1\n c: 2\n",
            "f.yaml:3: (document): a line that is indented otherwise than those it belongs to, "
            "indent them alike",
        ),
        (
            "a: @b\n",
            "f.yaml:1: a: a text that begins with a special character, put it into quotes",
        ),
        (
            "%YAML 3.0\n---\na: 1\n",
            "f.yaml:1: (document): not YAML: found incompatible YAML document "
            "(version 1.* is required)",
        ),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text: str, problem: str) -> None:
    assert problems_of(text) == [problem]


def test_of_a_repeated_key_the_first_value_is_kept_and_all_repeats_are_named() -> None:
    text = "a: 1\na: 2\nb: 1\na: 3\nb: 2\n"
    assert parse_document(text, "f").value == {"a": 1, "b": 1}
    assert problems_of(text) == [
        "f.yaml:2: a: repeats the key of line 1, take one of them out",
        "f.yaml:4: a: repeats the key of line 1, take one of them out",
        "f.yaml:5: b: repeats the key of line 3, take one of them out",
    ]


def test_nesting_is_bounded() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert problems_of(deepest) == []
    assert problems_of(f"[{deepest}]") == [
        "f.yaml:1: [0][0][0][0]: lists and mappings nest deeper than 32"
    ]
    assert len(problems_of("[" * 100_000)) == 1
    assert len(problems_of("{a: " * 100_000)) == 1


def test_a_bomb_of_aliases_does_not_grow() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 64)]
    assert problems_of("\n".join(lines)) == [
        "f.yaml:2: a1[0]: aliases are not supported, write the value out"
    ]


def test_a_key_with_control_characters_cannot_break_a_message() -> None:
    document = parse_document('"a\\nb\\e": 1\n"": 2\n', "f")
    assert isinstance(document.value, dict)
    assert [str(problem) for problem in document.unknown_keys((), document.value, ["c"])] == [
        "f:1: 'a\\nb\\x1b': unknown key, use one of c",
        "f:2: '': unknown key, use one of c",
    ]


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    document = parse_document("rules:\n- basis: x\n  bassis: y\n  until: z\n", "f.yaml")
    mapping: dict[str, Value] = {"basis": "x", "bassis": "y", "until": "z"}
    found = document.unknown_keys(("rules", 0), mapping, ("basis", "from"))
    assert [str(problem) for problem in found] == [
        "f.yaml:3: rules[0].bassis: unknown key, did you mean 'basis'?",
        "f.yaml:4: rules[0].until: unknown key, use one of basis, from",
    ]


def test_hints_do_not_mind_the_case() -> None:
    assert did_you_mean("gb", ["FR", "GB"]) == "did you mean 'GB'?"
    assert did_you_mean("zz", ["FR", "GB"]) is None
    assert nearest("zz", ["FR", "GB"]) == "use one of FR, GB"


def test_paths_types_and_strings_are_told_as_people_say_them() -> None:
    assert key_text(()) == "(document)"
    assert key_text(("a", 0, 1, "b.c", "d")) == "a[0][1].b.c.d"
    values: list[Value] = [None, True, 1, 1.5, "x", [], {}]
    assert [type_name(value) for value in values] == [
        "nothing",
        "a boolean",
        "an integer",
        "a number",
        "a string",
        "a list",
        "a mapping",
    ]
    assert shown("a\n") == "'a\\n'"
    assert len(shown("x" * 1000)) == 62


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab:-[]{}*&!|>'\"\\#%@, \n\t?~\ud800U0\ufeff\x85"), max_size=40))
def test_any_text_is_a_document_or_has_problems_but_raises_nothing(text: str) -> None:
    document = parse_document(text, "f")
    line_count_max = len(text.splitlines()) + 1
    assert all(1 <= problem.line <= line_count_max for problem in document.problems)


# JSON's ASCII form writes characters beyond these as two escapes, which YAML does not join.
_TEXTS = st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(_VALUES)
def test_json_is_read_as_json(value: Value) -> None:
    document = parse_document(json.dumps(value), "f")
    assert document.problems == ()
    assert document.value == value
