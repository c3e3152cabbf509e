"""What is told of the counting."""

import pytest

from consentgate.report.run import SILENT_SECONDS_MAX, told_counting


def test_a_silent_kafka_is_told_before_all_else() -> None:
    assert told_counting("ok", SILENT_SECONDS_MAX + 2) == "Kafka has not answered for 12 s"
    assert told_counting("recovering", 61) == "Kafka has not answered for 61 s"


@pytest.mark.parametrize("counting", ["ok", "recovering"])
def test_where_kafka_answers_it_is_told_how_the_counting_is(counting: str) -> None:
    assert told_counting(counting, SILENT_SECONDS_MAX) == counting
