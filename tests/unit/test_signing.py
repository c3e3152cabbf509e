"""Keys of the ledger: what is signed is checked, and what is no key is named."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from consentgate.core.ledger import GENESIS, BatchFacts, Chain, LedgerRecord, write_entry
from consentgate.errors import ConfigError
from consentgate.signing import load_signature_check, load_signer


def key_files(directory: Path, key: object = None) -> tuple[str, str]:
    """The paths of a private and its public key."""
    key = key or Ed25519PrivateKey.generate()
    private, public = directory / "private.pem", directory / "public.pem"
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    )
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    )
    return str(private), str(public)


def signed_entry(private: str) -> LedgerRecord:
    facts = BatchFacts(0, -1, 1, {0: 5}, "p@1", (), ())
    entry = write_entry(Chain("g", "content", 0, load_signer(private)), facts, GENESIS)
    return msgspec.json.decode(entry.value, type=LedgerRecord)


def test_a_signature_is_that_of_the_hash_under_the_key(tmp_path: Path) -> None:
    private, public = key_files(tmp_path)
    record = signed_entry(private)
    assert load_signature_check(public)(record)
    assert not load_signature_check(public)(msgspec.structs.replace(record, hash=GENESIS))


@pytest.mark.parametrize("signature", [None, "", "not base64!", "AAAA"])
def test_without_its_signature_an_entry_is_not_signed(
    tmp_path: Path, signature: str | None
) -> None:
    private, public = key_files(tmp_path)
    record = msgspec.structs.replace(signed_entry(private), signature=signature)
    assert not load_signature_check(public)(record)


def test_another_key_does_not_check(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    private, _ = key_files(tmp_path)
    _, public = key_files(tmp_path / "other")
    assert not load_signature_check(public)(signed_entry(private))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_named_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    for load, kind in ((load_signer, "private"), (load_signature_check, "public")):
        with pytest.raises(ConfigError, match=f"key.pem holds no Ed25519 {kind} key"):
            load(str(path))


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    private, public = key_files(tmp_path, generate_private_key(SECP256R1()))
    with pytest.raises(ConfigError, match="no Ed25519 private key"):
        load_signer(private)
    with pytest.raises(ConfigError, match="no Ed25519 public key"):
        load_signature_check(public)


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    encryption = BestAvailableEncryption(b"secret")
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(ConfigError, match="in PEM without a password"):
        load_signer(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pem cannot be read: No such file"):
        load_signer(str(tmp_path / "absent.pem"))
