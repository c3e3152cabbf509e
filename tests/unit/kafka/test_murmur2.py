"""The partitioner's hash: the same as the client's, whatever the key."""

from aiokafka.partitioner import murmur2 as murmur2_of_the_client
from hypothesis import given
from hypothesis import strategies as st

from consentgate.kafka.murmur2 import murmur2


@given(st.binary(max_size=100))
def test_it_is_the_clients(key: bytes) -> None:
    assert murmur2(key) == murmur2_of_the_client(key)


def test_it_is_the_clients_at_any_length() -> None:
    for length in range(70):
        for byte in (0x00, 0x7F, 0x80, 0xFF):
            key = bytes([byte]) * length
            assert murmur2(key) == murmur2_of_the_client(key)
