"""The policy of `workload.py`, by hand; the peers in Java have the same in `Decision.java`.

What is made of a consent record is one small number a person. A post is decoded only where it
depends on what the post is, and only the fields that count.
"""

import msgspec

NOTHING, PUBLIC_POSTS, EVERYTHING = range(3)
"""What may be forwarded of a person."""

_SUSPENDED = frozenset(("AT", "BE", "DE", "ES", "FR", "IE", "IT", "NL", "PL", "SE"))
_KINDS = frozenset(("post", "article"))
# Of the numbers that end a key, every fourth.
_QUARTER = frozenset(b"%02d" % number for number in range(0, 100, 4))


class _Choice(msgspec.Struct):
    choice: str | None = None


class _Consent(msgspec.Struct):
    jurisdiction: str
    adult: bool | None = None
    choices: dict[str, _Choice] = {}


class _Post(msgspec.Struct):
    visibility: str
    kind: str


_consent = msgspec.json.Decoder(_Consent).decode
_post = msgspec.json.Decoder(_Post).decode
_NO_CHOICE = _Choice()


def permitted(consent: bytes | None) -> int:
    """What a consent record permits; what cannot be read permits nothing."""
    if consent is None:
        return NOTHING
    try:
        state = _consent(consent)
    except msgspec.DecodeError:
        return NOTHING
    if state.adult is not True or state.jurisdiction in _SUSPENDED:
        return NOTHING
    choice = state.choices.get("ai-training", _NO_CHOICE).choice
    if state.jurisdiction == "GB":
        return EVERYTHING if choice == "granted" else NOTHING
    return PUBLIC_POSTS if choice in (None, "granted") else NOTHING


def forwards(person: int | None, post: bytes) -> bool:
    """Whether a post goes on, of somebody of whom `person` may be forwarded."""
    if person == PUBLIC_POSTS:
        read = _post(post)
        return read.visibility == "public" and read.kind in _KINDS
    return person == EVERYTHING


def in_quarter(key: bytes) -> bool:
    """What a loop forwards that decides nothing: as many records as the policy lets through."""
    return key[-2:] in _QUARTER
