"""The documents against the code: no key, metric, reason, command or link that is not there."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.config import DECLARED_SETTINGS, KAFKA_SETTINGS, Config, load_config
from consentgate.core.decide import Limits
from consentgate.core.ledger import GENESIS, BatchFacts, Chain, LedgerRecord, write_entry
from consentgate.core.model import Reason, decision
from consentgate.core.policyfile import parse_policy
from consentgate.errors import EXIT_FOUND
from consentgate.kafka.guards import (
    ENVELOPE_BYTES,
    judged_settings,
    topic_problems,
    with_declared,
)
from consentgate.policies import load_policy, preset_names
from consentgate.pytest_plugin import pytest_addoption
from consentgate.service.metricsdoc import metrics_page
from consentgate.tools.fixtures import read_fixture
from consentgate.tools.replay import replay

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks_of(name: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), re.MULTILINE | re.DOTALL)


def rows_of(name: str, header: str) -> dict[str, list[str]]:
    """First cell to the other cells of all tables of a page that begin with `header`."""
    rows: dict[str, list[str]] = {}
    lines = iter(text_of(name).splitlines())
    for line in lines:
        if not line.startswith(f"| {header} |"):
            continue
        next(lines)
        for row in lines:
            if not row.startswith("|"):
                break
            first, *others = (cell.strip() for cell in row[1:-1].split("|"))
            rows[first.strip(" `")] = others
    return rows


def flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "kafka":
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_page_of_metrics_is_what_the_code_says() -> None:
    assert text_of("docs/metrics.md") == metrics_page(), "run: make metrics-doc"


def test_the_page_of_the_configuration_has_every_key_and_its_default() -> None:
    documented = {
        key: json.loads(default.strip("`"))
        for key, (default, _) in rows_of("docs/configuration.md", "key").items()
        if not key.startswith("kafka.")
    }
    assert documented == dict(flattened(msgspec.to_builtins(Config())))


def test_the_page_of_the_configuration_has_every_setting_of_the_client() -> None:
    documented = rows_of("docs/configuration.md", "key")
    assert {key for key in documented if key.startswith("kafka.")} == {
        f"kafka.{setting}" for setting in KAFKA_SETTINGS
    }


def test_what_the_page_of_the_configuration_declares_is_all_that_is_looked_at(
    tmp_path: Path,
) -> None:
    (block,) = blocks_of("docs/configuration.md", "yaml")
    path = tmp_path / "consentgate.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(str(path), {})
    assert topic_problems_of_consent(config) == []
    judged = judged_settings(config)
    assert set(config.declared["consent-state"]) == set(judged["consent-state"])
    assert {name for names in judged.values() for name in names} == DECLARED_SETTINGS


def topic_problems_of_consent(config: Config) -> list[str]:
    """What would be wrong with the consent topic if all is as declared."""
    told = with_declared(config, {config.topics.consent: None})
    others = {topic: {} for topic in judged_settings(config) if topic not in told}
    problems = topic_problems(config, {**others, **told})
    return [problem for problem in problems if config.topics.consent in problem]


def test_the_pages_name_the_presets_and_the_fixed_limits() -> None:
    assert rows_of("docs/configuration.md", "key")["policy"][1].startswith(
        f"A preset ({', '.join(f'`{name}`' for name in preset_names())})"
    )
    assert f"and {ENVELOPE_BYTES:,} bytes more" in text_of("docs/configuration.md")
    limits = Limits()
    assert limits.max_key_bytes == limits.max_headers_bytes
    assert f"{limits.max_key_bytes:,} bytes each" in text_of("docs/semantics.md")


def test_the_page_of_the_semantics_has_every_reason_in_the_order_of_the_code() -> None:
    documented = rows_of("docs/semantics.md", "reason")
    assert [(name, verdict) for name, (verdict, _) in documented.items()] == [
        (str(reason), str(reason.verdict)) for reason in Reason
    ]


def test_the_readme_has_every_command() -> None:
    assert set(rows_of("README.md", "command")) == set(commands(get_command(app)))


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_the_readme_has_two_commands_for_the_acceptance_test() -> None:
    marked = re.search(
        r"^<!-- tests/acceptance/readme\.sh runs the next block\. -->\n```sh\n(.*?)^```$",
        text_of("README.md"),
        re.MULTILINE | re.DOTALL,
    )
    assert marked is not None
    assert marked[1].splitlines() == ["make demo", "make test"]


def test_the_configuration_of_the_readme_loads(tmp_path: Path) -> None:
    (block,) = blocks_of("README.md", "yaml")
    path = tmp_path / "consentgate.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(str(path), {"KAFKA_PASSWORD": "secret"})
    assert config.kafka["sasl.password"] == "secret"
    assert config.policy in preset_names()


def test_the_first_records_of_the_readme_come_out_as_it_says(tmp_path: Path) -> None:
    config, path = tmp_path / "consentgate.yaml", tmp_path / "first.jsonl"
    config.write_text(blocks_of("README.md", "yaml")[0], encoding="utf-8")
    lines = re.search(r"<<'END'\n(.*?)^END$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert lines is not None
    path.write_text(lines[1], encoding="utf-8")
    read = load_config(str(config), {"KAFKA_PASSWORD": "secret"})
    outcomes = [outcome for _, outcome in replay(read, load_policy(read.policy), [path])]
    assert [str(outcome.reason) for outcome in outcomes] == ["not-opted-out", "opted-out"]


def test_the_examples_of_records_are_read_as_described(tmp_path: Path) -> None:
    content, consent, _, line = map(json.loads, blocks_of("docs/semantics.md", "json"))
    at = {"ts": line["ts"]}
    lines = [
        {"topic": "consent-state", "key": consent["subject"], "payload": consent, **at},
        {**line, "payload": content, "expect": "forward:not-opted-out"},
        {**line, "expect": "quarantine:missing-field"},
    ]
    path = tmp_path / "example.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    assert len(list(read_fixture(path))) == len(lines)
    policy = parse_policy(
        "{name: all, purpose: ai-training, rules: [{jurisdictions: ['*'], basis: opt-out}]}", "all"
    )
    outcomes = [outcome for _, outcome in replay(Config(), policy, [path])]
    assert len(outcomes) == 2
    assert all(outcome.matches for outcome in outcomes)


@pytest.fixture
def pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fixture of the page on testing, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pause.jsonl"
    path.write_text(blocks_of("docs/testing.md", "json")[0], encoding="utf-8")
    return path


def test_the_page_on_testing_shows_what_a_replay_prints(pause: Path) -> None:
    shown, *_ = blocks_of("docs/testing.md", "text")
    done = CliRunner().invoke(
        app, ["replay", "--policy", "linkedin", "--quiet", pause.name], env={"COLUMNS": "200"}
    )
    assert (done.exit_code, done.stdout) == (EXIT_FOUND, shown)


def test_the_page_on_testing_updates_its_fixture(pause: Path) -> None:
    arguments = ["replay", "--policy", "linkedin", pause.name]
    assert CliRunner().invoke(app, [*arguments, "--update"]).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_page_on_testing_configures_the_plugin(pause: Path) -> None:
    (ini,) = blocks_of("docs/testing.md", "ini")
    Path("pytest.ini").write_text(ini)
    pause.rename("pause.consent.jsonl")
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1 failed, 1 passed" in done.stdout
    assert "pause.consent.jsonl:6: withhold:jurisdiction-suspended (GB), but" in done.stdout


def test_the_page_on_testing_has_every_setting_of_the_plugin() -> None:
    settings: list[str] = []

    class Parser:
        def addini(self, name: str, *_: Any, **__: Any) -> None:
            settings.append(name)

    pytest_addoption(Parser())  # type: ignore[arg-type]
    assert set(rows_of("docs/testing.md", "setting")) == set(settings)


def test_the_example_of_the_enforcer_runs() -> None:
    (block,) = blocks_of("docs/testing.md", "python")
    assert block.count("assert ") == 7
    exec(block, {})


def test_the_configuration_of_a_nested_shape_loads(tmp_path: Path) -> None:
    (block,) = blocks_of("docs/testing.md", "yaml")
    path = tmp_path / "consentgate.yaml"
    path.write_text(block, encoding="utf-8")
    assert load_config(str(path), {}).content.fields.subject == "data.author.id"


def test_every_command_on_the_page_on_testing_has_these_options() -> None:
    replay_options = {
        option
        for parameter in get_command(app).commands["replay"].params
        for option in parameter.opts
    }
    used = {
        option
        for block in blocks_of("docs/testing.md", "sh")
        for option in re.findall(r"(?<= )--?[a-z-]+", block)
    }
    assert used
    assert used <= replay_options


@dataclass(frozen=True)
class LedgerExample:
    value: bytes
    hash: str


@pytest.fixture
def entry() -> LedgerExample:
    facts = BatchFacts(
        first=7,
        last=9,
        decided_at_ms=1726826400000,
        frontier={3: 567},
        policy="réglage@31529b625a40",
        offsets=[7, 8],
        decisions=[decision(Reason.OPTED_IN, "EEA", 3), decision(Reason.MINOR, "*", 3)],
    )
    written = write_entry(Chain("gruppe-ä", "content-events", 3), facts, GENESIS)
    return LedgerExample(written.value, written.hash)


def test_the_recipe_for_the_hash_gives_the_hash(entry: LedgerExample) -> None:
    (block,) = blocks_of("docs/semantics.md", "python")
    recipe: dict[str, Any] = {}
    exec(block, recipe)
    assert recipe["entry_hash"](entry.value) == entry.hash
    changed = json.loads(entry.value)
    changed["counts"]["EEA"]["opted-in"] += 1
    assert recipe["entry_hash"](json.dumps(changed).encode()) != entry.hash


def test_the_page_of_the_semantics_has_every_field_of_a_ledger_entry(entry: LedgerExample) -> None:
    documented = set(rows_of("docs/semantics.md", "field"))
    assert documented == set(LedgerRecord.__struct_fields__)
    assert documented == {*json.loads(entry.value), "signature"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_target_of_make_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", text_of("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8"))) <= targets
