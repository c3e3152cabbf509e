"""What a policy needs beside its rules: the keys of pseudonyms and the engine that redacts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from consentgate.config import Config
from consentgate.core.consent import ConsentTable
from consentgate.core.decode import content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.policy import Policy
from consentgate.core.pseudonym import KEY_BYTES_MIN, Pseudonyms
from consentgate.core.transform import Redact, Transformer, cannot_redact
from consentgate.errors import ConfigError


def equip(config: Config, policy: Policy) -> tuple[Policy, Transformer]:
    """The policy with what its hash says of engines and keys, and what carries its rules out.

    Raises:
        ConfigError: if a key file cannot be used, if the policy pseudonymizes and there is no key,
            or if it redacts and the engine is not installed.
    """
    pseudonyms = load_pseudonyms(config)
    if not pseudonyms.keys and (rule := next((r for r in policy.rules if r.pseudonymize), None)):
        raise ConfigError(
            f"the policy {policy.name} pseudonymizes (line {rule.line}), but keys.pseudonym names "
            "no key file; make one with: openssl rand -hex 32"
        )
    detectors = sorted({detector for rule in policy.rules for detector in rule.redact})
    redact, versions = _engine(detectors) if detectors else (cannot_redact, {})
    equipped = replace(policy, engines=versions, key_fingerprints=pseudonyms.fingerprints)
    return equipped, Transformer(config.content.fields, pseudonyms, redact)


def gate_of(config: Config, policy: Policy, partition: int, table: ConsentTable) -> Gate:
    """A gate as the worker of this content partition has it, over a table of one's own.

    Raises:
        ConfigError: as `equip` does.
    """
    equipped, transformer = equip(config, policy)
    return Gate(
        chain=Chain(config.group, config.topics.content, partition),
        consent_topic=config.topics.consent,
        table=table,
        policy=equipped,
        decode=content_decoder(config.content.fields, config.limits.max_depth),
        limits=config.limits.of_content(),
        key_is_subject=config.content.key_is_subject,
        transformer=transformer,
    )


def gates_of_all_times(
    config: Config, policies: Sequence[Policy], partition: int, table: ConsentTable
) -> dict[str, Gate]:
    """The gates of policies, by reference; also as they were before keys were put in front.

    A rotation puts a new key before the others, so that the keys of every time before are the rest
    of the list.

    Raises:
        ConfigError: as `equip` does.
    """
    keys = config.keys.pseudonym
    gates = {}
    for number in reversed(range(max(1, len(keys)))):
        then = msgspec.structs.replace(
            config, keys=msgspec.structs.replace(config.keys, pseudonym=keys[number:])
        )
        # What does not depend on keys keeps its reference; the last, with all of them, stays.
        for policy in policies:
            gate = gate_of(then, policy, partition, table)
            gates[gate.policy.reference] = gate
    return gates


def load_pseudonyms(config: Config) -> Pseudonyms:
    """The keys of the files under `keys.pseudonym`.

    Raises:
        ConfigError: naming the file, never its content.
    """
    return Pseudonyms(tuple(_read_key(path) for path in config.keys.pseudonym))


def _engine(detectors: Sequence[str]) -> tuple[Redact, Mapping[str, str]]:
    # Only where a rule asks for it: its libraries come with an extra.
    from consentgate.redaction.redact import engine_versions, redact  # noqa: PLC0415

    return redact, engine_versions(detectors)


def _read_key(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from None
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f"the key file {path} holds {len(key)} bytes, but {KEY_BYTES_MIN} are the least; make "
            "one with: openssl rand -hex 32"
        )
    return key
