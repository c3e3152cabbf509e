"""Faust's transport and tables, for readers of committed records that count each of them once.

Six things are other than Faust has them:

- Readers read committed records. Faust's own do so only in its exactly-once mode.
- After a rebalance a partition is read on from the head in the table, not from the offset that the
  group has committed: what the table holds is what was counted. The committed offsets only show how
  far the report is. Nothing of a source is fetched before its table has been recovered, since what
  came from beyond the head would hide what lies in between.
- A fetch that was under way when a rebalance began gives back what nobody takes from it. Faust
  drops that, and waits for it for ever where the changelog has nothing new.
- A value from the changelog does not replace one that has counted more. A worker that stood still
  and comes back may have written it.
- A write to the changelog that fails ends the application. Faust logs it and goes on: the windows
  would never have what the head, written later, says that they have counted.
- A source that was made anew ends the application. Its offsets begin again, and those up to the
  head of the old one would be passed over.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import IllegalStateError, KafkaTimeoutError
from faust import App, Table
from faust.stores.memory import Store
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP, FutureMessage
from yarl import URL

from consentgate.errors import ConfigError
from consentgate.kafka.settings import KafkaSettings
from consentgate.report.figures import Key, counted_up_to

log = structlog.get_logger("consentgate.report")

RECOVERY_CHECK_SECONDS = 0.1

VALUE_BYTES_MAX = 16 << 20
"""How long a value may be before it is compressed; the topic's `max.message.bytes` is of after."""

REBALANCE_MS_MAX = 60_000
"""How long a rebalance may take; Faust lets its agents finish what they are at."""


class CountedStore(Store[bytes, bytes]):
    """Values in memory; those that have counted more are kept."""

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]
    ) -> None:
        """Take in records of the changelog, in their order."""
        for event in batch:
            key, value = event.message.key, event.message.value
            self._key_partition[key] = event.message.partition
            if value is None:
                self.data.pop(key, None)
            elif counted_up_to(value) >= counted_up_to(self.data.get(key)):
                self.data[key] = value


class CountedTable(Table[bytes, bytes]):
    """A table whose keys say in which partition they are, as `figures.Key` does."""

    recovered_generation: int | None = None
    """The generation of the group in which the table was last read from its changelog."""

    _unwritten: BaseException | None = None
    """Why a write to the changelog has failed, if one has."""

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """The changelog was read to its end."""
        await super().on_recovery_completed(active_tps, standby_tps)
        self.recovered_generation = self.app.consumer_generation_id

    def partition_for_key(self, key: bytes) -> int:
        """The partition of the changelog; the same as that of the records that were counted."""
        return Key.decode(key).partition

    def next_offset(self, partition: int) -> int:
        """The offset of the first record that was not counted yet."""
        return counted_up_to(self.data.get(Key(partition).encode())) + 1

    def send_changelog(self, *args: Any, **kwargs: Any) -> FutureMessage:
        """Write to the changelog, unless an earlier write has failed; Faust awaits none of them."""
        if self._unwritten is not None:
            raise self._unwritten
        sent = super().send_changelog(*args, **kwargs)
        sent.add_done_callback(self._end_where_it_failed)
        return sent

    def _end_where_it_failed(self, sent: "asyncio.Future[Any]") -> None:
        if sent.cancelled() or (error := sent.exception()) is None or self._unwritten is not None:
            return
        self._unwritten = error
        self._ending = asyncio.ensure_future(self.app.crash(error))

    def _new_store(self) -> CountedStore:
        return CountedStore(
            URL("memory://"),
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
            loop=self.loop,
        )


class _Thread(faust_aiokafka.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        self._assignor = self.app.assignor
        settings: KafkaSettings = transport.settings
        return AIOKafkaConsumer(
            group_id=self.app.conf.id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            rebalance_timeout_ms=REBALANCE_MS_MAX,
            **settings.client,
            **settings.consumer,
            **settings.group,
        )

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Mapping[TP, list[Any]]:
        """What Faust takes of what was fetched; the rest is there to be fetched again.

        The rest may be from behind the offset that the recovery has sought meanwhile. Nothing can
        seek between the fetch and this, which run in one step of the thread's loop.
        """
        fetched = await super()._fetch_records(*args, **kwargs)
        consumer = cast(_Consumer, self.consumer)
        taken = set(consumer._active_partitions) if consumer.flow_active else set()
        for place in fetched.keys() - taken:
            with suppress(IllegalStateError):  # The partition was taken away.
                self.seek(place, fetched[place][0].offset)
        return {place: found for place, found in fetched.items() if place in taken}


class _Consumer(faust_aiokafka.Consumer):
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    _sought_generation: int | None = None  # in which all was sought from what was counted

    async def perform_seek(self) -> None:
        # Faust seeks the committed offsets here, and may have taken in what it then has again, or
        # not again: its own note of what was read last drops some of it.
        self._sought_generation = None

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        tables = self._tables
        generation = self.app.consumer_generation_id
        active = active_partitions or set()
        if not await self._has_sought(generation):
            active = {place for place in active if place.topic not in tables}
            if not active:
                await self.sleep(RECOVERY_CHECK_SECONDS)
                return {}
        fetched = await super()._getmany(active, timeout)
        if self._sought_generation == generation == self.app.consumer_generation_id:
            for place, found in fetched.items():
                counted = self._counted(place)
                if found and found[0].offset < counted:
                    await self._refuse_made_anew(place, found[0].offset, counted)
                    return {}
            return fetched
        # It is from before a rebalance, or will be sought again before the next fetch.
        return {place: found for place, found in fetched.items() if place.topic not in tables}

    async def _has_sought(self, generation: int) -> bool:
        """Whether all sources are read on from what was counted; seeks that, once it can be known.

        Nothing is fetched meanwhile, because who fetches calls this.
        """
        if self._sought_generation == generation:
            return True
        if not self._is_recovered(generation):
            return False
        offsets = {place: self._counted(place) for place in self._sources()}
        self._sought_generation = generation
        try:
            # They are the ends of what is committed, as is all that was counted: what an open
            # transaction still hides lies behind both.
            for place, end in (await self._thread.highwaters(*offsets)).items():
                if end < offsets[place]:
                    await self._refuse_made_anew(place, end, offsets[place])
                    return False
            await self._thread.seek_wait(offsets)
        except (IllegalStateError, KafkaTimeoutError):
            # A partition was taken away meanwhile, or no broker says where it ends.
            self._sought_generation = None
            return False
        for place, offset in offsets.items():
            log.info("counting", topic=place.topic, partition=place.partition, offset=offset)
            self._read_offset[place] = None
            # What lies below is not waited for before an offset is committed.
            self._committed_offset[place] = offset
        return self._sought_generation == generation

    def _counted(self, place: TP) -> int:
        """The offset up to which a source was counted; 0 of a changelog."""
        table = self._tables.get(place.topic)
        return 0 if table is None else table.next_offset(place.partition)

    async def _refuse_made_anew(self, place: TP, offset: int, counted: int) -> None:
        """End the application: this offset can only come again in another topic."""
        changelogs = sorted(table.changelog_topic_name for table in self._tables.values())
        refused = ConfigError(
            f"topic {place.topic}, partition {place.partition}: it goes on with offset {offset}, "
            f"but the report has counted up to {counted}, so it was made anew or cut off; end all "
            f"reports, delete the topics {' and '.join(changelogs)}, and start again: the report "
            "counts from the beginning then"
        )
        await self.app.crash(refused)

    @property
    def is_counting(self) -> bool:
        """Whether the sources are read, those of this generation of the group; it may have none."""
        generation = self.app.consumer_generation_id
        if self._sought_generation == generation:
            return True
        return self._is_recovered(generation) and not self._sources()

    def _is_recovered(self, generation: int) -> bool:
        recovered = {table.recovered_generation for table in self._tables.values()}
        return not self.app.rebalancing and recovered == {generation}

    def _sources(self) -> set[TP]:
        return {place for place in self.assignment() if place.topic in self._tables}

    @property
    def _tables(self) -> Mapping[str, CountedTable]:
        tables: Mapping[str, CountedTable] = cast(Any, self.transport).tables
        return tables


class _Producer(faust_aiokafka.Producer):
    def _settings_auth(self) -> Mapping[str, Any]:
        settings: KafkaSettings = cast(Any, self.transport).settings
        return {
            **settings.client,
            # The totals are one value, and grow with each policy.
            "compression_type": settings.producer.get("compression_type", "gzip"),
            "max_request_size": VALUE_BYTES_MAX,
        }

    def _settings_extra(self) -> Mapping[str, Any]:
        # Behind a write that failed the broker takes none that was sent already, so no head comes
        # without its windows. It cannot tell where that was the first one of this process.
        return {"acks": "all", "enable_idempotence": True}


class CommittedTransport(faust_aiokafka.Transport):
    """Kafka with the configuration's own settings of the client, for security too."""

    Consumer = _Consumer
    Producer = _Producer

    def __init__(self, app: App, settings: KafkaSettings) -> None:
        servers = settings.bootstrap_servers.split(",")
        super().__init__([URL(f"kafka://{server.strip()}") for server in servers], app)
        self.settings = settings
        self.tables: dict[str, CountedTable] = {}
        """By the topic whose records are counted in it."""

    def is_counting(self) -> bool:
        """Whether the records of the partitions that this process has are being counted."""
        consumer = cast(_Consumer | None, cast(App, self.app)._consumer)
        return consumer is not None and consumer.is_counting
