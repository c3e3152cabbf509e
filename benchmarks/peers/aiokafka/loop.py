"""The peer: a plain aiokafka loop, `async for` and `send()`, at least once, same decision.

No transactions, no barrier, no ledger, no headers: what somebody would write on an afternoon.
"""

import argparse
import asyncio
import time
from functools import partial

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from consentgate.core.consent import ConsentTable
from consentgate.core.decide import Limits, decide_by_key, judge_person
from consentgate.core.decode import ConsentFields, ContentFields, consent_decoder, content_decoder
from consentgate.core.model import Verdict
from consentgate.policies import load_policy

CONSUMER = {"max_partition_fetch_bytes": 4_194_304}
PRODUCER = {"linger_ms": 20, "max_batch_size": 524_288}


async def main(args: argparse.Namespace) -> None:
    """Bootstrap the table, then decide on `total` events."""
    servers = args.servers
    policy = load_policy(args.policy)
    table = await read_consent(servers, policy.purpose, args.partitions)
    rules = policy.at(time.time_ns() // 1_000_000)
    decide = partial(
        decide_by_key,
        person_of=lambda subject: judge_person(table.holdings.get(subject), rules),
        decode=content_decoder(ContentFields(), 64),
        limits=Limits(),
    )
    consumer = AIOKafkaConsumer(
        "content-events",
        bootstrap_servers=servers,
        group_id=args.name,
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        **CONSUMER,
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", **PRODUCER)
    await producer.start()
    await consumer.start()
    done = 0
    async for record in consumer:
        now_ms = time.time_ns() // 1_000_000
        if decide(record, now_ms=now_ms).reason.verdict is Verdict.FORWARD:
            await producer.send(
                args.name,
                record.value,
                record.key,
                partition=record.partition,
                timestamp_ms=record.timestamp,
            )
        done += 1
        if done == args.total:
            break
    await producer.stop()
    await consumer.stop()


async def read_consent(servers: str, purpose: str, partitions: int) -> ConsentTable:
    """The whole consent topic as a table."""
    decode = consent_decoder(ConsentFields(), purpose, 64)
    table = ConsentTable([0])
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=None, auto_offset_reset="earliest", **CONSUMER
    )
    await consumer.start()
    tps = [TopicPartition("consent-state", partition) for partition in range(partitions)]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    while any([await consumer.position(tp) < ends[tp] for tp in tps]):
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                table.apply(0, record.key, decode(record.key, record.value)[0])
    await consumer.stop()
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("servers")
    parser.add_argument("policy")
    parser.add_argument("partitions", type=int)
    parser.add_argument("total", type=int)
    parser.add_argument("name", help="of the group and of the output topic")
    asyncio.run(main(parser.parse_args()))
