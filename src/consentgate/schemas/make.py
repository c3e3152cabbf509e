"""Makes the schemas anew: `python -m consentgate.schemas.make docs/configuration.md`.

The policy's comes from beside its reader. The configuration's comes from the types that check it,
and says of each key what the page of the configuration says.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from consentgate.config import KAFKA_SETTINGS, Config
from consentgate.core.policyschema import policy_schema
from consentgate.schemas import Schema

_ROW = re.compile(r"^\| `([a-z_.]+)` \|(.*)\|(.*)\|$", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_SECTIONS = {
    "kafka": "Settings of the Kafka client, under librdkafka's names.",
    "topics": "The names of the topics that are read and written.",
    "consent": "How the consent topic is read.",
    "consent.fields": "Where a consent record keeps its fields, each as a dotted path.",
    "content": "How the content topic is read.",
    "content.fields": "Where a content event keeps its fields, each as a dotted path.",
    "http": "Where metrics and health are served.",
    "limits": "What one record may be, and how long a decision may be on its way.",
    "keys": "Files with keys.",
    "redaction": "How records are redacted.",
}
# A variable in a value may stand for a number or a switch, too.
VARIABLE = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:[^}]*)?\}",
    "description": "A value with ${VARIABLE} or ${VARIABLE:default} in it.",
}


def rows_on(page: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of each row on the page of the configuration, with their markup."""
    for key, default, meaning in _ROW.findall(page):
        yield key, default.strip(), meaning.strip()


def meanings_on(page: str) -> dict[str, str]:
    """What the page of the configuration says of each key, without its markup."""
    found = {}
    for key, default, meaning in rows_on(page):
        text = _LINK.sub(r"\1", meaning)
        stated = default.strip("`") if key.startswith("kafka.") else ""
        found[key] = f"{text} Default: {stated}." if stated else text
    return found


def configuration_schema(meanings: Mapping[str, str]) -> dict[str, Any]:
    """The schema of the configuration file; `meanings` has a text for each of its keys."""
    made = msgspec.json.schema(Config)
    root = _described(made["$defs"]["Config"], made["$defs"], "", meanings)
    kafka = {
        setting: {
            "description": meanings[f"kafka.{setting}"],
            # A string, too, because a variable may stand for the number.
            **(
                {"type": ["integer", "string"], "minimum": 1}
                if setting.endswith((".ms", ".bytes"))
                else {"type": ["string", "number", "boolean"]}
            ),
        }
        for setting in sorted(KAFKA_SETTINGS)
    }
    root["properties"]["kafka"] |= {"properties": kafka, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The configuration of consentgate",
        **root,
    }


def _described(
    schema: Mapping[str, Any], defs: Mapping[str, Any], key: str, meanings: Mapping[str, str]
) -> dict[str, Any]:
    """The schema of one key with its description, and sections in place."""
    if "$ref" in schema:
        section = defs[schema["$ref"].removeprefix("#/$defs/")]
        return _described(section, defs, key, meanings)
    description = _SECTIONS.get(key) or meanings.get(key) or schema["description"]
    if "properties" in schema:
        prefix = f"{key}." if key else ""
        return {
            "description": description,
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: _described(each, defs, prefix + name, meanings)
                for name, each in schema["properties"].items()
            },
        }
    return {"description": description, **_or_variable(schema)}


def _or_variable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a scalar, of which a variable can take the place."""
    plain = {name: value for name, value in schema.items() if name != "default"}
    choices = plain.get("anyOf", [plain])
    if schema.get("type") in {"object", "array"} or {"type": "string"} in choices:
        return dict(schema)
    return {"anyOf": [*choices, VARIABLE], "default": schema["default"]}


def schemas(configuration_page: str) -> dict[Schema, str]:
    """The text of each schema."""
    made = {
        Schema.POLICY: policy_schema(),
        Schema.CONFIGURATION: configuration_schema(meanings_on(configuration_page)),
    }
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in made.items()}


if __name__ == "__main__":
    for made, text in schemas(Path(sys.argv[1]).read_text("utf-8")).items():
        Path(__file__).with_name(f"{made}.schema.json").write_text(text, "utf-8")
