"""The events of the benchmark: made from a seed, with the outcome of each known beforehand."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
import yaml

from consentgate.core.policy import DETECTORS

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
EVENT_BYTES = 550
_JURISDICTIONS = ("DE", "FR", "IT", "ES", "NL", "GB", "GB", "US", "US", "US", "BR", "IN", "CA")
_CHOICES = (None, None, "granted", "granted", "granted", "denied", "withdrawn", "objected")
_ADULT = (*[True] * 18, None, False)
_VISIBILITIES = (*["public"] * 7, "connections")
_KINDS = (*["post"] * 5, "article", "article", "comment")
_CREATED = "2024-09-20T10:00:00Z"
_SENTENCE = "Nobody asked me before. "
_BYTES_BESIDE_TEXT = 142


@dataclass(frozen=True, slots=True)
class Event:
    """One content event and whether it is to be forwarded."""

    key: bytes
    value: bytes
    forward: bool


class Workload:
    """People with their consent, and posts of theirs.

    `forwarded` is the share of the posts that is to go on; by default what comes of the people, a
    quarter. Any other leaves the people as they are, and chooses among their posts.
    """

    def __init__(
        self,
        subjects: int,
        seed: int = 7,
        event_bytes: int = EVENT_BYTES,
        forwarded: float | None = None,
    ) -> None:
        text_bytes = event_bytes - _BYTES_BESIDE_TEXT
        self._text = (_SENTENCE * (text_bytes // len(_SENTENCE) + 1))[:text_bytes]
        self._forwarded = forwarded
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
        for event in range(number):
            subject, visibility, kind, forward = self._choose()
            value = orjson.dumps(
                {
                    "id": f"e{event}",
                    "subject": f"m{subject}",
                    "kind": kind,
                    "visibility": visibility,
                    "created_at": _CREATED,
                    "body": {"text": self._text},
                }
            )
            yield Event(f"m{subject}".encode(), value, forward)

    def _choose(self) -> tuple[int, str, str, bool]:
        """Subject, visibility, kind, and whether that is forwarded."""
        wanted = None if self._forwarded is None else self._random.random() < self._forwarded
        while True:
            subject = self._random.randrange(len(self._people))
            visibility = self._random.choice(_VISIBILITIES)
            kind = self._random.choice(_KINDS)
            forward = self._is_forwarded(subject, kind, visibility)
            if wanted in (None, forward):
                return subject, visibility, kind, forward

    def _is_forwarded(self, subject: int, kind: str, visibility: str) -> bool:
        jurisdiction, adult, choice = self._people[subject]
        if adult is not True:
            return False
        if jurisdiction == "GB":
            return choice == "granted"
        covered = visibility == "public" and kind in ("post", "article")
        return jurisdiction in ("US", "BR", "IN", "CA") and choice in (None, "granted") and covered


def redacting_policy() -> str:
    """The policy of the benchmark, with every detector but `name` in every rule that permits."""
    policy = yaml.safe_load(POLICY)
    for rule in policy["rules"]:
        if rule["basis"] != "suspended":
            rule["redact"] = [name for name in DETECTORS if name != "name"]
    return yaml.safe_dump(policy)
