"""The processes that redact: in order, replaced when one dies, gone with the worker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import pytest

from consentgate.core.policy import Basis, Rule
from consentgate.core.transform import Transformer, Work
from consentgate.service.transforming import CHUNK_RECORDS_MIN, TransformPool

SLOW_SECONDS = 0.5
RULE = Rule(("*",), Basis.OPT_OUT, redact=("email",))


def shout(texts: Sequence[str], detectors: Sequence[str], jurisdiction: str | None) -> list[str]:
    """An engine that needs no library; it cannot do everything."""
    if "slow" in texts:
        time.sleep(SLOW_SECONDS)
    if "cannot" in texts:
        raise ValueError("cannot")
    return [text.upper() for text in texts]


def works(*texts: str) -> list[Work]:
    return [Work(json.dumps({"body": text}).encode(), b"m1", RULE, "GB") for text in texts]


@pytest.fixture
def pool() -> Iterator[TransformPool]:
    made = TransformPool(Transformer(redact=shout), 2)
    yield made
    made.stop()


async def test_values_come_in_the_order_of_the_works(pool: TransformPool) -> None:
    texts = [f"t{number}" for number in range(5 * CHUNK_RECORDS_MIN)]
    done = await pool.transform(works(*texts))
    assert [json.loads(value or b"")["body"] for value in done] == [t.upper() for t in texts]


async def test_what_cannot_be_transformed_is_none_and_the_rest_is_done(pool: TransformPool) -> None:
    done = await pool.transform(works("a", "cannot", "b"))
    assert done == [b'{"body":"A"}', None, b'{"body":"B"}']


async def test_after_the_death_of_a_process_there_are_others(pool: TransformPool) -> None:
    await pool.transform(works("a"))
    assert pool._executor is not None
    for process in pool._executor._processes.values():
        process.kill()
    with pytest.raises(BrokenProcessPool):
        await pool.transform(works("a"))
    assert await pool.transform(works("a")) == [b'{"body":"A"}']


async def test_a_process_that_dies_takes_the_others_with_it(pool: TransformPool) -> None:
    # It may die with a queue locked, on which the others would wait for ever.
    await pool.transform(works(*"a" * 2 * CHUNK_RECORDS_MIN))
    assert pool._executor is not None
    first, second = (process.pid for process in pool._executor._processes.values())
    assert first is not None
    assert second is not None
    os.kill(second, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(BrokenProcessPool):
        await pool.transform(works("a"))
    os.kill(second, signal.SIGCONT)
    deadline = time.monotonic() + 20
    while is_running(second):
        assert time.monotonic() < deadline, "one has outlived the other"
        await asyncio.sleep(0.05)


async def test_a_pool_that_stops_does_not_finish_what_nobody_waits_for(
    pool: TransformPool,
) -> None:
    await pool.transform(works("a"))
    executor = pool._executor
    assert executor is not None
    slow = asyncio.ensure_future(pool.transform(works(*["slow"] * CHUNK_RECORDS_MIN)))
    while not executor._pending_work_items:  # noqa: ASYNC110 - Nobody tells when it has begun.
        await asyncio.sleep(0.01)
    pool.stop()
    with pytest.raises((BrokenProcessPool, asyncio.CancelledError)):
        await slow
    began = time.monotonic()
    await asyncio.to_thread(executor.shutdown)
    assert time.monotonic() - began < CHUNK_RECORDS_MIN * SLOW_SECONDS / 2


async def test_no_process_is_there_before_there_is_work(pool: TransformPool) -> None:
    assert pool._executor is None


WORKER = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from test_transforming import TransformPool, Transformer, shout, works

if __name__ == "__main__":
    pool = TransformPool(Transformer(redact=shout), 2)
    asyncio.run(pool.transform(works("a")))
    print(*[process.pid for process in pool._executor._processes.values()], flush=True)
    time.sleep(60)
"""


def test_the_processes_end_with_a_worker_that_is_killed(tmp_path: "os.PathLike[str]") -> None:
    script = os.path.join(tmp_path, "worker.py")
    with open(script, "w") as file:
        file.write(WORKER)
    here = os.path.dirname(__file__)
    command = [sys.executable, script, here]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert pids
        worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "they have outlived the worker"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
