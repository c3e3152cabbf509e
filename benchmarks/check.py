"""`make bench-check`: whether this project has become slower, beside a plain aiokafka loop.

Rates depend on the machine; the ratio of two that take turns in one run depends on it less. It
fails where the median of the rounds' ratios is more than a quarter below the reference.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
from pathlib import Path

from rich.console import Console

from consentgate.tools.broker import EmbeddedKafka
from contenders import AIOKAFKA, CONSENTGATE
from throughput import Round, Throughput
from topics import Topics

REFERENCE = Path(__file__).with_name("reference.json")
EVENTS = 1_000_000
SUBJECTS = 50_000
ROUNDS = 3
SHARE_MIN = 0.75


async def rounds(kafka: EmbeddedKafka) -> list[tuple[Round, Round]]:
    """This project and the loop in turns, after a run that warms up the broker."""
    async with Topics(kafka.bootstrap_servers) as topics:
        bench = Throughput(topics, kafka.pid, EVENTS, SUBJECTS, Console(stderr=True))
        await bench.prepare([CONSENTGATE, AIOKAFKA])
        await bench.run(AIOKAFKA, "warm-up")
        return [
            (await bench.run(CONSENTGATE, f"{number}"), await bench.run(AIOKAFKA, f"{number}"))
            for number in range(ROUNDS)
        ]


def main() -> None:
    """Compare with the reference, or make it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="take the result for the reference")
    args = parser.parse_args()
    if not (args.write or REFERENCE.exists()):
        sys.exit(f"error: there is no {REFERENCE}: make one with --write on an idle machine")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with EmbeddedKafka() as kafka:
        pairs = asyncio.run(rounds(kafka))
    ratios = [ours.events_per_second / loop.events_per_second for ours, loop in pairs]
    cpu_ratio = statistics.median(o.cpu_us_per_event / p.cpu_us_per_event for o, p in pairs)
    ratio = statistics.median(ratios)
    if args.write:
        REFERENCE.write_text(json.dumps({"events_per_second_ratio": round(ratio, 2)}) + "\n")
    reference = json.loads(REFERENCE.read_text())["events_per_second_ratio"]
    print(
        f"consentgate decides {ratio:.2f} times as many events a second as a plain aiokafka loop, "
        f"at {cpu_ratio:.2f} times the CPU an event "
        f"(rounds: {', '.join(f'{one:.2f}' for one in ratios)}; reference: {reference:.2f})"
    )
    if ratio < SHARE_MIN * reference:
        sys.exit(f"error: that is less than {SHARE_MIN:.0%} of the reference, in {REFERENCE}")


if __name__ == "__main__":
    main()
