"""What brokers say that is read from bits and versions."""

import pytest

from consentgate.kafka import survey
from consentgate.kafka.survey import Right


def test_rights_are_read_from_the_bits() -> None:
    assert survey._rights(1 << 3 | 1 << 8) == {Right.READ, Right.DESCRIBE}
    assert survey._rights(0) == frozenset()
    assert survey._rights(-(2**31)) is None


class _Old:
    API_VERSION = 2


class _New:
    API_VERSION = 4


class _Request:
    _CLASSES = (_Old, _New)


@pytest.mark.parametrize(
    ("versions", "supported"), [((0, 1), False), ((3, 3), False), ((0, 2), True), ((4, 9), True)]
)
def test_a_request_needs_a_version_that_both_know(
    versions: tuple[int, int], supported: bool
) -> None:
    assert survey._is_supported(_Request, versions) is supported
    assert not survey._is_supported(_Request, None)
