"""What a policy needs to be carried out: a key, an engine, and a hash that says which."""

from dataclasses import replace
from pathlib import Path

import pytest

from consentgate.config import Config, KeysConfig
from consentgate.core.consent import ConsentTable
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.transform import Work
from consentgate.engines import equip, gates_of_all_times, load_pseudonyms
from consentgate.errors import ConfigError

RULE = Rule(("*",), Basis.OPT_OUT, line=4)
PLAIN = Policy("p", "ai-training", {}, (RULE,))
PSEUDONYMIZING = Policy("p", "ai-training", {}, (replace(RULE, pseudonymize=True),))
REDACTING = Policy("p", "ai-training", {}, (replace(RULE, redact=("email", "phone")),))


def with_keys(*paths: Path) -> Config:
    return Config(keys=KeysConfig(pseudonym=[str(path) for path in paths]))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("k" * 32 + "\n")
    return path


def test_a_policy_that_pseudonymizes_needs_a_key() -> None:
    with pytest.raises(ConfigError, match=r"line 4.*keys\.pseudonym.*openssl"):
        equip(Config(), PSEUDONYMIZING)


def test_a_key_is_what_its_file_holds_without_the_line_s_end(key: Path) -> None:
    assert load_pseudonyms(with_keys(key)).keys == (b"k" * 32,)


def test_a_short_key_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_text("s" * 31)
    with pytest.raises(ConfigError, match="short holds 31 bytes") as refused:
        load_pseudonyms(with_keys(path))
    assert "sss" not in str(refused.value)


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere cannot be read"):
        load_pseudonyms(with_keys(tmp_path / "nowhere"))


def test_the_hash_says_which_keys_and_in_which_order(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("o" * 32)
    hashes = {
        equip(config, PSEUDONYMIZING)[0].hash
        for config in (with_keys(key), with_keys(other), with_keys(key, other))
    }
    assert len(hashes) == 3


def test_the_hash_says_which_engine(key: Path) -> None:
    redacting, _ = equip(Config(), REDACTING)
    assert {"rules", "phonenumbers"} <= redacting.engines.keys()
    assert redacting.hash != REDACTING.hash
    assert redacting.hash != replace(redacting, engines={"rules": "0"}).hash


def test_the_hash_of_a_policy_that_needs_neither_is_its_rules_alone(key: Path) -> None:
    assert equip(with_keys(key), PLAIN)[0].hash == PLAIN.hash


def test_what_carries_the_policy_out_redacts() -> None:
    equipped, transformer = equip(Config(), REDACTING)
    value = b'{"body":{"text":"anna@example.org"}}'
    work = Work(value, b"m1", equipped.rules[0], "GB")
    assert transformer.value(work) == b'{"body":{"text":"[EMAIL]"}}'


def test_what_was_decided_before_keys_were_rotated_has_its_gate(key: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.write_text("n" * 32)
    then, now = with_keys(key), with_keys(newer, key)
    gates = gates_of_all_times(now, [PSEUDONYMIZING, REDACTING], 0, ConsentTable([0]))
    assert gates.keys() == {
        equip(then, PSEUDONYMIZING)[0].reference,
        equip(now, PSEUDONYMIZING)[0].reference,
        equip(now, REDACTING)[0].reference,
    }
    forms = {name: gate.transformer.pseudonyms.forms(b"m1") for name, gate in gates.items()}
    assert len(forms[equip(then, PSEUDONYMIZING)[0].reference]) == 2
    assert len(forms[equip(now, PSEUDONYMIZING)[0].reference]) == 3
    assert len(forms[equip(now, REDACTING)[0].reference]) == 3


def test_a_policy_has_its_gate_without_any_keys() -> None:
    assert gates_of_all_times(Config(), [PLAIN], 0, ConsentTable([0])).keys() == {PLAIN.reference}
