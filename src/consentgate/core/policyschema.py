"""The JSON Schema of a policy file, for editors: what `policyfile` reads, as far as it has a shape.

It is looser than the reader: whether a group is defined, whether two rules overlap and whether a
time comes after another are for `lint`. It never refuses what the reader takes.
"""

from typing import Any

from consentgate.core.countries import COUNTRIES
from consentgate.core.model import UNKNOWN_JURISDICTION
from consentgate.core.policy import DETECTORS, EVERYWHERE_ELSE, Basis

_MEANINGS = {
    Basis.OPT_IN: "Permits what is of people who have granted it.",
    Basis.OPT_OUT: "Permits what is of people who have granted it or never chose.",
    Basis.SUSPENDED: "Permits nothing, for the time being.",
    Basis.PROHIBITED: "Permits nothing, and no later rule may lift it.",
}
_TIME = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,3}0*)?([Zz]|[+-]\d\d:\d\d)$",
    "examples": ["2024-09-20T00:00:00Z"],
}
_ANY_CASE = "".join(f"[{letter}{letter.lower()}]" for letter in UNKNOWN_JURISDICTION.upper())


def policy_schema() -> dict[str, Any]:
    """The schema, as of JSON Schema 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A policy of consentgate",
        "description": "Which content may be used, by the rule in force where its author lives.",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "purpose", "rules"],
        "properties": {
            "name": {
                "description": "The policy's name, as headers, metrics and the ledger have it: "
                "lower-case letters, digits, '.', '_' and '-'.",
                "type": "string",
                "pattern": "^[a-z0-9][a-z0-9._-]*$",
            },
            "purpose": {
                "description": "The purpose whose choice counts, of all that a person made.",
                "type": "string",
                "minLength": 1,
                "examples": ["ai-training"],
            },
            "groups": {
                "description": "Names for several countries, to be used in the rules.",
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/group"},
                "additionalProperties": _list(
                    "The countries of the group, by their ISO 3166-1 alpha-2 codes.",
                    {"$ref": "#/$defs/country"},
                ),
            },
            "rules": {
                "description": "The rules. At each moment at most one may apply to a country; "
                "their order has no meaning.",
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/$defs/rule"},
            },
        },
        "$defs": {
            "country": {
                "description": "A country or territory by its ISO 3166-1 alpha-2 code.",
                "enum": sorted(COUNTRIES),
            },
            "group": {
                "description": "The name of a group: no country's code, in whatever case.",
                "type": "string",
                "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
                "not": {"anyOf": [{"pattern": f"^{_ANY_CASE}$"}, {"pattern": _country_pattern()}]},
            },
            "rule": _rule(),
        },
    }


def _rule() -> dict[str, Any]:
    return {
        "description": "Where, when and on which basis content may be used, and which content.",
        "type": "object",
        "additionalProperties": False,
        "required": ["jurisdictions", "basis"],
        "properties": {
            "jurisdictions": _list(
                'Where it rules: groups, countries, or "*" for every country that no rule of '
                "the policy ever names.",
                {
                    "anyOf": [
                        {"$ref": "#/$defs/country"},
                        {"const": EVERYWHERE_ELSE},
                        {"$ref": "#/$defs/group"},
                    ]
                },
            ),
            "from": _time("In force from this moment on; without it, ever since."),
            "until": _time("No longer in force from this moment on; without it, for ever."),
            "basis": {
                "description": "What a person's choice must be.",
                "oneOf": [
                    {"const": str(basis), "description": meaning}
                    for basis, meaning in _MEANINGS.items()
                ],
            },
            "adults_only": _flag("Only of people who are known to be adults."),
            "visibility": _list("Only content that can be seen so.", _word(), ["public"]),
            "kinds": _list("Only content of these kinds.", _word(), ["post", "article"]),
            "created_from": _time("Only content that was created at this moment or later."),
            "created_until": _time("Only content that was created before this moment."),
            "fields": _list(
                "The only fields of the body that go on, each a dotted path.",
                {"type": "string", "pattern": r"^[^.]+(\.[^.]+)*$"},
                ["text"],
            ),
            "redact": _list(
                "What is taken out of the text before it goes on.", {"enum": list(DETECTORS)}
            ),
            "pseudonymize": _flag("The person's id goes on as a keyed hash of it."),
        },
    }


def _list(
    description: str, items: dict[str, Any], example: list[str] | None = None
) -> dict[str, Any]:
    return {
        "description": description,
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": items,
        **({} if example is None else {"examples": [example]}),
    }


def _word() -> dict[str, Any]:
    return {"type": "string", "minLength": 1}


def _flag(description: str) -> dict[str, Any]:
    return {"description": description, "type": "boolean"}


def _time(description: str) -> dict[str, Any]:
    return {"description": f"{description} A time with a zone.", **_TIME}


def _country_pattern() -> str:
    """Any country's code in whatever case, with one branch for each first letter."""
    seconds: dict[str, str] = {}
    for code in sorted(COUNTRIES):
        seconds[code[0]] = seconds.get(code[0], "") + code[1] + code[1].lower()
    branches = (f"[{first}{first.lower()}][{rest}]" for first, rest in seconds.items())
    return f"^({'|'.join(branches)})$"
