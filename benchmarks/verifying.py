"""How fast `consentgate verify` goes through what a run left, and how much memory it takes.

The rate counts content, consent and training records, all of which it reads and compares.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from consentgate.tools.broker import EmbeddedKafka
from contenders import CONSENTGATE
from process import Usage, usage_of
from throughput import Throughput
from topics import Topics

console = Console()


async def leave_a_run(kafka: EmbeddedKafka, events: int, subjects: int, directory: Path) -> int:
    """Fill the topics and let a worker decide; how many records that makes."""
    async with Topics(kafka.bootstrap_servers) as topics:
        bench = Throughput(topics, kafka.pid, events, subjects, console)
        await bench.prepare([CONSENTGATE])
        await bench.work_off(CONSENTGATE, "verified", directory)
    forwarded = bench.events_for(CONSENTGATE).expected_count(CONSENTGATE.forwards)
    return events + subjects + forwarded


def verify(directory: Path, records: int) -> dict[str, float]:
    """Run the command to its end, and watch it."""
    config, policy = directory / "consentgate.yaml", directory / "policy.yaml"
    command = [sys.executable, "-m", "consentgate", "verify", "-c", str(config)]
    arguments = ["--policy", str(policy), "--format", "json"]
    began = time.monotonic()
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    used = Usage(0, 0)
    while process.poll() is None:
        # One that has ended still has its CPU time, but no memory any more.
        used = Usage(*map(max, used, usage_of(process.pid)))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"verify ended with {process.returncode}: {output}")
    return {
        "seconds": round(seconds, 1),
        "records_per_second": round(records / seconds),
        "cpu_us_per_record": round(used.cpu_seconds / records * 1e6, 2),
        "peak_rss_mb": round(used.peak_rss_mb),
        "violations": sum(p["violations"] for p in json.loads(output)["properties"].values()),
    }


def main() -> None:
    """Fill the topics, let a worker decide, verify, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--subjects", type=int, default=200_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedKafka() as kafka:
        directory = Path(name)
        records = asyncio.run(leave_a_run(kafka, args.events, args.subjects, directory))
        console.print_json(data=verify(directory, records))


if __name__ == "__main__":
    main()
