"""What redaction costs a worker, and how it scales over processes.

The same events are decided without redaction, and with all detectors, but for that of names, on one
and on more processes.
"""

import argparse
import asyncio
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from consentgate.tools.broker import EmbeddedKafka
from run import Bench, console
from workload import redacting_policy


def main() -> None:
    """Fill the topics, run each variant, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--subjects", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
        bench = Bench(kafka.bootstrap_servers, Path(directory), args.events, args.subjects)
        asyncio.run(bench.prepare())
        found = {"without redaction": asdict(bench.consentgate(0))}
        # The texts hold nothing to be found: each record goes on as it came, and is compared.
        (Path(directory) / "policy.yaml").write_text(redacting_policy())
        for number, processes in enumerate(sorted({1, os.cpu_count() or 1}), start=1):
            os.environ["CONSENTGATE_REDACTION__PROCESSES"] = str(processes)
            found[f"all detectors, processes: {processes}"] = asdict(bench.consentgate(number))
        console.print_json(data=found)


if __name__ == "__main__":
    main()
