"""The JSON Schemas: made from the code, and as strict as a schema can be, but no stricter."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from consentgate.config import KAFKA_SETTINGS, Config, load_config
from consentgate.core.countries import COUNTRIES
from consentgate.core.document import parse_document
from consentgate.core.policyfile import lint_policy
from consentgate.policies import preset_names, read_policy
from consentgate.schemas import Schema, schema_text
from consentgate.schemas.make import schemas
from consentgate.schemas.settings import settings_page

ROOT = Path(__file__).parents[2]
BROKEN = sorted((ROOT / "tests/fixtures/broken-policies").glob("*.yaml"))

NO_MATTER_OF_SHAPE = {
    "country-and-its-group-in-one-rule",
    "created-until-before-created-from",
    "empty-window",
    "lifted-prohibition",
    "lifted-prohibition-of-one-country",
    "misspelt-group",
    "overlap-by-a-group",
    "overlap-of-a-country",
    "overlap-of-everywhere-else",
    "three-letter-country",
    "time-that-is-not-in-the-calendar",
    "two-bases-for-two-kinds",
    "uk-for-gb",
    "undefined-eea",
    "until-before-from",
}
"""What only `lint` can see: it takes other parts of the file, or the calendar."""

POLICY = Draft202012Validator(json.loads(schema_text(Schema.POLICY)))
CONFIGURATION = Draft202012Validator(json.loads(schema_text(Schema.CONFIGURATION)))


def value_of(text: str) -> Any:
    document = parse_document(text, "f.yaml")
    assert document.problems == ()
    return document.value


def refused(validator: Any, text: str) -> list[str]:
    """The keys of a text that a schema refuses."""
    return sorted(".".join(map(str, e.path)) for e in validator.iter_errors(value_of(text)))


@pytest.mark.parametrize("schema", Schema)
def test_a_schema_is_what_the_code_says(schema: Schema) -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert schema_text(schema) == schemas(page)[schema], "run: make schemas"


def test_the_page_of_settings_is_what_the_code_says() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert (ROOT / "docs/settings.md").read_text("utf-8") == settings_page(page), (
        "run: make schemas"
    )


def test_the_variables_of_the_page_of_settings_set_their_keys() -> None:
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    rows = re.findall(r"^\| `[^`]+` \| `([A-Z_]+)` \| `\"?([^`]+?)\"?` \|", page, re.MULTILINE)
    assert len(rows) > 40
    for variable, default in rows:
        # One that names no key is refused.
        load_config(None, {variable: default} if default != "null" else {variable: "1"})


@pytest.mark.parametrize("validator", [POLICY, CONFIGURATION])
def test_a_schema_is_one(validator: Any) -> None:
    Draft202012Validator.check_schema(validator.schema)


def properties(schema: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"].items()
        for each in schema.values():
            yield from properties(each)


@pytest.mark.parametrize("validator", [POLICY, CONFIGURATION])
def test_every_key_has_a_description(validator: Any) -> None:
    for name, schema in properties(validator.schema):
        assert schema["description"].endswith("."), name


def test_every_key_of_the_configuration_is_there() -> None:
    names = {name for name, _ in properties(CONFIGURATION.schema)}
    assert names >= KAFKA_SETTINGS | set(Config.__struct_fields__)


@pytest.mark.parametrize("preset", preset_names())
def test_the_presets_are_policies(preset: str) -> None:
    assert refused(POLICY, read_policy(preset)[0]) == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_the_policies_of_the_documents_are_policies(page: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        if "purpose:" in block:
            assert (refused(POLICY, block) == []) == ("# mistakes.yaml" not in block)


def test_the_policy_of_the_demo_is_a_policy() -> None:
    assert refused(POLICY, (ROOT / "src/consentgate/demo/policy.yaml").read_text("utf-8")) == []


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_a_policy_that_is_broken_in_shape_is_refused(file: Path) -> None:
    document = parse_document(file.read_text("utf-8"), file.name)
    # What is no YAML, an editor sees without a schema.
    is_refused = bool(document.problems) or not POLICY.is_valid(document.value)
    assert is_refused == (file.stem not in NO_MATTER_OF_SHAPE)


RULE = "name: p\npurpose: x\nrules:\n- jurisdictions: [GB]\n  basis: opt-in\n"


@pytest.mark.parametrize("country", sorted(COUNTRIES))
def test_no_group_can_have_the_code_of_a_country(country: str) -> None:
    for name in (country, country.lower(), country.capitalize()):
        assert refused(POLICY, f"{RULE}groups: {{{name}: [FR]}}\n") == ["groups"]
    assert refused(POLICY, f"{RULE}groups: {{{country}-: [{country}]}}\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "  from: 2024-09-20T00:00:00Z",
        "  from: 2024-09-20t00:00:00z",
        "  from: 2024-09-20 00:00:00+02:00",
        "  from: 2024-09-20T00:00:00.5-10:30",
        "  from: 2024-09-20T00:00:00.1230000Z",
        "  from: 2024-09-20T00:00:00.1234Z",
        "  from: 2024-09-20T00:00Z",
        "  from: 2024-09-20",
        "  adults_only: false",
        "  adults_only: True",
        "  adults_only: 'true'",
        "  kinds: [NO]",
        "  kinds: [1]",
        "  redact: [national-id]",
        "  redact: [name]",
        "groups: {EU: [FR]}",
        "groups: {Unknown: [FR]}",
        "groups: {UNKNOWN2: [FR]}",
        "groups: {_: [FR]}",
        "groups: {}",
        "groups: {G: [fr]}",
    ],
)
def test_the_schema_and_the_reader_agree(line: str) -> None:
    policy, _ = lint_policy(RULE + line + "\n", "f.yaml")
    assert (refused(POLICY, RULE + line + "\n") == []) == (policy is not None)


def test_the_defaults_are_a_configuration() -> None:
    assert CONFIGURATION.is_valid(msgspec.to_builtins(Config()))


@pytest.mark.parametrize("name", ["deploy/consentgate.yaml", "README.md"])
def test_the_examples_are_configurations(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in blocks or [text]:
        assert refused(CONFIGURATION, block) == []


def test_a_variable_can_stand_for_any_scalar() -> None:
    text = (
        "kafka: {session.timeout.ms: '${SESSION:10000}', sasl.password: '${PASSWORD}'}\n"
        "group: ${GROUP}\n"
        "topics: {content: 'content-${STAGE:test}'}\n"
        "policy: ${POLICY:linkedin}\n"
        "consent: {scope: '${SCOPE:auto}'}\n"
        "content: {key_is_subject: '${KEYED:true}'}\n"
        "http: {port: '${PORT:8080}'}\n"
        "limits: {max_depth: '${DEPTH:64}'}\n"
        "keys: {signing: '${KEY}'}\n"
    )
    assert refused(CONFIGURATION, text) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("grup: a\n", ""),
        ("kafka: {bootstrap.server: a}\n", "kafka"),
        ("kafka: {session.timeout.ms: true}\n", "kafka.session.timeout.ms"),
        ("group: a b\n", "group"),
        ("topics: {content: ''}\n", "topics.content"),
        ("topics: {contents: a}\n", "topics"),
        ("policy: 5\n", "policy"),
        ("consent: {scope: all}\n", "consent.scope"),
        ("consent: {fields: {age: a}}\n", "consent.fields"),
        ("content: {key_is_subject: maybe}\n", "content.key_is_subject"),
        ("http: {port: 65536}\n", "http.port"),
        ("http: {port: $PORT}\n", "http.port"),
        ("limits: {max_depth: 251}\n", "limits.max_depth"),
        ("keys: {signing: 5}\n", "keys.signing"),
        ("keys: {pseudonym: a}\n", "keys.pseudonym"),
        ("[]\n", ""),
    ],
)
def test_a_configuration_with_a_mistake_is_refused(text: str, key: str) -> None:
    assert refused(CONFIGURATION, text) == [key]
