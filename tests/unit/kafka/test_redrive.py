"""What is refused before a transaction begins."""

import pytest
from aiokafka import TopicPartition

from consentgate.core.model import Reason
from consentgate.core.quarantine import Progress, SetAside
from consentgate.errors import ConfigError
from consentgate.kafka.redrive import METADATA_BYTES_MAX, Redrive
from consentgate.kafka.settings import kafka_settings


async def test_a_progress_in_too_many_pieces_is_refused() -> None:
    found = SetAside("content", 0, 0, "group", Reason.UNDECODABLE, 1, 0)
    progress = Progress()
    for offset in range(METADATA_BYTES_MAX):
        progress.left(found)
        progress.redriven(found, 1_000 * offset)
    # Nobody listens there: whoever asked would get another error.
    run = Redrive(kafka_settings({"bootstrap.servers": "localhost:1"}), "group", "quarantine", [])
    with pytest.raises(ConfigError, match="too many pieces"):
        await run.write({TopicPartition("content", 0): []}, 0, 1, progress)
