"""The events of the benchmark: made from a seed, with the outcome of each known beforehand."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

POLICY = """\
name: benchmark
purpose: ai-training
groups: {EEA: [AT, BE, DE, ES, FR, IE, IT, NL, PL, SE]}
rules:
  - jurisdictions: [EEA]
    basis: suspended
  - jurisdictions: [GB]
    basis: opt-in
    adults_only: true
  - jurisdictions: ["*"]
    basis: opt-out
    adults_only: true
    visibility: [public]
    kinds: [post, article]
"""
_JURISDICTIONS = ("DE", "FR", "IT", "ES", "NL", "GB", "GB", "US", "US", "US", "BR", "IN", "CA")
_CHOICES = (None, None, "granted", "granted", "granted", "denied", "withdrawn", "objected")
_ADULT = (*[True] * 18, None, False)
_VISIBILITIES = (*["public"] * 7, "connections")
_KINDS = (*["post"] * 5, "article", "article", "comment")
_CREATED = "2024-09-20T10:00:00Z"


@dataclass(frozen=True, slots=True)
class Event:
    """One content event and whether it is to be forwarded."""

    key: bytes
    value: bytes
    forward: bool


class Workload:
    """`subjects` people with their consent, and `events` posts of theirs, about 550 bytes each."""

    def __init__(self, subjects: int, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._people = [
            (
                self._random.choice(_JURISDICTIONS),
                self._random.choice(_ADULT),
                self._random.choice(_CHOICES),
            )
            for _ in range(subjects)
        ]

    def consent(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of one consent record for each subject."""
        for number, (jurisdiction, adult, choice) in enumerate(self._people):
            choices = {"ai-training": {"choice": choice, "at": _CREATED}} if choice else {}
            state = {
                "subject": f"m{number}",
                "jurisdiction": jurisdiction,
                "adult": adult,
                "choices": choices,
            }
            yield f"m{number}".encode(), orjson.dumps(state)

    def events(self, number: int) -> Iterator[Event]:
        """Posts of random subjects."""
        text = "Nobody asked me before. " * 17
        for event in range(number):
            subject = self._random.randrange(len(self._people))
            visibility = self._random.choice(_VISIBILITIES)
            kind = self._random.choice(_KINDS)
            value = orjson.dumps(
                {
                    "id": f"e{event}",
                    "subject": f"m{subject}",
                    "kind": kind,
                    "visibility": visibility,
                    "created_at": _CREATED,
                    "body": {"text": text},
                }
            )
            forward = self._is_forwarded(subject, kind, visibility)
            yield Event(f"m{subject}".encode(), value, forward)

    def _is_forwarded(self, subject: int, kind: str, visibility: str) -> bool:
        jurisdiction, adult, choice = self._people[subject]
        if adult is not True:
            return False
        if jurisdiction == "GB":
            return choice == "granted"
        covered = visibility == "public" and kind in ("post", "article")
        return jurisdiction in ("US", "BR", "IN", "CA") and choice in (None, "granted") and covered
