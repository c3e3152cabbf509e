"""The pytest plugin, in runs of pytest of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

POST = {
    "id": "e1",
    "subject": "m1",
    "kind": "post",
    "visibility": "public",
    "created_at": "2024-09-19T10:00:00Z",
}
LINES = [
    {"now": "2024-09-20T00:00:00Z"},
    {"topic": "consent-state", "key": "m1", "payload": {"subject": "m1", "jurisdiction": "GB"}},
    {"topic": "content-events", "key": "m1", "payload": POST, "expect": "forward"},
    {"topic": "content-events", "key": "m1", "payload": POST},
    {"topic": "content-events", "key": "m2", "payload": POST, "expect": "withhold"},
]
WITHOUT_OTHER_PLUGINS = ("-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")


def run(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", *WITHOUT_OTHER_PLUGINS, *arguments]
    return subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path / "cases.consent.jsonl", LINES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nconsentgate_policy = linkedin\n")
    return tmp_path


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_each_line_with_an_expectation_is_a_test(project: Path) -> None:
    done = run(project, "--junitxml=report.xml", "-rA")
    assert done.returncode == 1, done.stdout
    assert "PASSED cases.consent.jsonl::line-5" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert (
        f"{project}/cases.consent.jsonl:3: withhold:jurisdiction-suspended (GB), but forward was "
        "expected\n"
        "  at 2024-09-20T00:00:00.000Z the author was: GB, of unknown age, no choice made\n"
        "  policy linkedin@31529b625a40: line 32, suspended\n"
    ) in done.stdout
    assert 'name="line-3"' in (project / "report.xml").read_text()


def test_one_line_can_be_chosen(project: Path) -> None:
    done = run(project, "cases.consent.jsonl::line-5")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_nothing_is_collected_or_imported_without_configuration(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "test_own.py").write_text(
        "import sys\n"
        "def test_own():\n"
        "    loaded = {name for name in sys.modules if name.startswith('consentgate')}\n"
        "    assert loaded == {'consentgate', 'consentgate.pytest_plugin'}\n"
    )
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_other_files_are_left_alone_unless_they_are_named(project: Path) -> None:
    write(project / "data.jsonl", LINES[:3])
    (project / "lines.consent.jsonl").write_text("")
    assert "2 items" in run(project, "--collect-only").stdout.replace("tests collected", "items")
    ini = "[pytest]\nconsentgate_policy = linkedin\nconsentgate_files = data.jsonl\n"
    (project / "pytest.ini").write_text(ini)
    assert "data.jsonl::line-3" in run(project, "--collect-only", "-q").stdout


def test_paths_count_from_the_configuration_file_of_pytest(project: Path) -> None:
    policy = "{name: own, purpose: p, rules: [{jurisdictions: ['*'], basis: opt-out}]}"
    (project / "own.yaml").write_text(policy)
    (project / "consentgate.yaml").write_text("topics: {content: posts}\n")
    ini = "[pytest]\nconsentgate_policy = own.yaml\nconsentgate_config = consentgate.yaml\n"
    (project / "pytest.ini").write_text(ini)
    topics = {"content-events": "posts", "consent-state": "consent-state"}
    lines = [{**line, "topic": topics[str(line["topic"])]} for line in LINES if "topic" in line]
    (project / "below").mkdir()
    write(project / "below" / "cases.consent.jsonl", lines)
    done = run(project / "below", "-c", "../pytest.ini", "--rootdir=..", ".")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("ini", "line", "message"),
    [
        ("consentgate_policy = linkedn", "", "is no preset and no readable file"),
        ("consentgate_config = nowhere.yaml", "", "cannot read the configuration"),
        ("consentgate_policy = linkedin", "{", "cases.consent.jsonl:1: the line is not JSON"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_why(
    project: Path, ini: str, line: str, message: str
) -> None:
    (project / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    if line:
        (project / "cases.consent.jsonl").write_text(line)
    done = run(project)
    assert done.returncode == 2, done.stdout
    assert message in done.stdout
    assert "Traceback" not in done.stdout


def test_a_line_without_a_place_in_a_replay_fails_by_its_reason(project: Path) -> None:
    write(project / "cases.consent.jsonl", [{**LINES[2], "topic": "elsewhere"}])
    done = run(project)
    assert done.returncode == 1, done.stdout
    assert ":1: the topic is elsewhere, but must be content-events or" in done.stdout
