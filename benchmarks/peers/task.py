"""What the benchmark asks of a peer: the one argument of each program, as JSON."""

import sys
from typing import Any

import msgspec

PARTITIONS = 4
TALLY = 500
"""Events for each record of a peer that forwards nothing, so that it is seen how far it is."""


class Task(msgspec.Struct, frozen=True):
    """Topics, and the settings of the clients by the client that they are for.

    `output` is the topic of the forwarded records and the name of the consumer group. `directory`
    is for state, and for this run only.
    """

    servers: str
    content: str
    consent: str
    output: str
    partitions: int
    directory: str
    settings: dict[str, dict[str, Any]]

    @classmethod
    def parse(cls) -> "Task":
        """The task that is the program's argument."""
        return msgspec.json.decode(sys.argv[1], type=cls)


def report_table(records: int, seconds: float) -> None:
    """Tell the benchmark how fast the table was read."""
    report = {"table_records": records, "table_seconds": seconds}
    print(msgspec.json.encode(report).decode(), flush=True)
