"""The partitioner's hash: the same as the client's, whatever the key."""

from random import Random

from aiokafka.partitioner import murmur2 as murmur2_of_the_client
from hypothesis import given
from hypothesis import strategies as st

from consentgate.kafka.murmur2 import murmur2, murmur2_of_each


@given(st.binary(max_size=100))
def test_it_is_the_clients(key: bytes) -> None:
    assert murmur2(key) == murmur2_of_the_client(key)


def test_it_is_the_clients_at_any_length() -> None:
    for length in range(70):
        for byte in (0x00, 0x7F, 0x80, 0xFF):
            key = bytes([byte]) * length
            assert murmur2(key) == murmur2_of_the_client(key)


@given(st.lists(st.binary(max_size=45)), st.integers(0, 40), st.randoms(use_true_random=False))
def test_many_together_have_the_same_hashes(odd: list[bytes], length: int, some: Random) -> None:
    keys = [some.randbytes(length) for _ in range(40)] + odd
    some.shuffle(keys)
    expected = [(key, murmur2_of_the_client(key)) for key in keys]
    assert sorted(murmur2_of_each(keys)) == sorted(expected)


def test_many_together_have_the_same_hashes_at_any_length() -> None:
    for length in range(70):
        # High bits in one key run over into the place of the next one.
        for number in (1, 31, 32, 33, 256):
            keys = [bytes([byte]) * length for byte in (0xFF, 0x00, 0x80, 0x7F) * number][:number]
            assert list(murmur2_of_each(keys)) == [(k, murmur2_of_the_client(k)) for k in keys]
    assert list(murmur2_of_each([])) == []
