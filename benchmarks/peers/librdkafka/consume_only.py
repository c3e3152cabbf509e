"""librdkafka from Python: consumes, and looks at nothing. The limit.

So that the benchmark sees how far it is, one empty record is sent for each `TALLY` that were read.
"""

from confluent_kafka import Producer

from peers.librdkafka.sending import Terminated
from peers.librdkafka.table import consumer_of, fail_on_error
from peers.task import TALLY, Task


def main(task: Task) -> None:
    """Consume until terminated."""
    terminated = Terminated()
    consumer = consumer_of(task, task.output)
    producer = Producer({"bootstrap.servers": task.servers, **task.settings["producer"]})
    consumer.subscribe([task.content])
    poll_records = task.settings["loop"]["poll.records"]
    poll_seconds = task.settings["loop"]["poll.ms"] / 1000
    count = 0
    while not terminated:
        messages = consumer.consume(poll_records, poll_seconds)
        if messages:
            fail_on_error(messages[-1])
        before, count = count, count + len(messages)
        for _ in range(count // TALLY - before // TALLY):
            producer.produce(task.output, b"")
        producer.poll(0)
    consumer.close()


if __name__ == "__main__":
    main(Task.parse())
