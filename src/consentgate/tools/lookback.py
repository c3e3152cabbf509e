"""What those share that decide once more on records of the topics."""

from collections.abc import Sequence
from typing import Any

import msgspec

from consentgate.config import Config
from consentgate.core.decode import content_decoder, subject_reader

_NEVER_MS = 1 << 62


def subject_in(config: Config, record: Any) -> bytes:
    """Whose a content record is; nobody's, b"", where that cannot be read."""
    decode = content_decoder(config.content.fields, config.limits.max_depth)
    return subject_reader(decode, key_is_subject=config.content.key_is_subject)(record)


def at_any_moment(config: Config) -> Config:
    """The configuration for a decision as of a moment that the user names.

    Most records were appended after a moment of the past. That they come from its future, which
    else would set them aside, says nothing about its rules.
    """
    limits = msgspec.structs.replace(config.limits, max_future_ms=_NEVER_MS)
    return msgspec.structs.replace(config, limits=limits)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
