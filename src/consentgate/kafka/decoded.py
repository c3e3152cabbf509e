"""Handing on the client's decoded records as they are.

aiokafka copies each decoded record into a `ConsumerRecord`, a seventh of all CPU time, for
a topic, a partition and sizes that nobody reads. The decoded records have all that is needed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import PartitionRecords


def hand_on_decoded_records(consumer: AIOKafkaConsumer) -> None:
    """Make the polls of a started consumer return decoded records.

    Where the client is built otherwise than version 0.14 is, it goes on with its own records.
    """
    fetcher = consumer._fetcher
    if type(getattr(fetcher, "_records", None)) is OrderedDict:
        fetcher._records = _FetchResults(fetcher._records)


class _FetchResults(OrderedDict[Any, Any]):
    """Fetched and not yet polled, by partition; records are made only when they are polled.

    What is dropped before its end, as after a seek, is closed: its iterator and it refer to each
    other, and to megabytes, of which the garbage collector sees two objects.
    """

    def __init__(self, results: Any) -> None:
        self._iterators: dict[Any, Any] = {}
        super().__init__(results)

    def __setitem__(self, tp: Any, result: Any) -> None:
        records: Any = getattr(result, "_partition_records", None)
        if hasattr(records, "_consumer_record") and hasattr(records, "_records_iterator"):
            records.__class__ = _DecodedRecords
            self._iterators[tp] = records._records_iterator
        super().__setitem__(tp, result)

    def __delitem__(self, tp: Any) -> None:
        super().__delitem__(tp)
        if (iterator := self._iterators.pop(tp, None)) is not None:
            iterator.close()

    def clear(self) -> None:
        for tp in list(self):
            del self[tp]


class _DecodedRecords(PartitionRecords):  # type: ignore[misc]
    """The records that were fetched of one partition."""

    def __iter__(self) -> Iterator[Any]:
        # The client takes them through a call for each.
        records: Iterator[Any] = self._records_iterator
        return records

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record
