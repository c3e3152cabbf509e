"""Runs the command line in which one thing goes wrong at one point, once.

    python launcher.py ACTION POINT NUMBER run -c ...

At the NUMBER-th time that POINT is reached, ACTION happens: `halt` (SIGKILL), `raise`,
`hold:SECONDS`, which SIGUSR1 ends sooner, `block:SECONDS`, in which nothing else runs, or `term`
(SIGTERM) and `term-twice`, with a second one a moment later.

The points of a transaction are `after-fetch`, `after-barrier`, `before-begin`, `after-send`,
`after-offsets`, `before-commit`, and `during-commit`: the request has been sent, its answer has not
come. They count where the batch holds something of somebody who granted. Before these there are
`starting`, when the broker has answered, and `bootstrapping`, before the first barrier. The points
of a rebalance are `assigned` and `revoked`, before the listener's work, and within it `taken` and
`stopped`, which can only raise.

What happens is written to standard error, as the log is: `{"event": "tampered", ...}`.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Collection
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.transaction import EndTxnRequest

from consentgate.cli import main
from consentgate.core.model import Choice
from consentgate.core.partition import AwaitFrontier, Commit, Fetch, Send, SendOffset, Step
from consentgate.kafka.transport import KafkaTransport
from consentgate.service.assigned import AssignedPartition
from consentgate.service.worker import Worker

BEFORE: dict[type[Step[Any]], str] = {Send: "before-begin", Commit: "before-commit"}
AFTER: dict[type[Step[Any]], str] = {
    Fetch: "after-fetch",
    AwaitFrontier: "after-barrier",
    Send: "after-send",
    SendOffset: "after-offsets",
}

AGAIN_SECONDS = 0.02


class Tampering:
    """One action at one point, the n-th time that it is reached."""

    def __init__(self, action: str, point: str, number: int) -> None:
        self._action, _, self._seconds = action.partition(":")
        self._point = point
        self._left = number

    def is_due(self, point: str) -> bool:
        """Count a point that was reached; whether the action is due there."""
        if point == self._point:
            self._left -= 1
        return point == self._point and self._left == 0

    async def reach(self, point: str, **what: Any) -> None:
        """Halt or hold where it is due."""
        if not self.is_due(point):
            return
        if self._action == "halt":
            self.halt(**what)
        if self._action == "block":
            self.block(**what)
        elif self._action.startswith("term"):
            self.terminate(**what)
        else:
            await self.hold(**what)

    def strike(self, **what: Any) -> None:
        """What is due, where nothing can be awaited."""
        if self._action == "halt":
            self.halt(**what)
        self.terminate(**what)

    async def hold(self, **what: Any) -> None:
        """Let time pass, here and in nothing else."""
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ended.set)
        self.say(**what)
        try:
            async with asyncio.timeout(float(self._seconds)):
                await ended.wait()
        except TimeoutError:
            pass
        finally:
            self.say(over=True, **what)

    def block(self, **what: Any) -> None:
        """Keep the event loop from doing anything at all."""
        self.say(**what)
        time.sleep(float(self._seconds))
        self.say(over=True, **what)

    def terminate(self, **what: Any) -> None:
        """Ask this process to end, while it goes on."""
        self.say(at=time.time(), **what)
        os.kill(os.getpid(), signal.SIGTERM)
        if self._action == "term-twice":
            loop = asyncio.get_running_loop()
            loop.call_later(AGAIN_SECONDS, os.kill, os.getpid(), signal.SIGTERM)

    def halt(self, **what: Any) -> None:
        """End this process as a crash would."""
        self.say(**what)
        os.kill(os.getpid(), signal.SIGKILL)

    def raise_if_due(self, point: str, **what: Any) -> None:
        """Fail where it is due."""
        if self.is_due(point):
            self.say(**what)
            raise RuntimeError(f"raised on purpose, {point}")

    def say(self, **what: Any) -> None:
        """Write that it happens."""
        line = {"event": "tampered", "point": self._point, **what}
        print(json.dumps(line), file=sys.stderr, flush=True)


def tamper_with_transactions(tampering: Tampering) -> None:
    """Reach the points of each partition's transactions."""
    perform = KafkaTransport._perform
    granted: dict[KafkaTransport, list[str]] = {}
    judged: set[KafkaTransport] = set()
    begun: set[KafkaTransport] = set()

    async def perform_and_reach(transport: KafkaTransport, step: Step[Any]) -> Any:
        partition = transport._chain.partition

        async def reach(point: str | None) -> None:
            # The second barrier, before the commit, is another point.
            if point == "after-barrier" and transport in judged:
                return
            if point is not None and granted.get(transport):
                await tampering.reach(point, partition=partition, subject=granted[transport][0])

        if isinstance(step, AwaitFrontier) and transport not in begun:
            begun.add(transport)
            await tampering.reach("bootstrapping", partition=partition)
        if isinstance(step, Send):
            judged.add(transport)
            granted[transport] = [subject.decode() for subject, *_ in step.outcome.forwarded]
        await reach(BEFORE.get(type(step)))
        reply = await perform(transport, step)
        if isinstance(step, Fetch):
            judged.discard(transport)
            granted[transport] = _granted(transport, [record.key for record in reply.records])
        await reach(AFTER.get(type(step)))
        return reply

    KafkaTransport._perform = perform_and_reach  # type: ignore[method-assign]


def _granted(transport: KafkaTransport, keys: Collection[bytes]) -> list[str]:
    holdings = transport._table.holdings
    held = [(key, holdings.get(key)) for key in keys]
    return [
        key.decode()
        for key, holding in held
        if holding is not None and holding.state.choice is Choice.GRANTED
    ]


def tamper_with_commits(tampering: Tampering) -> None:
    """Reach the point at which a commit is on its way."""
    send = AIOKafkaConnection.send

    def send_and_reach(connection: AIOKafkaConnection, request: Any, **options: Any) -> Any:
        answer = send(connection, request, **options)
        is_commit = isinstance(request, EndTxnRequest) and request._transaction_result
        if is_commit and tampering.is_due("during-commit"):
            tampering.strike(partition=int(request._transactional_id.rpartition("-")[2]))
        return answer

    AIOKafkaConnection.send = send_and_reach


def tamper_with_listeners(tampering: Tampering) -> None:
    """Reach the points at which partitions are taken and given up."""
    assign, revoke, start = Worker._assign, Worker._revoke, Worker._start
    take, stop = Worker._take, AssignedPartition.stop

    async def reach_and_assign(worker: Worker, partitions: Collection[int]) -> None:
        if partitions:
            await tampering.reach("assigned", partitions=sorted(partitions))
        await assign(worker, partitions)

    async def start_and_reach(worker: Worker, **how: Any) -> None:
        await tampering.reach("starting")
        await start(worker, **how)

    async def reach_and_revoke(worker: Worker, partitions: Collection[int]) -> None:
        if partitions:
            await tampering.reach("revoked", partitions=sorted(partitions))
        await revoke(worker, partitions)

    def reach_and_take(worker: Worker, number: int) -> None:
        tampering.raise_if_due("taken", partition=number)
        take(worker, number)

    def reach_and_stop(assigned: AssignedPartition) -> None:
        tampering.raise_if_due("stopped", partition=assigned.number)
        stop(assigned)

    Worker._assign = reach_and_assign  # type: ignore[method-assign]
    Worker._revoke = reach_and_revoke  # type: ignore[method-assign]
    Worker._start = start_and_reach  # type: ignore[method-assign]
    Worker._take = reach_and_take  # type: ignore[method-assign]
    AssignedPartition.stop = reach_and_stop  # type: ignore[method-assign]


if __name__ == "__main__":
    action, point, number = sys.argv[1:4]
    del sys.argv[1:4]
    planned = Tampering(action, point, int(number))
    tamper_with_transactions(planned)
    tamper_with_commits(planned)
    tamper_with_listeners(planned)
    main()
