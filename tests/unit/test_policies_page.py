"""The page about policies, carried out: its files written, its commands run, its tables decided."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from consentgate.cli import main
from consentgate.config import Config
from consentgate.core.model import Reason
from consentgate.core.policy import Basis, conditions
from consentgate.core.policyfile import lint_policy, parse_policy
from consentgate.policies import preset_names
from consentgate.tools.replay import replay

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```([a-z]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
MISTAKES = "# mistakes.yaml\n"
POLICIES = [text for language, text in BLOCKS if language == "yaml" and MISTAKES not in text]


def test_the_page_can_be_followed_from_the_first_file_to_the_last_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    number = 0
    for language, text in BLOCKS:
        named = re.match(r"# ([a-z]+\.(yaml|jsonl))\n", text)
        if named is not None:
            Path(named[1]).write_text(text, "utf-8")
        if language == "console":
            command, _, expected = text.partition("\n")
            monkeypatch.setattr("sys.argv", command.removeprefix("$ ").split())
            with pytest.raises(SystemExit):
                main()
            printed = capsys.readouterr().out.splitlines()
            assert [line.rstrip() for line in printed] == expected.splitlines()
            number += 1
    assert number == 7


@pytest.mark.parametrize("text", POLICIES, ids=lambda text: text.splitlines()[0])
def test_a_policy_of_the_page_has_neither_errors_nor_warnings(text: str) -> None:
    assert lint_policy(text, "page.yaml")[1] == []


def test_every_preset_is_explained() -> None:
    assert set(re.findall(r"^### ([a-z-]+)$", PAGE, re.MULTILINE)) == set(preset_names())


def test_the_page_has_every_basis_and_every_condition() -> None:
    tables = PAGE.split("## The language in full")[1].split("## The presets")[0]
    rows = "\n".join(line.split("|")[1] for line in tables.splitlines() if line.startswith("|"))
    for word in (*Basis, *conditions(parse_policy(EVERYTHING, "f").rules[0])):
        assert f"`{word}" in rows


EVERYTHING = """\
name: p
purpose: x
rules:
  - jurisdictions: ["*"]
    basis: opt-in
    adults_only: true
    visibility: [a]
    kinds: [a]
    created_from: 2024-11-20T00:00:00Z
    created_until: 2025-11-20T00:00:00Z
    fields: [a]
    redact: [email]
    pseudonymize: true
"""


@dataclass(frozen=True)
class Recipe:
    title: str
    policy: str
    rows: list[dict[str, str]]

    def __str__(self) -> str:
        return self.title


def recipes() -> Iterator[Recipe]:
    for part in PAGE.split("\n## Recipes\n")[1].split("\n## ")[0].split("\n### ")[1:]:
        ((policy, table),) = re.findall(
            r"^```yaml\n(.*?)^```\n\n(\| country .*?)\n\n", part + "\n\n", re.MULTILINE | re.DOTALL
        )
        head, _, *lines = (
            [cell.strip(" `") for cell in line[1:-1].split("|")] for line in table.splitlines()
        )
        yield Recipe(
            part.splitlines()[0], policy, [dict(zip(head, line, strict=True)) for line in lines]
        )


def fixture_lines(row: dict[str, str]) -> list[dict[str, object]]:
    """One person, and one post of theirs with the outcome that the page names."""
    known = {"country", "adult", "choice", "visibility", "kind", "created", "decided", "outcome"}
    assert row.keys() <= known
    choice = row.get("choice", "none")
    consent = {
        "subject": "m",
        "jurisdiction": row["country"],
        "adult": {"true": True, "false": False, "unknown": None}[row.get("adult", "unknown")],
        "choices": {} if choice == "none" else {"ai-training": {"choice": choice}},
    }
    content = {
        "id": "e",
        "subject": "m",
        "kind": row.get("kind", "post"),
        "visibility": row.get("visibility", "public"),
        "created_at": f"{row.get('created', '2026-01-01')}T12:00:00Z",
    }
    return [
        {"now": f"{row.get('decided', '2026-03-10')}T12:00:00Z"},
        {"topic": "consent-state", "key": "m", "payload": consent},
        {"topic": "content-events", "key": "m", "payload": content, "expect": row["outcome"]},
    ]


@pytest.mark.parametrize("recipe", list(recipes()), ids=str)
def test_a_recipe_does_what_its_table_says(recipe: Recipe, tmp_path: Path) -> None:
    policy = parse_policy(recipe.policy, "recipe.yaml")
    assert len(recipe.rows) >= 4
    for row in recipe.rows:
        verdict, _, reason = row["outcome"].partition(":")
        assert Reason(reason).verdict == verdict
        file = tmp_path / "recipe.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in fixture_lines(row)), "utf-8")
        ((_, outcome),) = replay(Config(), policy, [file])
        assert outcome.matches, f"{row}: {outcome}"


def test_there_are_recipes() -> None:
    assert len(list(recipes())) >= 5
