"""What a run came to, for people and for programs."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backlog import Withdrawals
from consentgate.tools.jars import kafka_version, read_lock
from contenders import CONSENTGATE, JVM, Consentgate, Contender, Forwards
from latency import Latency
from picture import Bar, write_picture
from throughput import Round

RESULTS = Path(__file__).parent / "results"

Rounds = Sequence[Round] | Sequence[Withdrawals] | Sequence[Latency]


@dataclass
class Results:
    """Rounds by the names of the contenders; `out` says why one is missing, or was stopped."""

    contenders: dict[str, Contender] = field(default_factory=dict)
    throughput: dict[str, list[Round]] = field(default_factory=dict)
    backlog: dict[str, list[Withdrawals]] = field(default_factory=dict)
    latency: dict[int, dict[str, list[Latency]]] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)


def median(rounds: Rounds, name: str) -> float | None:
    """Of one figure over all rounds that have it."""
    figures = [figure for of in rounds if (figure := getattr(of, name)) is not None]
    return statistics.median(figures) if figures else None


def ratio(rounds: Mapping[str, Rounds], name: str, figure: str) -> float | None:
    """consentgate's median, divided by that of `name`."""
    ours, theirs = (median(rounds.get(of, ()), figure) for of in (CONSENTGATE.name, name))
    return ours / theirs if ours and theirs else None


def write(results: Results, args: dict[str, Any], console: Console, picture: Path | None) -> None:
    """Print everything; write JSON and a picture to `results/`, and the picture to `picture`."""
    machine = machine_of_run()
    _print_throughput(results, console)
    _print_backlog(results, console)
    _print_latency(results, console)
    for name, why in results.out.items():
        console.print(f"{results.contenders[name].title}: {why}", markup=False, highlight=False)
    _print_settings(results, args, machine, console)
    RESULTS.mkdir(exist_ok=True)
    figures = {
        "machine": machine,
        "arguments": args,
        "jvm": JVM,
        "settings": {name: of.settings for name, of in results.contenders.items()},
        **{part: getattr(results, part) for part in ("throughput", "backlog", "latency", "out")},
        "ratios": {
            name: {
                figure: ratio(results.throughput, name, figure)
                for figure in ("events_per_second", "cpu_us_per_event")
            }
            for name in results.throughput
        },
    }
    path = RESULTS / "bench.json"
    path.write_text(json.dumps(figures, indent=2, default=_plain) + "\n", encoding="utf-8")
    console.print(f"everything: {path}", highlight=False)
    if results.throughput:
        for target in (RESULTS / "throughput.svg", *([picture] if picture else [])):
            write_picture(target, _bars(results), _note(args, machine))
            console.print(f"picture: {target}", highlight=False)


def _print_throughput(results: Results, console: Console) -> None:
    table = _table(
        "throughput, medians of the steady state",
        ("events/s", "CPU µs/event", "broker µs/event", "peak MB", "table records/s"),
        ("x events/s", "x CPU"),
    )
    for name, rounds in results.throughput.items():
        table.add_row(
            *_named(results.contenders[name]),
            _show(median(rounds, "events_per_second")),
            _show(median(rounds, "cpu_us_per_event"), 2),
            _show(median(rounds, "broker_cpu_us_per_event"), 2),
            _show(median(rounds, "peak_rss_mb")),
            _show(median(rounds, "table_records_per_second")),
            _show(ratio(results.throughput, name, "events_per_second"), 2),
            _show(ratio(results.throughput, name, "cpu_us_per_event"), 2),
        )
    _print(table, console)


def _print_backlog(results: Results, console: Console) -> None:
    table = _table(
        "twenty people withdraw while a backlog is worked off",
        ("effect p50 ms", "effect max ms", "committed after", "withheld", "events/s"),
    )
    for name, rounds in results.backlog.items():
        table.add_row(
            *_named(results.contenders[name]),
            _show(median(rounds, "effect_ms_p50")),
            _show(median(rounds, "effect_ms_max")),
            _show(median(rounds, "committed_after")),
            _show(median(rounds, "withheld")),
            _show(median(rounds, "events_per_second")),
        )
    _print(table, console)


def _print_latency(results: Results, console: Console) -> None:
    table = _table(
        "append to readable by a read_committed reader",
        ("events/s", "p50 ms", "p99 ms", "worker cores", "broker cores"),
        ("x p50",),
    )
    for rate, by_name in results.latency.items():
        for name, rounds in by_name.items():
            table.add_row(
                *_named(results.contenders[name]),
                f"{rate:,}",
                _show(median(rounds, "p50_ms")),
                _show(median(rounds, "p99_ms")),
                _show(median(rounds, "worker_cores"), 2),
                _show(median(rounds, "broker_cores"), 2),
                _show(ratio(by_name, name, "p50_ms"), 2),
            )
    _print(table, console)


def _print_settings(
    results: Results, args: dict[str, Any], machine: dict[str, Any], console: Console
) -> None:
    console.print("x: consentgate's figure, divided by that of the row", highlight=False)
    for name, contender in results.contenders.items():
        settings = json.dumps(contender.settings) if contender.settings else "as shipped"
        console.print(f"settings of {name}: {settings}", markup=False, highlight=False)
    console.print(f"JVM of the peers: {' '.join(JVM)}", highlight=False)
    console.print(f"{machine}; {args}; the broker on the same cores", markup=False, highlight=False)


def _named(contender: Contender) -> tuple[str, str]:
    return contender.title, contender.note


def _table(title: str, figures: Sequence[str], ratios: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    table.add_column("how", max_width=40)
    for name in (*figures, *ratios):
        table.add_column(name, justify="right")
    return table


def _print(table: Table, console: Console) -> None:
    if table.row_count:
        console.print(table)


def _show(figure: float | None, digits: int = 0) -> str:
    return "-" if figure is None else f"{figure:,.{digits}f}"


def _bars(results: Results) -> list[Bar]:
    bars = []
    for name, rounds in results.throughput.items():
        contender = results.contenders[name]
        rate, cost = (median(rounds, f) for f in ("events_per_second", "cpu_us_per_event"))
        assert rate is not None
        assert cost is not None
        style = "ours" if isinstance(contender, Consentgate) else "peer"
        if contender.forwards is not Forwards.DECIDED:
            style = "bare"
        bars.append(Bar(contender.title, contender.note, rate, cost, style))
    return bars


def _note(args: dict[str, Any], machine: dict[str, Any]) -> str:
    return (
        f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores with the broker "
        f"on them; {args['events']:,} events, {args['subjects']:,} subjects, "
        f"medians of {args['rounds']} rounds"
    )


def machine_of_run() -> dict[str, Any]:
    """Where and with which versions the figures come about."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
        "java": _java(),
        "kafka": kafka_version(read_lock()),
        "consentgate": version("consentgate"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _java() -> str:
    """The version of the peers' Java; none is needed where they do not take part."""
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "none"
    return said.stderr.partition("\n")[0]


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot be written as JSON: {type(value).__name__}")
