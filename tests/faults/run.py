"""`make faults` and `make soak`: every scenario, or a random mix of them, and what came of it.

A line of the table that shows a problem names the scenario and the seed; with these two it is
replayed: `make faults ARGS="worker-zombie --seed 7"`.
"""

import argparse
import asyncio
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import network
import processes
from arena import Result, Scenario, run
from consentgate.tools.jars import kafka_version, read_lock

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
RECORDS, INJECTIONS = 20_000, 5
SOAK_RECORDS, SOAK_INJECTIONS = 20_000, 3

SCENARIOS = {scenario.name: scenario for scenario in (*processes.SCENARIOS, *network.SCENARIOS)}

TEXT = """\
# What faults do

`make faults` brings each fault about on a broker of its own, while workers (`consentgate run`, as
users run it) work off a backlog, and people grant, withdraw and disappear all the time. Each
injection proves that it landed while work was in flight. In the end an oracle that shares no code
with the product (`tests/kafka/checker.py`) reads all topics.

- *lost*: content records without an outcome, or without the record that the outcome asks for;
- *duplicated*: records too many in the training topic;
- *against consent*: records forwarded although consent below the recorded frontier forbids it.

The oracle also checks the chain of the ledger, the order of each key's records, and that every
withdrawal is retracted. Every post carries how far its consent partition had been acknowledged when
it was appended; the frontier of its decision must cover that.

The recovery counts from the moment when the fault was taken away, or landed for good as with a
kill, until every partition has committed offsets twice. The partitions of a dead worker wait for
its session to time out, which here takes 3 s.

A broker may err, too. Apache Kafka 4.3.1 leaves transaction markers out for partitions that have no
leader at the moment, as after the crash of a single broker, and calls the transaction ended
(KAFKA-20734). The next commit of the same producer would commit what had been aborted. Hence each
takeover begins with a transaction that is aborted in every output partition. A single broker that
is stopped politely does the same to transactions that it calls committed. Hence a producer that has
lost a connection begins and commits nothing more: its partition is taken over anew, from what can
be read.

{head}
{matrix}

In all {records:,} records and {faults} faults.

| scenario | what happens |
|---|---|
{what}

Measured with `make faults` on {date}, after commit {commit}: Apache Kafka {kafka}, Python {python},
{cpus} CPUs. A failure is replayed by the scenario's name and the seed:
`make faults ARGS="worker-zombie --seed 1"`. The seed settles what happens, not the timing.
`make soak MINUTES=60` mixes the scenarios at random, and prints a seed, which `SEED=` repeats.
"""

# A log file is as wide as it needs to be.
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    scenario: Scenario
    seed: int
    injections: int
    records: int


def main() -> None:
    """Parse the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all of them by default")
    parser.add_argument("--seed", type=int, default=None, help="1; of a soak, a random one")
    parser.add_argument("--records", type=int, default=None, help="in each run")
    parser.add_argument("--injections", type=int, default=None, help="in each run")
    parser.add_argument("--soak-minutes", type=float, help="mix them at random for so long")
    parser.add_argument("--write", action="store_true", help="write the table to docs/faults.md")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    # The clients of the load complain of what is done on purpose.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    scenarios = [SCENARIOS[name] for name in args.scenarios or SCENARIOS]
    if args.soak_minutes is None:
        seed = 1 if args.seed is None else args.seed
        injections, records = args.injections or INJECTIONS, args.records or RECORDS
        plans: Iterable[Plan] = [Plan(s, seed, injections, records) for s in scenarios]
    else:
        seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
        console.print(f"The seed of this soak is {seed}.")
        injections, records = args.injections or SOAK_INJECTIONS, args.records or SOAK_RECORDS
        plans = soak(scenarios, args.soak_minutes, random.Random(seed), injections, records)
    try:
        results = asyncio.run(run_all(plans))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(128 + signal.SIGINT)
    console.print(table(results))
    for result in results:
        for problem in result.problems:
            console.print(f"{result.scenario.name}, seed {result.seed}: {problem}", markup=False)
    if args.write:
        PAGE.write_text(page(results))
    sys.exit(1 if any(result.problems for result in results) else 0)


def soak(
    scenarios: Sequence[Scenario],
    minutes: float,
    rng: random.Random,
    injections: int,
    records: int,
) -> Iterable[Plan]:
    """Runs of scenarios chosen at random, until the time is over."""
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        yield Plan(rng.choice(scenarios), rng.randrange(2**31), injections, records)


async def run_all(plans: Iterable[Plan]) -> list[Result]:
    """Run one plan after the other; each has an arena of its own."""
    results = []
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        for plan in plans:
            bar = bars.add_task(plan.scenario.name, total=plan.records)

            def show(decided: int, _: int, bar: object = bar) -> None:
                bars.update(bar, completed=decided)  # type: ignore[arg-type]

            result = await run(plan.scenario, plan.seed, plan.injections, plan.records, show)
            bars.remove_task(bar)
            said = f"{len(result.problems)} problems" if result.problems else "no problem"
            bars.console.print(
                f"{plan.scenario.name}, seed {plan.seed}: {result.records:,} records, "
                f"{result.injections} faults, {said}"
            )
            results.append(result)
    return results


HEADINGS = (
    "scenario",
    "records",
    "faults",
    "lost",
    "duplicated",
    "against consent",
    "recovery p50 / max, s",
)


def cells(result: Result) -> list[str]:
    """One line of the matrix."""
    lost, duplicated, against_consent = result.tally
    recovery = "-"
    if result.recovery_seconds:
        p50, longest = result.recovery_p50_seconds, result.recovery_max_seconds
        recovery = f"{p50:.1f} / {longest:.1f}"
    return [
        result.scenario.name,
        f"{result.records:,}",
        str(result.injections),
        str(lost),
        str(duplicated),
        str(against_consent),
        recovery,
    ]


def table(results: Sequence[Result]) -> Table:
    """The matrix for the terminal."""
    made = Table(*HEADINGS, "problems")
    for column in made.columns:
        column.no_wrap, column.overflow = True, "fold"
    for result in results:
        made.add_row(*cells(result), str(len(result.problems)))
    return made


def page(results: Sequence[Result]) -> str:
    """The matrix for the docs."""
    return TEXT.format(
        head=f"| {' | '.join(HEADINGS)} |\n|---|" + "---:|" * (len(HEADINGS) - 1),
        matrix="\n".join(f"| {' | '.join(cells(result))} |" for result in results),
        records=sum(result.records for result in results),
        faults=sum(result.injections for result in results),
        what="\n".join(f"| {r.scenario.name} | {r.scenario.what} |" for r in results),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=_commit(),
        kafka=kafka_version(read_lock()),
        python=platform.python_version(),
        cpus=os.cpu_count(),
    )


def _commit() -> str:
    described = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    return described.stdout.strip()


if __name__ == "__main__":
    main()
