"""Which basis holds where and when: a policy as courses through time, to be printed or drawn."""

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TypeAlias

from consentgate.core.countries import COUNTRIES
from consentgate.core.policy import EVERYWHERE_ELSE, Policy, Rule, expanded, in_few_words


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which the same holds throughout; times are epoch milliseconds."""

    from_ms: int | None
    """It begins here (included); None: ever since."""
    until_ms: int | None
    """It ends before this; None: for ever."""
    rule: Rule | None
    """Basis and conditions, without places, times and line; None where no rule is in force."""
    lines: tuple[int, ...]
    """Where the policy file says so, sorted."""

    def holds(self, now_ms: int) -> bool:
        """Whether `now_ms`, epoch milliseconds, is in the stretch."""
        started = self.from_ms is None or self.from_ms <= now_ms
        return started and (self.until_ms is None or now_ms < self.until_ms)


@dataclass(frozen=True, slots=True)
class Course:
    """The countries for which the same holds at every time, and what that is."""

    labels: tuple[str, ...]
    """Whole groups by their names, then countries, then `*`."""
    countries: frozenset[str]
    """All of them; those that no rule ever names too, where `*` is a label."""
    stretches: tuple[Stretch, ...]
    """From the beginning to the end of time without a gap, each unlike the one before."""

    def at(self, now_ms: int) -> Stretch:
        """The stretch that holds at `now_ms`, epoch milliseconds."""
        return next(stretch for stretch in self.stretches if stretch.holds(now_ms))


_Meaning: TypeAlias = tuple[tuple[int | None, int | None, Rule | None], ...]


def courses(policy: Policy) -> tuple[Course, ...]:
    """The courses of a policy, in the order in which its rules first name somebody of them.

    Countries that no rule names are the course of `*`, also where there is no rule for `*`.
    """
    rules: dict[str, list[Rule]] = {}
    for rule in policy.rules:
        for jurisdiction in expanded(rule, policy.groups):
            rules.setdefault(jurisdiction, []).append(rule)
    unnamed = COUNTRIES - rules.keys()
    everywhere_else = rules.pop(EVERYWHERE_ELSE, None)
    if unnamed or everywhere_else:
        rules[EVERYWHERE_ELSE] = everywhere_else or []
    alike: dict[_Meaning, dict[str, tuple[Stretch, ...]]] = defaultdict(dict)
    for jurisdiction, own in rules.items():
        stretches = _stretches(own)
        alike[tuple((s.from_ms, s.until_ms, s.rule) for s in stretches)][jurisdiction] = stretches
    return tuple(_course(policy, members, unnamed) for members in alike.values())


def boundaries_ms(found: tuple[Course, ...]) -> list[int]:
    """The moments, epoch milliseconds, at which something changes somewhere; sorted."""
    times = {stretch.from_ms for course in found for stretch in course.stretches}
    return sorted(time for time in times if time is not None)


def _course(
    policy: Policy, members: dict[str, tuple[Stretch, ...]], unnamed: frozenset[str]
) -> Course:
    named = members.keys() - {EVERYWHERE_ELSE}
    has_the_rest = EVERYWHERE_ELSE in members
    return Course(
        labels=(
            *in_few_words(named, policy.groups),
            *([EVERYWHERE_ELSE] if has_the_rest else []),
        ),
        countries=frozenset(named | unnamed if has_the_rest else named),
        stretches=tuple(
            replace(same[0], lines=_lines(same)) for same in zip(*members.values(), strict=True)
        ),
    )


def _stretches(rules: list[Rule]) -> tuple[Stretch, ...]:
    """The stretches of one jurisdiction, by its rules."""
    times = {time for rule in rules for time in (rule.from_ms, rule.until_ms)}
    bounds = [None, *sorted(time for time in times if time is not None), None]
    found: list[Stretch] = []
    for start_ms, end_ms in pairwise(bounds):
        stretch = _stretch(rules, start_ms, end_ms)
        if found and found[-1].rule == stretch.rule:
            last = found.pop()
            stretch = replace(stretch, from_ms=last.from_ms, lines=_lines((last, stretch)))
        found.append(stretch)
    return tuple(found)


def _stretch(rules: list[Rule], start_ms: int | None, end_ms: int | None) -> Stretch:
    """What holds between two moments at which the rules may change."""
    for rule in rules:
        begun = rule.from_ms is None or (start_ms is not None and rule.from_ms <= start_ms)
        lasts = rule.until_ms is None or (end_ms is not None and end_ms <= rule.until_ms)
        if begun and lasts:
            meaning = replace(rule, jurisdictions=(), from_ms=None, until_ms=None, line=0)
            return Stretch(start_ms, end_ms, meaning, (rule.line,))
    return Stretch(start_ms, end_ms, None, ())


def _lines(stretches: tuple[Stretch, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(chain.from_iterable(stretch.lines for stretch in stretches))))
