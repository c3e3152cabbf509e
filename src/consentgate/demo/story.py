"""The demo's people: those of `story.jsonl`, and a crowd around them. Made from a seed."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import orjson

from consentgate.tools.fixtures import FixtureRecord, read_fixture

WITHDRAWS = "mallory-us"
"""The member who withdraws while the demo runs."""

_FILES = resources.files(__package__)
_STOP = "2024-09-20T00:00:00.000Z"
_CROWD = ("GB", "GB", "GB", "DE", "FR", "CH", "CA", "US", "US", "US", "BR", "IN", "AU")
_CHOICES = (None, None, None, "granted", "granted", "denied", "objected")
_POSTS_BETWEEN = 200
"""After so many posts of the crowd, the people of the story write theirs again."""


def policy_text(suspension_ms: int) -> str:
    """The demo's policy; the United Kingdom is suspended from this moment (epoch ms) on."""
    stop = _utc(datetime.fromtimestamp(suspension_ms / 1000, UTC))
    return (_FILES / "policy.yaml").read_text("utf-8").replace(_STOP, stop)


class Story:
    """The people that one can follow, and a crowd of `subjects`."""

    def __init__(self, subjects: int, seed: int = 2024) -> None:
        self._random = random.Random(seed)  # noqa: S311 - A story, not a secret.
        self._subjects = subjects
        self._number = 0
        with resources.as_file(_FILES / "story.jsonl") as path:
            lines = [line for line in read_fixture(path) if isinstance(line, FixtureRecord)]
        self._posts = [line for line in lines if line.topic == "content-events"]
        *self._states, self._withdrawal = (line for line in lines if line.topic == "consent-state")

    def consent(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Key and value of one consent record for each person that is known."""
        for line in self._states:
            yield line.key, line.value
        for number in range(self._subjects):
            yield self._state(f"member-{number}")

    def withdrawal(self) -> tuple[bytes | None, bytes | None]:
        """What the member who withdraws says."""
        return self._withdrawal.key, self._withdrawal.value

    def posts(self, number: int) -> Iterator[tuple[bytes | None, bytes | None]]:
        """At least `number` next posts."""
        for _ in range(number):
            if self._number % _POSTS_BETWEEN == 0:
                for line in self._posts:
                    yield line.key, line.value
            self._number += 1
            yield self._post(f"member-{self._random.randrange(self._subjects)}")

    def _post(self, subject: str) -> tuple[bytes, bytes]:
        event = {
            "id": f"post-{self._number}",
            "subject": subject,
            "kind": "post",
            "visibility": "public",
            "created_at": _utc(datetime.now(UTC)),
            "body": {"text": "What I have learnt about leadership from my cat. " * 5},
        }
        return subject.encode(), orjson.dumps(event)

    def _state(self, subject: str) -> tuple[bytes, bytes]:
        choice = self._random.choice(_CHOICES)
        chosen: dict[str, Any] = {"choice": choice, "at": _utc(datetime.now(UTC))}
        state = {
            "subject": subject,
            "jurisdiction": self._random.choice(_CROWD),
            "adult": self._random.random() < 0.95,
            "choices": {"ai-training": chosen} if choice else {},
        }
        return subject.encode(), orjson.dumps(state)


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
