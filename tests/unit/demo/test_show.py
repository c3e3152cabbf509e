"""When the demo has what happen."""

import pytest

from consentgate.demo.show import next_minute_ms


@pytest.mark.parametrize(
    ("time_ms", "minute_ms"), [(0, 0), (1, 60_000), (60_000, 60_000), (119_999, 120_000)]
)
def test_the_next_minute_is_full_and_not_before(time_ms: int, minute_ms: int) -> None:
    assert next_minute_ms(time_ms) == minute_ms
