"""Policy files: YAML text in, a policy and everything that is wrong with the file out."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias, TypeVar

from consentgate.core.countries import COUNTRIES
from consentgate.core.decode import epoch_ms
from consentgate.core.document import (
    Document,
    Path,
    Problem,
    Severity,
    Value,
    did_you_mean,
    nearest,
    parse_document,
    shown,
    type_name,
)
from consentgate.core.model import UNKNOWN_JURISDICTION
from consentgate.core.policy import (
    DETECTORS,
    EVERYWHERE_ELSE,
    Basis,
    Groups,
    Policy,
    Rule,
    expanded,
    in_few_words,
    short_utc_text,
    utc_text,
)
from consentgate.errors import PolicyError

_T = TypeVar("_T")
_Read = Callable[[Path, Value], _T | None]
_ReadWord = Callable[[Path, str], str | None]

_POLICY_KEYS = ("name", "purpose", "groups", "rules")
_RULE_KEYS = (
    "jurisdictions",
    "from",
    "until",
    "basis",
    "adults_only",
    "visibility",
    "kinds",
    "created_from",
    "created_until",
    "fields",
    "redact",
    "pseudonymize",
)
_BASES = tuple(basis.value for basis in Basis)
_POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LIKE_A_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_FINER_THAN_A_MILLISECOND = re.compile(r"\.[0-9]{3}0*[1-9]")
_WHERE = "{where}"  # In a message, where the jurisdictions go.
_EXAMPLE_TIME = "2024-09-20T00:00:00Z"
# Codes that are in everyday use for a country that has another one.
_MISTAKEN = {"UK": "GB", "EL": "GR"}
_UNIONS = frozenset({"EU", "EEA", "EFTA"})
_MISSING = {
    "name": "give the policy one, such as 'example'",
    "purpose": "say for what people choose, such as 'ai-training'",
    "rules": "a policy has at least one rule",
    "jurisdictions": 'name groups, countries or "*"',
    "basis": f"use one of {', '.join(_BASES)}",
}
# How to mend a value of a wrong type, by the type that is expected and the one that was found.
_MENDS: dict[tuple[type, type], str] = {
    (list, str): "put it into brackets",
    (list, dict): "begin each item with a dash",
    (str, int): "put it into quotes",
    (str, float): "put it into quotes",
    (str, bool): "put it into quotes",
    (str, list): "write one, without brackets or dashes",
    (str, dict): "leave the colon out, or put all of it into quotes",
    (dict, str): "write it as 'key: value'",
    (dict, list): "write it as 'key: value', without dashes",
}


def parse_policy(text: str, file: str) -> Policy:
    """The policy in `text`, the content of `file`.

    Raises:
        PolicyError: naming everything that is wrong, a line each; warnings are not among it.
    """
    policy, problems = lint_policy(text, file)
    if policy is None:
        raise PolicyError("\n".join(str(each) for each in problems if each.severity == "error"))
    return policy


def lint_policy(text: str, file: str) -> tuple[Policy | None, list[Problem]]:
    """The policy in `text`, the content of `file`, and all problems in the order of their lines.

    There is a policy exactly if none of the problems is an error.
    """
    document = parse_document(text, file)
    reader = _Reader(document)
    policy = reader.policy()
    problems = (*document.problems, *reader.problems)
    return policy, sorted(problems, key=lambda each: (each.line, each.key))


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A rule and its place in the list of rules."""

    number: int
    rule: Rule

    @property
    def start(self) -> float:
        return -math.inf if self.rule.from_ms is None else self.rule.from_ms

    @property
    def end(self) -> float:
        return math.inf if self.rule.until_ms is None else self.rule.until_ms

    def path(self, key: str) -> Path:
        return "rules", self.number, key


class _Reader:
    """Reads one document. What cannot be read becomes a problem and None; reading goes on."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []

    def policy(self) -> Policy | None:
        value = self._document.value
        if value is None:
            if not self._document.problems:
                self._problem((), "the file is empty, a policy needs name, purpose and rules")
            return None
        policy = self._mapping((), value, _POLICY_KEYS)
        if policy is None:
            return None
        name = self._required(policy, ("name",), self._policy_name)
        purpose = self._required(policy, ("purpose",), self._text)
        groups = self._optional(policy, ("groups",), self._groups) or {}
        numbered = self._required(policy, ("rules",), partial(self._rules, groups)) or []
        timelines = _timelines(groups, numbered)
        self._report(_conflicts(timelines), groups, "error")
        if self._document.problems or self.problems:
            return None
        self._report(_gaps(timelines), groups, "warning")
        self._warn_of_words(groups, timelines, numbered)
        assert name is not None
        assert purpose is not None
        return Policy(name, purpose, groups, tuple(each.rule for each in numbered))

    def _report(self, findings: "_Findings", groups: Groups, severity: Severity) -> None:
        for (path, message), jurisdictions in findings.items():
            text = message.replace(_WHERE, _summary(jurisdictions, groups))
            self._problem(path, text, severity)

    def _warn_of_words(
        self, groups: Groups, timelines: "_Timelines", numbered: list[_Numbered]
    ) -> None:
        used = {label for each in numbered for label in each.rule.jurisdictions}
        for name in groups:
            if name not in used:
                message = "no rule names this group, name it in one or take it out"
                self._problem(("groups", name), message, "warning")
        unnamed = COUNTRIES - timelines.keys()
        if EVERYWHERE_ELSE not in timelines and unnamed:
            message = (
                f'no rule names {_summary(unnamed, groups)}, add one for "*" to cover the rest'
            )
            self._problem(("rules",), message, "warning")

    def _problem(self, path: Path, message: str, severity: Severity = "error") -> None:
        self.problems.append(self._document.problem(path, message, severity))

    # What a policy consists of.

    def _policy_name(self, path: Path, value: Value) -> str | None:
        name = self._text(path, value)
        if name is None or _POLICY_NAME.fullmatch(name):
            return name
        # The name is followed by "@" and the hash in headers and in the ledger.
        self._problem(path, f"{shown(name)} is no name of a policy, {_usable_name(name)}")
        return None

    def _groups(self, path: Path, value: Value) -> Groups | None:
        groups = self._mapping(path, value, known=None)
        if groups is None:
            return None
        # A group that cannot be read stays known, so that the rules which name it are no problem.
        return {
            name: frozenset(self._group((*path, name), groups, members) or ())
            for name, members in groups.items()
        }

    def _group(self, path: Path, groups: Collection[str], members: Value) -> tuple[str, ...] | None:
        name = str(path[-1])
        if name.upper() in COUNTRIES or name == EVERYWHERE_ELSE:
            message = 'a country\'s code or "*" cannot be the name of a group, choose another'
            self._problem(path, message)
        elif name.lower() == UNKNOWN_JURISDICTION:
            message = f"{UNKNOWN_JURISDICTION!r} is the label of people whose country is not known"
            self._problem(path, f"{message}, choose another name")
        elif not _GROUP_NAME.fullmatch(name):
            hint = "use letters, digits, '.', '_' and '-', a letter or digit first"
            self._problem(path, f"is no name of a group, {hint}")
        return self._words(path, members, partial(self._country, groups))

    def _country(self, groups: Collection[str], path: Path, value: str) -> str | None:
        if value in COUNTRIES:
            return value
        hint = (
            "a group holds countries only, write out those of that group"
            if value in groups
            else _nearest_jurisdiction(value, {})
        )
        self._problem(path, f"unknown country {shown(value)}, {hint}")
        return None

    def _rules(self, groups: Groups, path: Path, value: Value) -> list[_Numbered] | None:
        items = self._list(path, value)
        if items is None:
            return None
        read = ((number, self._rule((*path, number), groups, item)) for number, item in items)
        return [_Numbered(number, rule) for number, rule in read if rule is not None]

    def _rule(self, path: Path, groups: Groups, value: Value) -> Rule | None:
        """The rule as far as it can be read; None where it is not clear whom and when it rules."""
        rule = self._mapping(path, value, _RULE_KEYS)
        if rule is None:
            return None
        labels = self._required(
            rule, (*path, "jurisdictions"), partial(self._jurisdictions, groups)
        )
        basis = self._required(rule, (*path, "basis"), partial(self._word_of, "basis", _BASES))
        window = self._window(rule, (*path, "from"), (*path, "until"))
        created = self._window(rule, (*path, "created_from"), (*path, "created_until"))
        adults_only = self._optional(rule, (*path, "adults_only"), self._flag)
        visibility = self._optional(rule, (*path, "visibility"), self._names)
        kinds = self._optional(rule, (*path, "kinds"), self._names)
        fields = self._optional(rule, (*path, "fields"), self._field_paths)
        redact = self._optional(rule, (*path, "redact"), self._detectors)
        pseudonymize = self._optional(rule, (*path, "pseudonymize"), self._flag)
        if not labels or basis is None or window is None:
            return None
        return Rule(
            jurisdictions=labels,
            basis=Basis(basis),
            from_ms=window[0],
            until_ms=window[1],
            adults_only=bool(adults_only),
            visibility=frozenset(visibility) if visibility else None,
            kinds=frozenset(kinds) if kinds else None,
            created_from_ms=created[0] if created else None,
            created_until_ms=created[1] if created else None,
            fields=tuple(sorted(fields)) if fields else None,
            redact=tuple(sorted(redact or ())),
            pseudonymize=bool(pseudonymize),
            line=self._document.line(path),
        )

    def _jurisdictions(self, groups: Groups, path: Path, value: Value) -> tuple[str, ...] | None:
        labels = self._words(path, value, partial(self._jurisdiction, groups))
        named_by: dict[str, str] = {}
        twice: _Findings = defaultdict(set)
        for label in labels or ():
            for country in sorted(groups.get(label, {label})):
                first = named_by.setdefault(country, label)
                if first != label:
                    message = f"names {_WHERE} twice, as {first!r} and as {label!r}, take one out"
                    twice[path, message].add(country)
        self._report(twice, groups, "error")
        return labels

    def _jurisdiction(self, groups: Groups, path: Path, value: str) -> str | None:
        if value in groups or value in COUNTRIES or value == EVERYWHERE_ELSE:
            return value
        hint = _nearest_jurisdiction(value, groups)
        self._problem(path, f"unknown country or group {shown(value)}, {hint}")
        return None

    def _window(
        self, rule: Mapping[str, Value], start: Path, end: Path
    ) -> tuple[int | None, int | None] | None:
        """The times at two keys, epoch milliseconds; None where there is no such stretch."""
        known = len(self.problems)
        start_ms = self._optional(rule, start, self._time)
        end_ms = self._optional(rule, end, self._time)
        if start_ms is not None and end_ms is not None and start_ms >= end_ms:
            hint = "nothing lies between them, swap or correct them"
            self._problem(end, f"is not later than {start[-1]!r}, {hint}")
        return (start_ms, end_ms) if len(self.problems) == known else None

    # What it is written with.

    def _required(self, mapping: Mapping[str, Value], path: Path, read: _Read[_T]) -> _T | None:
        if path[-1] not in mapping:
            self._problem(path, f"is missing, {_MISSING[str(path[-1])]}")
        return self._optional(mapping, path, read)

    def _optional(self, mapping: Mapping[str, Value], path: Path, read: _Read[_T]) -> _T | None:
        key = str(path[-1])
        if key not in mapping:
            return None
        if mapping[key] is None:
            # To take it for a default could open what its author meant to close.
            hint = _MISSING.get(key, "give it one or leave the key out")
            self._problem(path, f"has no value, {hint}")
            return None
        return read(path, mapping[key])

    def _mapping(
        self, path: Path, value: Value, known: Collection[str] | None
    ) -> dict[str, Value] | None:
        """The mapping at a path, its keys checked where they are `known`."""
        mapping = self._typed(path, value, dict, "a mapping")
        if mapping is not None and known is not None:
            self.problems.extend(self._document.unknown_keys(path, mapping, known))
        return mapping

    def _list(self, path: Path, value: Value) -> list[tuple[int, Value]] | None:
        """The items of the list at a path, numbered."""
        items = self._typed(path, value, list, "a list")
        if items == []:
            hint = _MISSING.get(str(path[-1]), "name at least one")
            self._problem(path, f"is an empty list, {hint}")
        return None if items is None else list(enumerate(items))

    def _words(self, path: Path, value: Value, read: _ReadWord) -> tuple[str, ...] | None:
        """The strings of a list that `read` accepts; each of them once."""
        accepted: list[str] = []
        for number, item in self._list(path, value) or ():
            word = self._text((*path, number), item)
            if word in accepted:
                message = f"{shown(word)} stands in the list twice, take one of them out"
                self._problem((*path, number), message)
            elif word is not None and read((*path, number), word) is not None:
                accepted.append(word)
        return tuple(accepted)

    def _names(self, path: Path, value: Value) -> tuple[str, ...] | None:
        return self._words(path, value, self._text)

    def _field_paths(self, path: Path, value: Value) -> tuple[str, ...] | None:
        return self._words(path, value, self._field_path)

    def _field_path(self, path: Path, value: Value) -> str | None:
        text = self._text(path, value)
        if text is None or "" not in text.split("."):
            return text
        message = f"the path {shown(text)} has an empty name in it, write it like media.caption"
        self._problem(path, message)
        return None

    def _detectors(self, path: Path, value: Value) -> tuple[str, ...] | None:
        return self._words(path, value, partial(self._word_of, "detector", DETECTORS))

    def _word_of(self, what: str, known: Collection[str], path: Path, value: Value) -> str | None:
        word = self._text(path, value)
        if word is None or word in known:
            return word
        self._problem(path, f"unknown {what} {shown(word)}, {nearest(word, known)}")
        return None

    def _text(self, path: Path, value: Value) -> str | None:
        text = self._typed(path, value, str, "a string")
        if text == "":
            self._problem(path, "is an empty string, write what is meant")
        return text or None

    def _flag(self, path: Path, value: Value) -> bool | None:
        if isinstance(value, bool):
            return value
        found = shown(value) if isinstance(value, str) else type_name(value)
        self._problem(path, f"must be true or false, not {found}")
        return None

    def _time(self, path: Path, value: Value) -> int | None:
        if not isinstance(value, str):
            message = f"must be a time such as {_EXAMPLE_TIME}, not {type_name(value)}"
            self._problem(path, message)
            return None
        time_ms = _time_ms(value)
        if time_ms is None:
            self._problem(path, f"{shown(value)} {_no_time(value)}")
        elif _FINER_THAN_A_MILLISECOND.search(value):
            self._problem(path, "is finer than a millisecond, write at most three decimals")
        return time_ms

    def _typed(self, path: Path, value: Value, kind: type[_T], expected: str) -> _T | None:
        if isinstance(value, kind):
            return value
        mend = _MENDS.get((kind, type(value)))
        hint = "" if mend is None else f", {mend}"
        self._problem(path, f"must be {expected}, not {type_name(value)}{hint}")
        return None


_Timelines: TypeAlias = dict[str, list[_Numbered]]
"""For each named jurisdiction (countries, and `*`) its rules in the order of their time."""

_Findings: TypeAlias = dict[tuple[Path, str], set[str]]
"""Where something is wrong, and what, to the jurisdictions for which it is."""


def _timelines(groups: Groups, numbered: list[_Numbered]) -> _Timelines:
    timelines: _Timelines = defaultdict(list)
    for each in sorted(numbered, key=lambda each: each.start):
        for jurisdiction in expanded(each.rule, groups):
            timelines[jurisdiction].append(each)
    # In an order of their own, so that problems come in the same order on every run.
    return dict(sorted(timelines.items()))


def _conflicts(timelines: _Timelines) -> _Findings:
    """Rules that name a jurisdiction at the same time, and rules that lift a prohibition."""
    findings: _Findings = defaultdict(set)
    for jurisdiction, timeline in timelines.items():
        ban = next((each for each in timeline if each.rule.basis is Basis.PROHIBITED), None)
        lasting = timeline[0]  # Of the rules so far, the one that ends last.
        for each in timeline[1:]:
            if each.start < lasting.end:
                message = (
                    f"names {_WHERE} at the same time as the rule of line {lasting.rule.line}, "
                    f"{_shared(each, lasting)}, end one where the other begins or make them one"
                )
                findings[each.path("jurisdictions"), message].add(jurisdiction)
            elif ban and ban.end <= each.start and each.rule.basis is not Basis.PROHIBITED:
                message = (
                    f"lifts the prohibition of line {ban.rule.line} for {_WHERE}, which must stay, "
                    "take this rule out, or let that one be 'suspended' if it may end"
                )
                findings[each.path("basis"), message].add(jurisdiction)
            lasting = max(lasting, each, key=lambda known: known.end)
    return findings


def _gaps(timelines: _Timelines) -> _Findings:
    """The times without a rule, of jurisdictions that have one at other times."""
    findings: _Findings = defaultdict(set)
    for jurisdiction, timeline in timelines.items():
        for before, after in pairwise((None, *timeline, None)):
            start_ms = before.rule.until_ms if before else None
            end_ms = after.rule.from_ms if after else None
            if start_ms != end_ms:
                message = (
                    f"no rule is in force for {_WHERE}{_stretch(start_ms, end_ms)}, "
                    "add one, which is 'suspended' if nothing may be used"
                )
                findings[_edge(before, after), message].add(jurisdiction)
    return findings


def _edge(before: _Numbered | None, after: _Numbered | None) -> Path:
    """The key that bounds a gap: where the next rule begins, or else where the last one ends."""
    if after is not None:
        return after.path("from")
    assert before is not None, "a timeline has a rule"
    return before.path("until")


def _shared(one: _Numbered, other: _Numbered) -> str:
    """When both rules are in force, for two of which one begins before the other ends."""
    starts = [each.rule.from_ms for each in (one, other) if each.rule.from_ms is not None]
    ends = [each.rule.until_ms for each in (one, other) if each.rule.until_ms is not None]
    return _stretch(max(starts, default=None), min(ends, default=None)).strip() or "at all times"


def _stretch(start_ms: int | None, end_ms: int | None) -> str:
    start = "" if start_ms is None else f" from {short_utc_text(start_ms)}"
    end = "" if end_ms is None else f" until {short_utc_text(end_ms)}"
    return start + end


def _summary(jurisdictions: Collection[str], groups: Groups) -> str:
    """The jurisdictions in few words: whole groups by their names, and not more than five."""
    names = in_few_words(jurisdictions, groups)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _nearest_jurisdiction(word: str, groups: Groups) -> str:
    """A hint for a word that is no country, nor one of the `groups` that could stand there.

    No country is guessed from some of its letters: `AUT`, for Austria, is not nearly Australia.
    """
    code = re.sub("[^A-Z]", "", word.upper())
    code = _MISTAKEN.get(code, code)
    if code in COUNTRIES:
        return f"did you mean {code!r}?"
    near = did_you_mean(word, groups)
    if near is None and code in _UNIONS:
        return "write out its members, or make it a group under 'groups'"
    return near or "countries go by the two letters that ISO 3166-1 gives them, such as GB"


def _usable_name(name: str) -> str:
    near = re.sub("[^a-z0-9._]+", "-", name.lower()).strip("-._")
    hint = "use lower-case letters, digits, '.', '_' and '-'"
    return f"{hint}, such as {near!r}" if near else hint


def _time_ms(text: str) -> int | None:
    """Epoch milliseconds of a time with a zone; None for anything else."""
    try:
        time_ms = epoch_ms(text)
        utc_text(time_ms)  # Some zones carry the first and the last year beyond the calendar.
    except (ValueError, OverflowError):
        return None
    return time_ms


def _no_time(text: str) -> str:
    """Why a text is no time, and what may be meant."""
    if _LIKE_A_TIME.fullmatch(text):
        return "is not in the calendar, correct the day or the time"
    for near in (f"{text}T00:00:00Z", f"{text.replace(' ', 'T')}Z"):
        if _time_ms(near) is not None:
            return f"is not a time with a zone, write {near} if you mean UTC"
    return f"is not a time with a zone, write it like {_EXAMPLE_TIME}"
