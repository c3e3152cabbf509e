"""Makes anew what the Helm chart has from elsewhere: `make chart`.

Helm packs a chart's own directory alone. So the rules and the dashboards are copied into it, the
schema of the configuration becomes a part of that of the values, and the table of the values in the
chart's README comes from the comments of `values.yaml`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from consentgate.schemas import Schema
from consentgate.schemas.make import schemas

DEPLOY = Path(__file__).parents[1]
CHART = Path(__file__).with_name("consentgate")
COPIED = {
    "files/rules": DEPLOY / "prometheus/rules",
    "files/dashboards": DEPLOY / "grafana/dashboards",
}
SUFFIXES = (".json", ".yml")
TABLE_START = "<!-- The table is made from values.yaml. -->\n"
SECRET_ENDINGS = ("password", "secret")
LOOKAHEAD = r"(?!\.{1,2}$)"
"""Go's regular expressions do not know it. It only keeps `.` and `..` from naming topics."""


def values_schema(text: str, page: str) -> str:
    """The schema of the values, with the configuration's in it; `page` is docs/configuration.md."""
    schema = json.loads(text)
    configuration = json.loads(
        schemas(page)[Schema.CONFIGURATION].replace(json.dumps(LOOKAHEAD)[1:-1], "")
    )
    settings = configuration["properties"]["kafka"]["properties"]
    names = [f"kafka.{name}" for name in settings]
    schema["properties"]["secrets"]["items"]["properties"]["settings"]["propertyNames"] = {
        "enum": names
    }
    # A ConfigMap is no place for a secret.
    for name in [name for name in settings if name.endswith(SECRET_ENDINGS)]:
        del settings[name]
    # The chart sets it, and the port stands in other places, too, where no variable is known.
    del configuration["properties"]["snapshot"]
    configuration["properties"]["http"]["properties"]["port"] = {
        "type": "integer",
        "minimum": 1,
        "maximum": 65535,
    }
    kept = ("description", "type", "additionalProperties", "properties")
    schema["properties"]["config"] = {name: configuration[name] for name in kept}
    return json.dumps(schema, indent=2) + "\n"


def values_table(text: str) -> str:
    """A row for each key that has a comment; what is below it is part of its default.

    Raises:
        ValueError: if a key has none, and nothing above or below it has.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    rows = _rows(root, "", text.splitlines())
    lines = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in rows]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *lines]) + "\n"


def _rows(node: yaml.Node, prefix: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"values.yaml: {prefix} has no comment")
    for key_node, value_node in node.value:
        key = f"{prefix}.{key_node.value}" if prefix else key_node.value
        if meaning := _comment_above(key_node.start_mark.line, lines):
            value: Any = yaml.SafeLoader("").construct_document(value_node)
            yield key, json.dumps(value), meaning
        else:
            yield from _rows(value_node, key, lines)


def _comment_above(line: int, lines: list[str]) -> str:
    above = lines[line - 1].strip() if line else ""
    return above.removeprefix("# ") if above.startswith("#") else ""


def made() -> dict[Path, str]:
    """Every file that is made, and its text."""
    files = {
        CHART / place / source.name: source.read_text("utf-8")
        for place, directory in COPIED.items()
        for source in sorted(directory.glob("*"))
        if source.suffix in SUFFIXES
    }
    schema, readme = CHART / "values.schema.json", CHART / "README.md"
    page = DEPLOY.parent / "docs/configuration.md"
    files[schema] = values_schema(schema.read_text("utf-8"), page.read_text("utf-8"))
    introduction, _, _ = readme.read_text("utf-8").partition(TABLE_START)
    table = values_table((CHART / "values.yaml").read_text("utf-8"))
    files[readme] = f"{introduction}{TABLE_START}\n{table}"
    return files


def copies() -> set[Path]:
    """The copies that are there now."""
    return {path for place in COPIED for path in (CHART / place).glob("*")}


if __name__ == "__main__":
    texts = made()
    for stale in copies() - set(texts):
        stale.unlink()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
