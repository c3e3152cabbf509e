"""A policy: the rules of one purpose, and which of them are in force at a moment."""

import json
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import TypeAlias

from consentgate.core.countries import COUNTRIES

EVERYWHERE_ELSE = "*"
"""The jurisdiction of a rule for all countries that no rule of the policy ever names."""

DETECTORS = ("email", "phone", "iban", "card", "ip", "national-id", "url", "secret", "name")
"""What `redact` can name."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - Only for texts, which get their Z at the end.

Groups: TypeAlias = Mapping[str, frozenset[str]]
"""The countries of each group by the group's name."""


class Basis(StrEnum):
    """What a person's choice must be for a rule to permit."""

    OPT_IN = "opt-in"
    OPT_OUT = "opt-out"
    SUSPENDED = "suspended"
    PROHIBITED = "prohibited"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy; times are epoch milliseconds."""

    jurisdictions: tuple[str, ...]
    """Groups, countries and `*` as the file names them, in its order."""
    basis: Basis
    from_ms: int | None = None
    """In force from here on (included); None: ever since."""
    until_ms: int | None = None
    """No longer in force from here on; None: for ever."""
    adults_only: bool = False
    visibility: frozenset[str] | None = None
    """The visibilities that are covered; None: any."""
    kinds: frozenset[str] | None = None
    """The kinds of content that are covered; None: any."""
    created_from_ms: int | None = None
    """Content created before this is not covered."""
    created_until_ms: int | None = None
    """Content created at or after this is not covered."""
    fields: tuple[str, ...] | None = None
    """The only fields of the body that are forwarded, sorted; None: all."""
    redact: tuple[str, ...] = ()
    """Members of `DETECTORS`, sorted."""
    pseudonymize: bool = False
    line: int = 0
    """Where the rule stands in the policy file; no part of what it means."""

    @property
    def transforms(self) -> bool:
        """Whether the rule forwards something else than the content as it came."""
        return self.fields is not None or bool(self.redact) or self.pseudonymize

    def in_force(self, now_ms: int) -> bool:
        """Whether `now_ms`, epoch milliseconds, is in the rule's time."""
        started = self.from_ms is None or self.from_ms <= now_ms
        return started and (self.until_ms is None or now_ms < self.until_ms)


@dataclass(frozen=True, slots=True, eq=False)
class RulesInForce:
    """What a policy says between two moments at which its rules change. Made by `Policy.at`."""

    rules: Mapping[str, tuple[Rule, str]]
    """For each country that has a rule: the rule, and the label under which it is counted."""
    until_ms: int | None
    """The next moment, epoch milliseconds, at which the rules change; None: never."""

    def find(self, jurisdiction: str) -> tuple[Rule, str] | None:
        """The rule of a country, and the group, country or `*` that names it in the rule.

        None where no rule is in force for the country, and for what is no country.
        """
        return self.rules.get(jurisdiction)


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy without errors: at no moment do two rules name the same jurisdiction.

    `parse_policy` makes one from a file and sees to that.
    """

    name: str
    purpose: str
    groups: Groups
    rules: tuple[Rule, ...]
    engines: Mapping[str, str] = field(default_factory=dict)
    """The versions of what redacts; they decide what goes on as the rules do."""
    key_fingerprints: tuple[str, ...] = ()
    """Of the pseudonym keys, the one in use first."""

    def at(self, now_ms: int) -> RulesInForce:
        """The rules in force at `now_ms`, epoch milliseconds.

        The same object for every moment until its `until_ms`.
        """
        number = bisect_right(self._boundaries_ms, now_ms)
        known = self._by_number.get(number)
        if known is None:
            known = self._by_number[number] = self._rules_in_force(now_ms, number)
        return known

    @cached_property
    def transforms(self) -> bool:
        """Whether a rule forwards something else than the content as it came."""
        return any(rule.transforms for rule in self.rules)

    @cached_property
    def canonical(self) -> str:
        """The text whose SHA-256 is the policy's hash, however the file writes the same rules.

        It is JSON with sorted keys, without spaces and with non-ASCII characters as they are:
        `{"name", "purpose", "rules"}`. Each rule is an object of the keys of the policy file:

        - `jurisdictions`: an object that maps each label of the rule to the sorted countries it
          stands for, a country to itself and `*` to `["*"]`. Groups are expanded so that a
          changed group is a changed policy. Their names stay, because the ledger counts by them:
          the hash pins all that is logged, not the verdicts alone. A group that no rule uses
          leaves no trace.
        - `basis` as written.
        - `from`, `until`, `created_from`, `created_until`: in UTC as `2024-09-20T00:00:00.000Z`,
          always with three decimals.
        - `visibility`, `kinds`, `fields`, `redact`: sorted.
        - `adults_only`, `pseudonymize`: only where true. No key has a default.

        The rules are sorted by their own canonical text. Their order in the file has no meaning,
        since no two of them apply to the same person at the same moment. All sorting is by code
        points.

        Where a rule redacts, there is also `engines`, which maps what redacts to its version, and
        where one pseudonymizes, `keys`: the fingerprints of the keys, the one in use first. Both
        are known only where the policy is enforced.
        """
        rules = sorted((self._canonical_rule(rule) for rule in self.rules), key=_json)
        policy: dict[str, object] = {"name": self.name, "purpose": self.purpose, "rules": rules}
        if self.engines and any(rule.redact for rule in self.rules):
            policy["engines"] = self.engines
        if self.key_fingerprints and any(rule.pseudonymize for rule in self.rules):
            policy["keys"] = self.key_fingerprints
        return _json(policy)

    @cached_property
    def hash(self) -> str:
        """The hex SHA-256 of the canonical form in UTF-8."""
        return sha256(self.canonical.encode()).hexdigest()

    @cached_property
    def reference(self) -> str:
        """`name@hash` with the first 12 digits of the hash, as headers and the ledger carry it."""
        return f"{self.name}@{self.hash[:12]}"

    @property
    def full_reference(self) -> str:
        """`name@hash` with all 64 digits of the hash."""
        return f"{self.name}@{self.hash}"

    @cached_property
    def _boundaries_ms(self) -> list[int]:
        times = {time for rule in self.rules for time in (rule.from_ms, rule.until_ms)}
        return sorted(time for time in times if time is not None)

    @cached_property
    def _by_number(self) -> dict[int, RulesInForce]:
        # Filled as moments are asked for: one entry for each stretch between two boundaries.
        return {}

    @cached_property
    def _unnamed(self) -> frozenset[str]:
        return COUNTRIES.difference(*(expanded(rule, self.groups) for rule in self.rules))

    def _rules_in_force(self, now_ms: int, number: int) -> RulesInForce:
        found: dict[str, tuple[Rule, str]] = {}
        for rule in self.rules:
            if not rule.in_force(now_ms):
                continue
            for country, label in expanded(rule, self.groups).items():
                for covered in self._unnamed if country == EVERYWHERE_ELSE else (country,):
                    assert covered not in found, f"two rules for {covered} at {now_ms}"
                    found[covered] = rule, label
        following = self._boundaries_ms[number : number + 1]
        return RulesInForce(found, following[0] if following else None)

    def _canonical_rule(self, rule: Rule) -> dict[str, object]:
        times = {"from": rule.from_ms, "until": rule.until_ms}
        return {
            "jurisdictions": {
                label: sorted(self.groups.get(label, {label})) for label in rule.jurisdictions
            },
            "basis": rule.basis,
            **{key: utc_text(time) for key, time in times.items() if time is not None},
            **conditions(rule),
        }


def conditions(rule: Rule) -> dict[str, object]:
    """What the rule asks beyond its basis and does to content, by the keys of the policy file.

    Times are texts, lists are sorted, and what the rule does not ask is left out.
    """
    flags = {"adults_only": rule.adults_only, "pseudonymize": rule.pseudonymize}
    words = {
        "visibility": rule.visibility,
        "kinds": rule.kinds,
        "fields": rule.fields,
        "redact": rule.redact or None,
    }
    times = {"created_from": rule.created_from_ms, "created_until": rule.created_until_ms}
    return {
        **{key: True for key, flag in flags.items() if flag},
        **{key: sorted(known) for key, known in words.items() if known is not None},
        **{key: utc_text(time) for key, time in times.items() if time is not None},
    }


def expanded(rule: Rule, groups: Groups) -> dict[str, str]:
    """The countries that `rule` names, and `*` as itself; to each the label that names it."""
    return {
        country: label
        for label in rule.jurisdictions
        for country in groups.get(label, frozenset({label}))
    }


def utc_text(time_ms: int) -> str:
    """Epoch milliseconds as `2024-09-20T00:00:00.000Z`."""
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def short_utc_text(time_ms: int) -> str:
    """Epoch milliseconds as people write them: `2024-09-20T00:00:00Z`."""
    return utc_text(time_ms).replace(".000Z", "Z")


def in_few_words(jurisdictions: Collection[str], groups: Groups) -> list[str]:
    """The jurisdictions with whole groups by their names, the largest first; then the others."""
    left = set(jurisdictions)
    names = []
    for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        if members and members <= set(jurisdictions) and not members.isdisjoint(left):
            names.append(name)
            left -= members
    return names + sorted(left)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
