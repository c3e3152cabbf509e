"""`make bench`: this project beside its peers, in one run, on the embedded broker.

All decide on the same events, by the same policy, and take turns: throughput, a withdrawal under a
backlog, latency at fixed rates. What each forwards is compared with what is to be forwarded.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rich.console import Console

from arguments import parsed
from backlog import Backlog
from consentgate.tools.broker import EmbeddedKafka
from contenders import BY_LATENCY, CONTENDERS, HERE, Contender, Forwards, Unavailable
from latency import RATES, Latencies
from process import Failed
from report import Results, write
from throughput import Throughput
from topics import Topics

PICTURE = HERE.parent / "docs" / "throughput.svg"
PARTS = ("throughput", "backlog", "latency")
# What a round has written is not needed after it.
BROKER = {"log.segment.delete.delay.ms": "1000"}
FULL = {"events": 3_000_000, "subjects": 200_000, "rounds": 3, "latency_seconds": 10}
QUICK = {"events": 200_000, "subjects": 20_000, "rounds": 1, "latency_seconds": 3}
Measured = TypeVar("Measured")
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass
class Bench:
    """One run of everything that was asked for."""

    kafka: EmbeddedKafka
    topics: Topics
    args: argparse.Namespace
    results: Results

    async def throughput(self, contenders: list[Contender]) -> None:
        """Rounds on the content topic, after a run that warms up the broker."""
        args, rounds = self.args, self.results.throughput
        bench = Throughput(self.topics, self.kafka.pid, args.events, args.subjects, console)
        await bench.prepare(contenders)
        console.print("warming up the broker")
        await self._try(contenders[0], {}, partial(bench.run, contenders[0], "warm-up"))
        for number in range(args.rounds):
            for one in _in_turn(contenders, number):
                await self._try(one, rounds, partial(bench.run, one, f"{number}"))

    async def backlog(self, contenders: list[Contender]) -> None:
        """Withdrawals under a backlog of half of the events, for those that join."""
        rounds = self.results.backlog
        joining = [c for c in contenders if c.forwards is Forwards.DECIDED and not c.is_slow]
        bench = Backlog(self.topics, self.args.events // 2, console)
        await bench.prepare()
        for number in range(self.args.rounds):
            for one in _in_turn(joining, number):
                await self._try(one, rounds, partial(bench.run, one, f"backlog-{number}"))

    async def latency(self, contenders: list[Contender]) -> None:
        """Latency at fixed rates, for those of which that is measured."""
        bench = Latencies(self.topics, self.kafka.pid, self.args.latency_seconds)
        await bench.prepare()
        for number in range(self.args.rounds):
            for rate in RATES:
                rounds = self.results.latency.setdefault(rate, {})
                for one in _in_turn(contenders, number):
                    await self._try(one, rounds, partial(bench.run, one, rate, f"{rate}-{number}"))

    async def _try(
        self,
        contender: Contender,
        rounds: dict[str, list[Measured]],
        run: Callable[[], Awaitable[Measured]],
    ) -> None:
        """Add what a run comes to; a contender that fails is left out from then on."""
        if contender.name in self.results.out:
            return
        try:
            measured = await run()
        except Failed as failed:
            self.results.out[contender.name] = f"failed: {failed}"
            console.print(f"{contender.title}: {failed}", style="red", markup=False)
            return
        rounds.setdefault(contender.name, []).append(measured)
        console.print(f"{contender.title}: {measured}", markup=False, highlight=False)


def _in_turn(contenders: list[Contender], number: int) -> list[Contender]:
    """Each round begins with another one, so that nobody always comes after the same."""
    first = number % max(1, len(contenders))
    return contenders[first:] + contenders[:first]


def _prepared(
    contenders: Sequence[Contender], only: list[str], results: Results
) -> list[Contender]:
    """Those that can take part; why the others cannot is noted."""
    able = []
    for contender in contenders:
        if only and contender.name not in only:
            continue
        results.contenders[contender.name] = contender
        try:
            contender.prepare()
        except Unavailable as why:
            results.out[contender.name] = str(why)
        else:
            able.append(contender)
    return able


async def bench(args: argparse.Namespace) -> Results:
    """Run what was asked for."""
    results = Results()
    console.print("preparing the contenders")
    by_rate = CONTENDERS if {"throughput", "backlog"} & set(args.parts) else ()
    contenders = _prepared(by_rate, args.only, results)
    by_latency = _prepared(BY_LATENCY if "latency" in args.parts else (), args.only, results)
    with EmbeddedKafka(config=BROKER) as kafka:
        async with Topics(kafka.bootstrap_servers) as topics:
            run = Bench(kafka, topics, args, results)
            if "throughput" in args.parts and contenders:
                await run.throughput(contenders)
            if "backlog" in args.parts and contenders:
                await run.backlog(contenders)
            if by_latency:
                await run.latency(by_latency)
    return results


def arguments() -> argparse.Namespace:
    """The command line; what `--quick` makes smaller can still be given."""
    names = sorted({contender.name for contender in (*CONTENDERS, *BY_LATENCY)})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, help=f"{FULL['events']:,} by default")
    parser.add_argument("--subjects", type=int, help=f"{FULL['subjects']:,} by default")
    parser.add_argument("--rounds", type=int, help=f"{FULL['rounds']} by default")
    parser.add_argument("--latency-seconds", type=float, help="of each measurement of latency")
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="NAME")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    return parsed(parser, FULL, QUICK)


def main() -> None:
    """Run, print, write; exit with 1 where a contender failed."""
    args = arguments()
    # The client reports every retry as an error.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    results = asyncio.run(bench(args))
    is_full = not args.only and all(getattr(args, name) == value for name, value in FULL.items())
    write(results, vars(args), console, PICTURE if is_full else None)
    sys.exit(any(why.startswith("failed") for why in results.out.values()))


if __name__ == "__main__":
    main()
