"""Ed25519 keys for the ledger (RFC 8032): entries are signed by the hash that chains them."""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from consentgate.core.ledger import LedgerRecord
from consentgate.errors import ConfigError

Signer = Callable[[str], str]
"""An entry's hash to its signature, in base64."""

SignatureCheck = Callable[[LedgerRecord], bool]
"""Whether an entry carries the signature of its hash."""


def load_signer(path: str) -> Signer:
    """The signer of a private key file in PEM without a password.

    Raises:
        ConfigError: naming the file, never its content.
    """
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise _no_key(path, "private") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return lambda entry_hash: base64.b64encode(key.sign(entry_hash.encode())).decode()


def load_signature_check(path: str) -> SignatureCheck:
    """The check of a public key file in PEM.

    Raises:
        ConfigError: naming the file.
    """
    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        raise _no_key(path, "public") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")

    def is_signed(record: LedgerRecord) -> bool:
        try:
            key.verify(base64.b64decode(record.signature or ""), record.hash.encode())
        except (InvalidSignature, binascii.Error):
            return False
        return True

    return is_signed


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from None


def _no_key(path: str, kind: str) -> ConfigError:
    return ConfigError(
        f"the key file {path} holds no Ed25519 {kind} key in PEM without a password; make one "
        "with: openssl genpkey -algorithm ed25519"
    )
