"""How many workers, how much memory, how long a start: the tables of docs/performance.md.

Reads what `make scaling` wrote; prints what each factor costs, the constants of the model, what it
says of large sizes, and by how much it misses the memory and the start of each measured point.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import RESULTS
from scaling import FACTORS

FIGURES = RESULTS / "scaling.json"
SNAPSHOT_SUBJECTS_PER_SECOND = 2_332_393
"""What `bootstrap.py` came to; see "Start-up" in docs/performance.md."""

SUBJECTS = (10_000_000, 100_000_000, 1_000_000_000)
RATES = (100_000, 1_000_000)
PARTITIONS_OF_A_WORKER = 4
_MB = 2**20
Points = list[Mapping[str, Any]]
_NEEDED = ("subjects", "partitions")


@dataclass(frozen=True)
class Limits:
    """What one worker is given: the share of a core that is to be busy, and memory."""

    utilisation: float
    memory_gb: float


@dataclass(frozen=True)
class Constants:
    """What the formulas are made of."""

    cpu_us_per_event: float
    base_mb: float
    mb_per_partition: float
    bytes_per_subject: float
    base_seconds: float
    topic_subjects_per_second: float

    def worker_bytes(self, subjects: float, partitions: float) -> float:
        """Memory of a worker that holds so many subjects, at its peak."""
        fixed_mb = self.base_mb + self.mb_per_partition * partitions
        return fixed_mb * _MB + self.bytes_per_subject * subjects

    def workers(self, subjects: int, rate: int, limits: Limits, is_shared: bool) -> int:
        """As many as the rate needs, and as many as hold the table where they share it."""
        by_cpu = math.ceil(rate * self.cpu_us_per_event / (1e6 * limits.utilisation))
        if not is_shared:
            return by_cpu
        room = limits.memory_gb * 1e9 - self.worker_bytes(0, PARTITIONS_OF_A_WORKER)
        return max(by_cpu, math.ceil(subjects * self.bytes_per_subject / room))

    def start_seconds(self, subjects: float, subjects_per_second: float) -> float:
        """From the start of a worker until its tables are ready."""
        return self.base_seconds + subjects / subjects_per_second


def constants_of(points: Points) -> Constants:
    """Lines through the least and the most; of partitions the steepest, to be on the safe side."""
    subjects = _figures(points, "subjects")
    (few, at_few), *_, (many, at_many) = sorted(subjects.items())
    grown_bytes = (at_many["peak_rss_mb"] - at_few["peak_rss_mb"]) * _MB
    bytes_per_subject = grown_bytes / (many - few)
    per_second = (many - few) / (at_many["ready_seconds"] - at_few["ready_seconds"])
    (first, at_first), *others = sorted(_figures(points, "partitions").items())
    mb_per_partition = max(
        (at["peak_rss_mb"] - at_first["peak_rss_mb"]) / (number - first) for number, at in others
    )
    # The base case is a point of both.
    case = next(point["case"] for point in points if point["factor"] == "subjects")
    table_mb = bytes_per_subject * few / _MB
    return Constants(
        cpu_us_per_event=_figures(points, "partitions")[case["partitions"]]["cpu_us_per_event"],
        base_mb=at_few["peak_rss_mb"] - mb_per_partition * case["partitions"] - table_mb,
        mb_per_partition=mb_per_partition,
        bytes_per_subject=bytes_per_subject,
        base_seconds=at_few["ready_seconds"] - few / per_second,
        topic_subjects_per_second=per_second,
    )


def _figures(points: Points, factor: str) -> dict[int, Mapping[str, float]]:
    return {point["value"]: point["figures"] for point in points if point["factor"] == factor}


def constants_table(constants: Constants) -> list[str]:
    """In the order and with the letters of the docs."""
    rows = [
        ("c", "CPU of an event", f"{constants.cpu_us_per_event:.2f} µs"),
        ("m0", "memory of a worker without a table", f"{constants.base_mb:.0f} MB"),
        ("p", "memory of a partition", f"{constants.mb_per_partition:.1f} MB"),
        ("b", "memory of a subject", f"{constants.bytes_per_subject:.0f} bytes"),
        ("t0", "start without a table", f"{constants.base_seconds:.1f} s"),
        ("r", "subjects a second from the topic", f"{constants.topic_subjects_per_second:,.0f}"),
        ("s", "subjects a second from a snapshot", f"{SNAPSHOT_SUBJECTS_PER_SECOND:,}"),
    ]
    return _markdown(("", "constant", "value"), rows)


def plans_table(constants: Constants, limits: Limits) -> list[str]:
    """What the formulas say of each size, in both scopes."""
    rows = []
    for subjects in SUBJECTS:
        for rate in RATES:
            for scope in ("partition", "global"):
                is_shared = scope == "partition"
                workers = constants.workers(subjects, rate, limits, is_shared)
                held = subjects / workers if is_shared else subjects
                memory_gb = constants.worker_bytes(held, PARTITIONS_OF_A_WORKER) / 1e9
                starts = (
                    constants.start_seconds(held, per_second)
                    for per_second in (
                        constants.topic_subjects_per_second,
                        SNAPSHOT_SUBJECTS_PER_SECOND,
                    )
                )
                row = (f"{subjects:,}", f"{rate:,}", scope, f"{workers}", f"{memory_gb:.1f} GB")
                rows.append((*row, *(f"{seconds:,.0f} s" for seconds in starts)))
    head = ("subjects", "events/s", "scope", "workers", "memory of each", "from the topic")
    return _markdown((*head, "from snapshots"), rows)


def costs_table(points: Points) -> list[str]:
    """What an event costs at each value of each factor."""
    rows = []
    for name, factor in FACTORS.items():
        found = _figures(points, name)
        costs = [figures["cpu_us_per_event"] for figures in found.values()]
        if len(costs) > 1:
            values = " / ".join(map(factor.show, found))
            shown = " / ".join(f"{cost:.1f}" for cost in costs)
            rows.append((factor.title, values, shown, f"{max(costs) / min(costs):.2f}"))
    return _markdown(("factor", "values", "CPU µs an event", "dearest / cheapest"), rows)


def misses_table(constants: Constants, points: Points) -> list[str]:
    """Memory and start of each point, measured and by the model; workers share the table there."""
    rows = []
    for point in points:
        factor, case, figures = FACTORS[point["factor"]], point["case"], point["figures"]
        subjects, partitions = (case[of] / case["workers"] for of in ("subjects", "partitions"))
        memory_mb = case["workers"] * constants.worker_bytes(subjects, partitions) / _MB
        seconds = constants.start_seconds(subjects, constants.topic_subjects_per_second)
        memory = _compared(figures["peak_rss_mb"], memory_mb, 0)
        start = _compared(figures["ready_seconds"], seconds, 1)
        rows.append((factor.title, factor.show(point["value"]), *memory, *start))
    head = ("factor", "value", "memory MB", "by the model", "miss")
    return _markdown((*head, "start s", "by the model", "miss"), rows)


def _compared(measured: float, modelled: float, digits: int) -> tuple[str, str, str]:
    miss = f"{modelled / measured - 1:+.0%}"
    return f"{measured:,.{digits}f}", f"{modelled:,.{digits}f}", miss


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utilisation", type=float, default=0.6, help="of a worker's core")
    parser.add_argument("--memory-gb", type=float, default=16, help="of a worker")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="what make scaling wrote")
    args = parser.parse_args()
    try:
        points = json.loads(args.figures.read_text(encoding="utf-8"))["points"]
    except FileNotFoundError:
        sys.exit(f"error: there is no {args.figures}: run make scaling")
    for factor in _NEEDED:
        if len(_figures(points, factor)) < 2:
            sys.exit(f"error: {args.figures} lacks {factor}: run make scaling without --only")
    constants = constants_of(points)
    if args.memory_gb * 1e9 <= constants.worker_bytes(0, PARTITIONS_OF_A_WORKER):
        parser.error("--memory-gb is less than a worker takes without a table")
    tables = (
        costs_table(points),
        constants_table(constants),
        plans_table(constants, Limits(args.utilisation, args.memory_gb)),
        misses_table(constants, points),
    )
    print("\n".join(line for table in tables for line in table))


if __name__ == "__main__":
    main()
