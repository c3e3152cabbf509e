"""JSON Schemas of the files that people write, as editors need them; made by `make schemas`."""

from enum import StrEnum
from importlib import resources


class Schema(StrEnum):
    """What there is a schema of."""

    POLICY = "policy"
    CONFIGURATION = "configuration"


def schema_text(schema: Schema) -> str:
    """The schema as JSON."""
    return (resources.files(__name__) / f"{schema}.schema.json").read_text("utf-8")
