"""Reading past records that the client cannot read at all.

aiokafka decodes header names as UTF-8 while it iterates. One name that is not UTF-8 therefore
fails every poll of its partition for ever, together with all records of the same batch. This
module fetches from such a place once, with the client's own parts, and marks what is unreadable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.record.util import decode_varint

from consentgate.core.decode import ConsentDecoder
from consentgate.core.model import UNREADABLE, ConsentState

UNREADABLE_ERRORS = (CorruptRecordException, ValueError)
"""What a poll raises where a record cannot be read."""

_FETCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record whose headers cannot be decoded."""

    offset: int
    timestamp: int
    key: bytes | None
    value: None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def read_state(decode: ConsentDecoder, record: Any) -> tuple[ConsentState | None, str | None]:
    """The state in a record of the consent topic, and what is wrong with the record, in a word."""
    if isinstance(record, UnreadableRecord):
        return UNREADABLE, "headers"
    return decode(record.key, record.value)


def placed(state: ConsentState | None, is_misplaced: bool) -> ConsentState | None:
    """The state in a record, unreadable where the subject does not belong in its partition.

    It may be older than what lies where it belongs, which nobody sees from here.
    """
    return UNREADABLE if is_misplaced and state is not None else state


async def read_around(
    consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int
) -> tuple[list[Any], int]:
    """The committed records from `offset` on, as far as one fetch goes, and the offset after them.

    Raises:
        KafkaError: if the partition cannot be fetched, or if it is a batch that is corrupt.
    """
    client = consumer._client
    node = client.cluster.leader_for_partition(tp)
    request = FetchRequest(
        100,
        1,
        _FETCH_BYTES,
        READ_COMMITTED,
        [(tp.topic, [(tp.partition, offset, _FETCH_BYTES)])],
        rack_id="",
    )
    response = await client.send(node, request)
    ((_, (answer,)),) = response.topics
    _, error_code, _, *parts = answer
    if error_code:
        raise for_code(error_code)(str(tp))
    aborted = parts[2] if response.API_VERSION >= 11 else parts[-2]
    records = PartitionRecords(
        tp, _LenientRecords(parts[-1]), aborted, offset, None, None, True, READ_COMMITTED
    )
    records._consumer_record = _as_it_is
    return list(records), records.next_fetch_offset


def _as_it_is(tp: TopicPartition, record: Any) -> Any:
    return record


class _LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]
    def next_batch(self) -> Any:
        batch = self._next_slice
        self._cache_next()
        return _LenientBatch(bytearray(batch))


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    def _read_msg(self) -> Any:
        start = self._pos
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            return self._read_without_headers(start)

    def _read_without_headers(self, pos: int) -> UnreadableRecord:
        buffer = self._buffer
        length, pos = decode_varint(buffer, pos)
        self._pos = pos + length
        _, pos = decode_varint(buffer, pos)  # The attributes.
        timestamp_delta, pos = decode_varint(buffer, pos)
        offset_delta, pos = decode_varint(buffer, pos)
        key_length, pos = decode_varint(buffer, pos)
        return UnreadableRecord(
            offset=self.base_offset + offset_delta,
            timestamp=self.first_timestamp + timestamp_delta,
            key=bytes(buffer[pos : pos + key_length]) if key_length >= 0 else None,
        )
