"""Makes the table of all settings: `python -m consentgate.schemas.settings docs/configuration.md`.

What a key takes comes from the types that check it, its default from the page of the configuration,
which is held to the code.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from consentgate.config import PREFIX
from consentgate.schemas.make import VARIABLE, configuration_schema, meanings_on, rows_on

_HEAD = """\
# Every setting

Made from the code by `make schemas`; do not edit. [configuration.md](configuration.md) says what
each means. A variable of the environment goes before the file; with `_FILE` behind its name it
names a file that holds the value.

| key | variable | default | unit | takes |
|---|---|---|---|---|
"""
_UNITS = {"ms": "milliseconds", "bytes": "bytes"}


def settings_page(configuration_page: str) -> str:
    """The page, as Markdown."""
    defaults = {key: default for key, default, _ in rows_on(configuration_page)}
    schema = configuration_schema(meanings_on(configuration_page))
    rows = (_row(key, defaults[key], schema) for key, schema in _keys(schema, ""))
    return _HEAD + "\n".join(rows) + "\n"


def _keys(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, each in schema["properties"].items():
        if "properties" in each:
            yield from _keys(each, f"{prefix}{name}.")
        else:
            yield prefix + name, each


def _row(key: str, default: str, schema: Mapping[str, Any]) -> str:
    unit = _UNITS.get(key.replace("_", ".").rpartition(".")[2], "")
    # What is no single value is for the file alone.
    variable = "" if schema.get("type") in ("array", "object") else f"`{variable_of(key)}`"
    cells = (f"`{key}`", variable, default, unit, _takes(schema))
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def variable_of(key: str) -> str:
    """The environment's variable for a key of the configuration."""
    section, _, setting = key.partition(".")
    levels = [section, setting.replace(".", "_")] if section == "kafka" else key.split(".")
    return PREFIX + "__".join(levels).upper()


def _takes(schema: Mapping[str, Any]) -> str:
    choices = [each for each in schema.get("anyOf", [schema]) if each != VARIABLE]
    return " or ".join(_takes_one(each) for each in choices)


def _takes_one(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if kind == "integer" and "maximum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"at least {schema['minimum']}"
    if "pattern" in schema:
        return f"text like `{schema['pattern']}`"
    return _KINDS[str(kind)]


_KINDS = {
    "array": "a list of texts",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "object": "a mapping",
    "string": "text",
    "['string', 'number', 'boolean']": "text",
}

if __name__ == "__main__":
    sys.stdout.write(settings_page(Path(sys.argv[1]).read_text("utf-8")))
