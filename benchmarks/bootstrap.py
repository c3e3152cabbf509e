"""How long it takes until a consent table is ready, from the topic and from a snapshot.

Each time a process of its own follows all partitions, so that its memory can be seen. The one that
reads the topic then writes the snapshots, and notes for how long its event loop stood still. At the
end a worker starts with them, and says when it is ready.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import track

from consentgate import __version__
from consentgate.config import load_config
from consentgate.core.decode import consent_decoder
from consentgate.core.snapshot import Identity
from consentgate.kafka.cluster import connected
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.layout import read_layout
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.snapshots import Snapshots
from consentgate.memory import collect_garbage_rarely
from consentgate.tools.broker import EmbeddedKafka
from peers.task import PARTITIONS
from topics import Topics
from workload import POLICY, Workload

PURPOSE = "ai-training"
console = Console()


async def fill(servers: str, subjects: int) -> None:
    """One consent record for each subject."""
    async with Topics(servers) as topics:
        records = Workload(subjects).consent()
        shown = track(records, "appending", total=subjects, console=console)
        await topics.fill("consent-state", shown)


async def follow(path: str) -> dict[str, float]:
    """Follow all partitions until they are ready, in this process; then write snapshots."""
    config = load_config(path)
    settings, layout = kafka_settings(config.kafka), await read_layout(config)
    async with connected(settings, timeout_seconds=60) as cluster:
        cluster_id = await cluster.id()
    identity = Identity(
        cluster=cluster_id,
        topic=config.topics.consent,
        topic_partitions=layout.counts[config.topics.consent],
        scope=layout.scope,
        purpose=PURPOSE,
        fields=config.consent.fields,
        max_depth=config.limits.max_depth,
        version=__version__,
    )
    assert config.snapshot is not None, "the configuration names a directory"
    snapshots = Snapshots(config.snapshot, config.group, identity, layout.deletions_kept_ms)
    decode = consent_decoder(config.consent.fields, PURPOSE, config.limits.max_depth)
    view = ConsentView(settings, config.topics.consent, decode, print, print)
    await view.start(layout.misplaced, layout.deletions_kept_ms, snapshots)
    collect_garbage_rarely()
    before_mb, began, cpu_began = rss_mb(), time.perf_counter(), cpu_seconds()
    gaps: list[float] = []
    running, watching = asyncio.create_task(view.run()), asyncio.create_task(watch(gaps))
    tables = [view.follow([partition]) for partition in range(PARTITIONS)]
    for table in tables:
        await view.await_frontier(table, await view.high_watermarks(table))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    after_mb, subjects = rss_mb(), view.subjects()
    pause = max(gaps)
    gaps.clear()
    began = time.perf_counter()
    await view.save()
    save_seconds = time.perf_counter() - began
    for task in (watching, running):
        task.cancel()
    await asyncio.gather(watching, running, return_exceptions=True)
    await view.stop()
    files = list(Path(config.snapshot).iterdir())
    return {
        "subjects": subjects,
        "seconds": round(seconds, 2),
        "subjects_per_second": round(subjects / seconds),
        "cpu_us_per_subject": round(cpu / subjects * 1e6, 2),
        "bytes_per_subject": round((after_mb - before_mb) * 1e6 / subjects),
        "longest_pause_ms": round(pause * 1000, 1),
        "save_seconds": round(save_seconds, 2),
        "longest_pause_saving_ms": round(max(gaps, default=0) * 1000, 1),
        "snapshot_mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }


async def watch(gaps: list[float]) -> None:
    """Note for how long the event loop did not come round."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        gaps.append(time.perf_counter() - began - 0.001)


def rss_mb() -> float:
    """Memory of this process now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def start_worker(config: Path) -> float:
    """Seconds from the start of a worker's process until all partitions are ready."""
    command = [sys.executable, "-m", "consentgate", "run", "-c", str(config), "--log-json"]
    began, ready = time.perf_counter(), 0
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    for line in worker.stderr:
        ready += line.startswith("{") and json.loads(line)["event"] == "ready"
        if ready == PARTITIONS:
            break
    seconds = time.perf_counter() - began
    worker.terminate()
    worker.communicate()
    return round(seconds, 2)


def run_child(config: Path) -> dict[str, float]:
    """`follow` in a process of its own."""
    command = [sys.executable, __file__, "--follow", str(config)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Fill the topic, follow it twice, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=5_000_000)
    parser.add_argument("--follow", metavar="CONFIG", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.follow:
        print(json.dumps(asyncio.run(follow(args.follow))))
        return
    with tempfile.TemporaryDirectory() as name, EmbeddedKafka() as kafka:
        directory = Path(name)
        policy, config = directory / "policy.yaml", directory / "consentgate.yaml"
        policy.write_text(POLICY)
        settings = {
            "kafka": {"bootstrap.servers": kafka.bootstrap_servers},
            "policy": str(policy),
            "http": {"port": 0},
            "snapshot": str(directory / "snapshots"),
        }
        config.write_text(yaml.safe_dump(settings))
        create = ["topics", "create", "-c", str(config), "--partitions", str(PARTITIONS)]
        command = [sys.executable, "-m", "consentgate", *create]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        asyncio.run(fill(kafka.bootstrap_servers, args.subjects))
        console.print_json(data={"from": "the topic", **run_child(config)})
        console.print_json(data={"from": "a snapshot", **run_child(config)})
        console.print_json(data={"worker_ready_seconds": start_worker(config)})


if __name__ == "__main__":
    main()
