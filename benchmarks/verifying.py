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

from consentgate.tools.broker import EmbeddedKafka
from run import Bench, console, usage_of


def verify(config: Path, policy: Path, records: int) -> dict[str, float]:
    """Run the command to its end, and watch it."""
    command = [sys.executable, "-m", "consentgate", "verify", "-c", str(config)]
    arguments = ["--policy", str(policy), "--format", "json"]
    began = time.monotonic()
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    cpu_seconds = peak_rss_mb = 0.0
    while process.poll() is None:
        cpu, peak = usage_of(process.pid)
        cpu_seconds, peak_rss_mb = max(cpu, cpu_seconds), max(peak, peak_rss_mb)
        time.sleep(0.05)
    seconds = time.monotonic() - began
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"verify ended with {process.returncode}: {output}")
    return {
        "seconds": round(seconds, 1),
        "records_per_second": round(records / seconds),
        "cpu_us_per_record": round(cpu_seconds / records * 1e6, 2),
        "peak_rss_mb": round(peak_rss_mb),
        "violations": sum(p["violations"] for p in json.loads(output)["properties"].values()),
    }


def main() -> None:
    """Fill the topics, let a worker decide, verify, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--subjects", type=int, default=200_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
        bench = Bench(kafka.bootstrap_servers, Path(directory), args.events, args.subjects)
        asyncio.run(bench.prepare())
        bench.consentgate(0)
        config, policy = Path(directory) / "bench-0.yaml", Path(directory) / "policy.yaml"
        records = args.events + args.subjects + bench.expected
        console.print_json(data=verify(config, policy, records))


if __name__ == "__main__":
    main()
