"""One process of the report: counts its share of the ledger, and answers for all of it."""

import asyncio
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, cast

import faust
import structlog

from consentgate.config import Config
from consentgate.errors import ClientBroken, ConfigError
from consentgate.kafka.cluster import connected
from consentgate.kafka.reader import follow_topics
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.report.answers import Answers, ConfiguredPolicy
from consentgate.report.app import make_app
from consentgate.report.driver import CommittedTransport
from consentgate.report.http import make_http, serve
from consentgate.report.topics import Changelog, changelog_topics, prepare_changelogs
from consentgate.signals import ending_signals
from consentgate.web import OK

log = structlog.get_logger()

BROKER_SECONDS_MAX = 60.0
"""How long the first answer of a broker is awaited."""

SILENT_SECONDS_MAX = 10.0
"""How long no answer of Kafka may have come before that is said."""

STOP_SECONDS_MAX = 15.0
"""How long the application may take to end."""


class Report:
    """The process; made inside the event loop that it runs in."""

    def __init__(self, config: Config, configured: ConfiguredPolicy, port: int) -> None:
        self._config = config
        self._port = port
        self._settings = kafka_settings(config.kafka)
        self._app: faust.App | None = None
        self._answers = Answers(configured, list(changelog_topics(config).values()))

    async def run(self) -> None:
        """Count and answer until a signal.

        Raises:
            BrokerUnavailable: if no broker answers within a minute.
            ClientBroken: if Faust has come to an end by itself.
            ConfigError: if topics are missing, or are not as they must be.
            KeyboardInterrupt: after a SIGINT, when everything has been put away.
        """
        ended = asyncio.Event()
        with ending_signals(ended.set) as received:
            working = asyncio.create_task(self._work())
            tasks = working, asyncio.create_task(ended.wait())
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if not working.cancelled():
                await working  # It only ends by failing.
        if received == [signal.SIGINT]:
            raise KeyboardInterrupt

    async def _work(self) -> None:
        """Count and answer until cancelled, and put everything away then."""
        async with AsyncExitStack() as stack:
            host = self._config.http.host
            http = make_http(self._answers, self._health, self._counting)
            # Before a broker is awaited: who asks meanwhile is to be told that it lives.
            runner, port = await serve(http, host, self._port)
            stack.push_async_callback(runner.cleanup)
            changelogs = await self._prepare()
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._app = make_app(self._config, self._settings, changelogs, directory)
            log.info("started", http=f"http://{host}:{port}")
            reading = asyncio.create_task(_read(self._settings, changelogs, self._answers))
            counting = asyncio.create_task(_count(self._app))
            stack.push_async_callback(self._stop, [reading, counting])
            done, _ = await asyncio.wait({reading, counting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task  # It only ends by failing.

    async def _prepare(self) -> Sequence[Changelog]:
        async with connected(self._settings, BROKER_SECONDS_MAX) as cluster:
            return await prepare_changelogs(self._config, cluster)

    async def _stop(self, tasks: list["asyncio.Task[Any]"]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._app is not None, "it was made before"
        try:
            # Nothing is lost where it takes too long: what was not written is counted again.
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self._app.stop()
        except Exception as error:
            log.warning("closing failed", error=repr(error))

    def _health(self) -> dict[str, str]:
        app = self._app
        is_counting = app is not None and cast(CommittedTransport, app.transport).is_counting()
        return {
            "figures": OK if self._answers.are_read else "being read",
            "counting": OK if is_counting else "joining the group, or recovering",
        }

    def _counting(self) -> str:
        """`ok` where what is decided now comes into the figures, else why it does not."""
        silent_seconds = time.time() - self._answers.heard_ms / 1000
        return told_counting(self._health()["counting"], silent_seconds)


def told_counting(counting: str, silent_seconds: float) -> str:
    """What is told of the counting when Kafka has last answered so long ago."""
    if silent_seconds > SILENT_SECONDS_MAX:
        return f"Kafka has not answered for {silent_seconds:.0f} s"
    return counting


async def _read(settings: KafkaSettings, changelogs: Sequence[Changelog], answers: Answers) -> None:
    """Take in what every process of the report has written, this one too."""
    partitions = {changelog.topic: changelog.partitions for changelog in changelogs}
    async with aclosing(follow_topics(settings, partitions)) as followed:
        async for records, are_read, heard_ms in followed:
            for record in records:
                answers.apply(record.topic, record.key, record.value)
            answers.are_read |= are_read
            answers.heard_ms = heard_ms


async def _count(app: faust.App) -> None:
    """Run the application, which ends by itself only where it fails."""
    await app.start()
    await app.wait_until_stopped()
    if isinstance(app.crash_reason, ConfigError):
        raise app.crash_reason
    raise ClientBroken(
        f"Faust has ended ({app.crash_reason!r}); start the report again, it goes on where it was"
    ) from app.crash_reason
