"""The lists of mutants fit the sources and the tests that they speak of."""

import re
from collections import Counter
from pathlib import Path

from mutants import ROOT, SRC, Mutant, mutated, read_mutants

MUTANTS = read_mutants()


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert [name for name, n in Counter(m.name for m in MUTANTS).items() if n > 1] == []
    assert [m.name for m in MUTANTS if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", m.name)] == []


def test_what_a_mutant_replaces_is_there_once() -> None:
    assert [m.name for m in MUTANTS if source(m).count(m.old) != 1 or m.new == m.old] == []


def test_a_mutant_is_still_a_program() -> None:
    for mutant in MUTANTS:
        compile(source(mutant).replace(mutant.old, mutant.new), mutant.name, "exec")


def test_a_mutant_says_in_a_sentence_what_would_go_wrong() -> None:
    assert [m.name for m in MUTANTS if not re.fullmatch(r"[A-Z`].+\.", m.why)] == []


def test_the_tests_that_kill_a_mutant_are_there() -> None:
    named = {test for mutant in MUTANTS for test in mutant.killed_by}
    assert [test for test in named if not is_there(test)] == []
    assert [mutant.name for mutant in MUTANTS if not mutant.killed_by] == []


def test_a_mutated_copy_differs_in_one_file_only() -> None:
    mutant = MUTANTS[0]
    with mutated(mutant) as src:
        copies = {path.relative_to(src) for path in src.rglob("*.py")}
        differing = [p for p in copies if (src / p).read_bytes() != (SRC / p).read_bytes()]
    assert copies == {path.relative_to(SRC) for path in SRC.rglob("*.py")}
    assert differing == [mutant.path]


def source(mutant: Mutant) -> str:
    return (SRC / mutant.path).read_text()


def is_there(test: str) -> bool:
    """Whether there is a test function with this node id."""
    file, _, name = test.partition("::")
    path = Path(ROOT, file)
    text = path.read_text() if path.is_file() else ""
    return re.search(rf"^(async )?def {re.escape(name)}\(", text, re.MULTILINE) is not None
