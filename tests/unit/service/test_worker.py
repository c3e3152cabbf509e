"""Putting things away, whatever becomes of each."""

import asyncio

import pytest
import structlog

from consentgate.service.worker import _close


async def cancelled_inside() -> None:
    """As a client closes that waits for a task which it has cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def test_a_client_that_cancels_a_task_of_its_own_is_closed() -> None:
    with structlog.testing.capture_logs() as log:
        await asyncio.gather(_close("a client", cancelled_inside(), 1))
    assert [(entry["event"], entry["what"]) for entry in log] == [("closing failed", "a client")]


async def test_whoever_closes_can_be_cancelled() -> None:
    closing = asyncio.create_task(_close("a client", asyncio.sleep(60), 60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_client_that_fails_is_logged() -> None:
    async def fail() -> None:
        raise OSError("gone")

    with structlog.testing.capture_logs() as log:
        await _close("a client", fail(), 1)
    assert log[0]["error"] == "OSError('gone')"
