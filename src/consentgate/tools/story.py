"""The demo's people: their consent, their posts, and a crowd around them. Made from a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

WITHDRAWS = "mallory-us"
"""The member who withdraws while the demo runs."""

_POLICY = """\
# LinkedIn's rules of September 2024, with two changes for this demo: the suspension in the United
# Kingdom begins a few seconds after the start, and minors are left out.
name: linkedin-demo
purpose: ai-training
groups:
  EEA: [
    AT, BE, BG, CY, CZ, DE, DK, EE, ES, FI, FR, GR, HR, HU, IE, IT, LT, LU, LV, MT, NL, PL, PT, RO,
    SE, SI, SK, IS, LI, NO
  ]
rules:
  - jurisdictions: [EEA, CH]
    basis: suspended
  - jurisdictions: [GB]
    until: {stop}
    basis: opt-out
    adults_only: true
  - jurisdictions: [GB]
    from: {stop}
    basis: suspended
  - jurisdictions: [CA, HK]
    basis: suspended
  - jurisdictions: ["*"]
    basis: opt-out
    adults_only: true
"""
_CROWD = ("GB", "GB", "GB", "DE", "FR", "CH", "CA", "US", "US", "US", "BR", "IN", "AU")
_BROKEN_SHARE = 0.05
_CHOICES = (None, None, None, "granted", "granted", "denied", "objected")


def policy_text(suspension_ms: int) -> str:
    """The demo's policy; the United Kingdom is suspended from this moment (epoch ms) on."""
    stop = datetime.fromtimestamp(suspension_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return _POLICY.format(stop=stop)


@dataclass(frozen=True, slots=True)
class StoryRecord:
    """Key and value of a record."""

    key: bytes | None
    value: bytes | None


class Story:
    """Five people that one can follow, and a crowd of `subjects`."""

    def __init__(self, subjects: int, seed: int = 2024) -> None:
        self._random = random.Random(seed)  # noqa: S311 - A story, not a secret.
        self._subjects = subjects
        self._number = 0

    def consent(self) -> Iterator[StoryRecord]:
        """One consent record for each person that is known."""
        yield _state("alice-gb", "GB", adult=True, choice="granted")
        yield _state("bob-gb", "GB", adult=True, choice=None)
        yield _state(WITHDRAWS, "US", adult=True, choice="granted")
        yield _state("teen-us", "US", adult=False, choice="granted")
        yield _state("anna-de", "DE", adult=True, choice="granted")
        for number in range(self._subjects):
            yield _state(
                f"member-{number}",
                self._random.choice(_CROWD),
                adult=self._random.random() < 0.95,
                choice=self._random.choice(_CHOICES),
            )

    def withdrawal(self) -> StoryRecord:
        """What the member who withdraws says."""
        return _state(WITHDRAWS, "US", adult=True, choice="withdrawn")

    def posts(self, number: int) -> Iterator[StoryRecord]:
        """The next posts; the people of the story write now and then, and some input is broken."""
        for _ in range(number):
            if self._number % 107 == 0:
                yield from self._posts_of_the_story()
            yield self._post(f"member-{self._random.randrange(self._subjects)}")

    def _posts_of_the_story(self) -> Iterator[StoryRecord]:
        for subject in ("alice-gb", "bob-gb", WITHDRAWS, "teen-us", "anna-de", "stranger"):
            yield self._post(subject)
        if self._random.random() < _BROKEN_SHARE:
            yield StoryRecord(b"alice-gb", None)
            yield StoryRecord(b"bob-gb", b'{"id": "cut off in the mid')
            yield StoryRecord(b"alice-gb", self._post("bob-gb").value)

    def _post(self, subject: str) -> StoryRecord:
        self._number += 1
        event = {
            "id": f"post-{self._number}",
            "subject": subject,
            "kind": "post",
            "visibility": "public",
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "body": {"text": "What I have learnt about leadership from my cat. " * 5},
        }
        return StoryRecord(subject.encode(), orjson.dumps(event))


def _state(subject: str, jurisdiction: str, *, adult: bool, choice: str | None) -> StoryRecord:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    choices: dict[str, Any] = {"ai-training": {"choice": choice, "at": at}} if choice else {}
    state = {"subject": subject, "jurisdiction": jurisdiction, "adult": adult, "choices": choices}
    return StoryRecord(subject.encode(), orjson.dumps(state))
