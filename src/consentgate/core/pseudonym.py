"""Pseudonyms: a subject leaves as the HMAC-SHA-256 (RFC 2104) of its id under a secret key.

Whoever has the key can tell whose record it was, so a pseudonym is personal data still (GDPR
Art. 4(5)). Whoever has not, can only tell that two records are of the same person.
"""

import hmac
from dataclasses import dataclass, field
from hashlib import sha256

KEY_BYTES_MIN = 32


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """The keys: subjects leave under the first one, and have left under the retired others."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)

    def of(self, subject: bytes) -> bytes:
        """The form under which the subject leaves now: 64 hex digits.

        Raises:
            LookupError: if there is no key.
        """
        if not self.keys:
            raise LookupError("there is no key to make pseudonyms with")
        return _digest(self.keys[0], subject)

    def forms(self, subject: bytes) -> tuple[bytes, ...]:
        """Every form under which something of the subject may have left: plain, and by each key."""
        return subject, *(_digest(key, subject) for key in self.keys)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What tells the keys apart without giving them away: 12 hex digits each."""
        return tuple(
            sha256(b"consentgate pseudonym key\0" + key).hexdigest()[:12] for key in self.keys
        )


def _digest(key: bytes, subject: bytes) -> bytes:
    return hmac.digest(key, subject, "sha256").hex().encode()
