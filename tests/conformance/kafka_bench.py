"""The bench of a real broker."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete

from bench import Bench, OpenTransaction, Topic
from consentgate.core.consent import ConsentChange
from consentgate.core.decode import consent_decoder, content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.partition import Retire, Transport
from consentgate.core.transform import Transformer
from consentgate.kafka.clients import Clients
from consentgate.kafka.cluster import connected
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.layout import find_layout
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.transport import KafkaTransport
from consentgate.policies import load_policy
from consentgate.service.transforming import TransformPool
from harness import Sent, Site, until


class KafkaBench(Bench):
    """Around topics of its own on the real broker."""

    def __init__(self, site: Site, clients: Clients, stack: AsyncExitStack) -> None:
        self._site = site
        self._clients = clients
        self._stack = stack
        self._numbers = itertools.count()
        self._transports: list[Transport] = []
        config, layout = site.config, clients.layout
        policy = load_policy(config.policy)
        self.gate = Gate(
            chain=Chain(config.group, config.topics.content, 0),
            consent_topic=config.topics.consent,
            table=clients.view.follow(layout.consent_partitions(0)),
            policy=policy,
            decode=content_decoder(config.content.fields, config.limits.max_depth),
            limits=config.limits.of_content(),
            key_is_subject=True,
        )

    def transport(self, on_consent_change: Callable[[ConsentChange], None]) -> Transport:
        made = KafkaTransport(self._clients, self.gate.chain, self.gate.table, on_consent_change)
        self._transports.append(made)
        return made

    async def retire(self) -> None:
        """Drop every producer."""
        await asyncio.gather(*(made.perform(Retire()) for made in self._transports))

    async def append(self, topic: Topic, sent: Sent, partition: int = 0) -> int:
        return await self._site.feed.one(getattr(self._site.config.topics, topic), sent, partition)

    async def begin(self, topic: Topic) -> OpenTransaction:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._site.kafka.bootstrap_servers,
            transactional_id=f"{self._site.config.group}-application-{next(self._numbers)}",
        )
        await self._stack.enter_async_context(producer)
        await producer.begin_transaction()
        return _KafkaTransaction(producer, getattr(self._site.config.topics, topic))

    async def expire_content(self, before: int) -> None:
        place = TopicPartition(self._site.content, 0)
        await self._site.probe.admin.delete_records({place: RecordsToDelete(before_offset=before)})

    async def recreate_consent(self) -> None:
        admin, topic = self._site.probe.admin, self._site.consent
        (plan,) = [p for p in plan_topics(self._site.config, 1) if p.name == topic]
        partitions = self._site.consent_partitions
        await admin.delete_topics([topic])

        async def created() -> bool:
            anew = NewTopic(topic, partitions, 1, topic_configs=dict(plan.configs))
            response = await admin.create_topics([anew])
            return not any(error[1] for error in response.topic_errors)

        await until(created, "the old topic is gone, and the new one there")

    async def committed(self, topic: Literal["training", "decisions"]) -> list[bytes | None]:
        name = getattr(self._site.config.topics, topic)
        found = read_topic(self._clients.settings, name, self._clients.layout.counts[name])
        return [record.value async for _, record in found]


class _KafkaTransaction:
    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def append(self, sent: Sent, partition: int = 0) -> int:
        appended = await self._producer.send_and_wait(
            self._topic, sent.value, sent.key, partition=partition
        )
        return int(appended.offset)

    async def commit(self) -> None:
        await self._producer.commit_transaction()

    async def abort(self) -> None:
        await self._producer.abort_transaction()


@asynccontextmanager
async def kafka_bench(site: Site) -> AsyncIterator[KafkaBench]:
    """A bench of its own for each test; it is the group's only member."""
    config, settings = site.config, kafka_settings(site.config.kafka)
    assigned = asyncio.Event()

    async def on_assigned(partitions: Collection[int]) -> None:
        assigned.set()

    async def on_revoked(partitions: Collection[int]) -> None:
        assigned.clear()

    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(connected(settings, timeout_seconds=10))
        layout = await find_layout(config, cluster)
        decode = consent_decoder(config.consent.fields, "ai-training", config.limits.max_depth)
        view = ConsentView(
            settings, config.topics.consent, decode, lambda cause: None, lambda: None
        )
        await view.start(layout.misplaced, layout.deletions_kept_ms)
        stack.push_async_callback(view.stop)
        source = ContentSource(
            settings, config.group, config.topics.content, on_assigned, on_revoked
        )
        await source.start()
        stack.push_async_callback(source.stop)
        following = asyncio.create_task(view.run())
        stack.callback(following.cancel)
        await until(assigned.is_set, "the partition is assigned")
        bench = KafkaBench(
            site,
            Clients(
                settings,
                layout,
                source,
                view,
                cluster,
                None,
                TransformPool(Transformer(), 1).transform,
            ),
            stack,
        )
        stack.push_async_callback(bench.retire)
        yield bench
        assert not following.done()
