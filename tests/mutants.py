"""The mutation score of the safeguards: each is taken away once, and some test must fail.

Each `mutants.toml` in `src/consentgate` lists the safeguards of the modules beside it: which text
is replaced by which, what would go wrong then, and the tests that notice. A mutant is killed where
one of these tests fails; a test that cannot even begin proves nothing. Run it with `make mutants`.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

ON_THE_BROKER = ("tests/kafka/", "tests/faults/", "tests/conformance/")
"""Where the tests lie that start a broker."""

WITH_PRESIDIO = "tests/presidio/"
"""Where the tests lie that need `.venv-presidio`."""

MUTANT_SECONDS_MAX = 180.0
UNMUTATED_SECONDS_MAX = 1_200.0

DEADLINE_SECONDS = 12
"""For what the tests on the broker wait for. Most mutants keep something from ever happening."""

_TESTS_FAILED = 1
_OTHER_SOURCES = 70
_RUN = f"""
import sys, consentgate, pytest
if not consentgate.__file__.startswith(sys.argv[1]):
    sys.exit({_OTHER_SOURCES})
sys.exit(pytest.main(sys.argv[2:]))
"""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One safeguard that is taken away."""

    name: str
    why: str
    file: str  # beside the list
    old: str
    new: str
    killed_by: list[str]
    hangs: bool = False  # tests that do not end are what is to be seen
    directory: str = ""  # of the list, relative to the sources; it stands in no list

    @property
    def path(self) -> Path:
        """The mutated file, relative to the sources."""
        return Path(self.directory, self.file)

    @property
    def on_the_broker(self) -> bool:
        """Whether a test of it starts a broker."""
        return any(test.startswith(ON_THE_BROKER) for test in self.killed_by)


@dataclass(frozen=True, slots=True)
class Run:
    """What became of some tests."""

    exit_code: int | None  # None where the time ran out
    failures: int
    output: str
    seconds: float

    def kills(self, mutant: Mutant) -> bool:
        """Whether the tests have noticed the mutant."""
        if self.exit_code is None:
            return mutant.hangs
        return self.exit_code == _TESTS_FAILED and self.failures > 0


def read_mutants() -> list[Mutant]:
    """The mutants of all lists."""
    return [
        msgspec.convert({**entry, "directory": str(path.parent.relative_to(SRC))}, Mutant)
        for path in sorted(SRC.rglob("mutants.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


@contextlib.contextmanager
def mutated(mutant: Mutant | None) -> Iterator[Path]:
    """A copy of the sources without the safeguard, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        src = Path(name, "src")
        shutil.copytree(SRC, src, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = src / mutant.path
            text = file.read_text()
            assert text.count(mutant.old) == 1, f"{mutant.name}: the text must be there once"
            file.write_text(text.replace(mutant.old, mutant.new))
        yield src


async def run_tests(src: Path, tests: Sequence[str], seconds_max: float) -> Run:
    """Run the tests on these sources; all processes that they started end with them.

    The first one says in which environment.
    """
    with_presidio = tests[0].startswith(WITH_PRESIDIO)
    python = ROOT / ".venv-presidio/bin/python" if with_presidio else sys.executable
    report = src.with_name("report.xml")
    options = ("-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0")
    places = (f"--basetemp={src.with_name('tmp')}", f"--junitxml={report}")
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", _RUN, str(src), *options, *places, *tests),
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(src),
            "TEST_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(src.with_name("hypothesis")),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    output, exit_code = b"", None
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                output, _ = await process.communicate()
                exit_code = process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert exit_code != _OTHER_SOURCES, "the tests must run on the mutated sources"
    failures = _failures(report) if exit_code is not None else 0
    return Run(exit_code, failures, output.decode(errors="replace"), time.monotonic() - began)


def _failures(report: Path) -> int:
    """How many tests failed; those that could not begin are errors, and do not count."""
    if not report.exists():
        return 0
    suites = ET.parse(report).getroot().iter("testsuite")
    return sum(int(suite.attrib["failures"]) for suite in suites)


async def check_unmutated(console: Console, mutants: Sequence[Mutant]) -> bool:
    """Whether all tests that the lists name pass as things are."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.killed_by))
    console.print(f"{len(tests)} tests without any mutation ...")
    tests.sort(key=lambda test: test.startswith(WITH_PRESIDIO))
    with mutated(None) as src:
        for _, some in groupby(tests, key=lambda test: test.startswith(WITH_PRESIDIO)):
            run = await run_tests(src, list(some), UNMUTATED_SECONDS_MAX)
            if run.exit_code != 0:
                console.print(run.output, markup=False, highlight=False)
                console.print("[red]The tests must pass before anything is taken away.")
                return False
    return True


async def run_mutants(console: Console, mutants: Sequence[Mutant]) -> dict[str, Run]:
    """What became of the tests of each mutant, by its name."""
    runs: dict[str, Run] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("mutants", total=len(mutants))

        async def run(*queues: deque[Mutant]) -> None:
            for queue in queues:
                while queue:
                    mutant = queue.popleft()
                    with mutated(mutant) as src:
                        tests = mutant.killed_by
                        runs[mutant.name] = await run_tests(src, tests, MUTANT_SECONDS_MAX)
                    if not runs[mutant.name].kills(mutant):
                        progress.console.print(f"[red]survived: {mutant.name}")
                    progress.advance(bar)

        on_the_broker = deque(mutant for mutant in mutants if mutant.on_the_broker)
        others = deque(mutant for mutant in mutants if not mutant.on_the_broker)
        # Two at a time. One broker is enough; mostly its tests wait for what does not come.
        async with asyncio.TaskGroup() as group:
            group.create_task(run(on_the_broker, others))
            group.create_task(run(others))
    return runs


def print_table(console: Console, mutants: Sequence[Mutant], runs: dict[str, Run]) -> None:
    """A line for each mutant, and in full what the survivors' tests said."""
    table = Table()
    for column in ("mutant", "file", "outcome", "seconds"):
        table.add_column(column, overflow="fold")
    for mutant in mutants:
        run = runs[mutant.name]
        outcome = "killed" if run.kills(mutant) else "[red]survived"
        file = str(mutant.path.relative_to("consentgate"))
        table.add_row(mutant.name, file, outcome, f"{run.seconds:.1f}")
    console.print(table)
    for mutant in mutants:
        run = runs[mutant.name]
        if not run.kills(mutant):
            ended = "ran out of time" if run.exit_code is None else f"exited with {run.exit_code}"
            console.print(f"\n[red]{mutant.name}[/]: {mutant.why}\n{mutant.path}; pytest {ended}:")
            console.print(run.output[-2_000:], markup=False, highlight=False)


async def main(only: Sequence[str]) -> int:
    """Run the mutants; the exit code."""
    console, began = Console(), time.monotonic()
    task = asyncio.current_task()
    assert task is not None, "in a task"
    # As an interruption does, so that no test outlives its run.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    mutants = [mutant for mutant in read_mutants() if not only or mutant.name in only]
    unknown = set(only) - {mutant.name for mutant in mutants}
    if unknown:
        console.print(f"[red]no such mutant: {', '.join(sorted(unknown))}")
        return 2
    if not await check_unmutated(console, mutants):
        return 1
    runs = await run_mutants(console, mutants)
    print_table(console, mutants, runs)
    killed = sum(runs[mutant.name].kills(mutant) for mutant in mutants)
    console.print(f"{killed}/{len(mutants)} killed in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take each safeguard away; some test must fail.")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="just this mutant; repeatable"
    )
    try:
        sys.exit(asyncio.run(main(parser.parse_args().only)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
