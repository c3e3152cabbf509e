"""Pseudonyms: the same for the same subject and key, and nothing without a key."""

import hashlib
import hmac

import pytest

from consentgate.core.pseudonym import Pseudonyms

NEW, OLD = b"n" * 32, b"o" * 32


def test_a_pseudonym_is_the_hmac_sha256_of_the_subject_in_hex() -> None:
    expected = hmac.new(NEW, b"m1", hashlib.sha256).hexdigest().encode()
    assert Pseudonyms((NEW, OLD)).of(b"m1") == expected


def test_without_a_key_there_is_no_pseudonym() -> None:
    with pytest.raises(LookupError):
        Pseudonyms().of(b"m1")


def test_the_forms_are_the_plain_one_and_one_under_each_key() -> None:
    forms = Pseudonyms((NEW, OLD)).forms(b"m1")
    assert forms == (b"m1", Pseudonyms((NEW,)).of(b"m1"), Pseudonyms((OLD,)).of(b"m1"))
    assert Pseudonyms().forms(b"m1") == (b"m1",)


def test_fingerprints_tell_keys_apart_and_are_not_pseudonyms() -> None:
    first, second = Pseudonyms((NEW, OLD)).fingerprints
    assert first != second
    assert len(first) == len(second) == 12
    assert NEW.decode() not in repr(Pseudonyms((NEW,)))
