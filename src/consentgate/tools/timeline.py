"""A policy's course through time as people read it, and as JSON."""

from collections.abc import Callable
from typing import Any, TypeAlias

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from consentgate.core.policy import (
    EVERYWHERE_ELSE,
    Basis,
    Policy,
    Rule,
    conditions,
    short_utc_text,
    utc_text,
)
from consentgate.core.timeline import Course, Stretch, boundaries_ms, courses

_LABEL_CHARACTERS_MAX = 24
_STYLES = {
    Basis.OPT_IN: "green",
    Basis.OPT_OUT: "yellow",
    Basis.SUSPENDED: "red",
    Basis.PROHIBITED: "bold red",
}
_NO_RULE = "no rule"
_NO_RULE_STYLE = "magenta"

_Words: TypeAlias = Callable[[str], str]
# How a condition is told, by its key in the policy file.
_IN_WORDS: dict[str, _Words] = {
    "adults_only": lambda _: "adults only",
    "pseudonymize": lambda _: "pseudonymized",
    "visibility": lambda words: f"visibility: {words}",
    "kinds": lambda words: f"kinds: {words}",
    "fields": lambda words: f"fields: {words}",
    "redact": lambda words: f"redacted: {words}",
    "created_from": lambda time: f"created from {_in_short(time)}",
    "created_until": lambda time: f"created before {_in_short(time)}",
}


def timeline_json(
    policy: Policy, at_ms: int | None = None, why_unknown: str | None = None
) -> dict[str, Any]:
    """The courses of a policy, ready for JSON; only what holds at `at_ms`, where it is given.

    `why_unknown` says why the hash that the ledger shows is not known, where it is not.
    """
    return {
        "policy": policy.full_reference if why_unknown is None else None,
        "hash_unknown": why_unknown,
        "purpose": policy.purpose,
        "at": _time_json(at_ms),
        "courses": [
            {
                "jurisdictions": course.labels,
                "countries": sorted(course.countries),
                "stretches": [_stretch_json(each) for each in _shown(course, at_ms)],
            }
            for course in courses(policy)
        ],
    }


def timeline_text(
    policy: Policy, at_ms: int | None = None, why_unknown: str | None = None
) -> RenderableType:
    """The courses of a policy for a terminal; only what holds at `at_ms`, where it is given.

    `why_unknown` says why the hash that the ledger shows is not known, where it is not.
    """
    found = courses(policy)
    when = "" if at_ms is None else f" at {short_utc_text(at_ms)}"
    name = policy.reference if why_unknown is None else policy.name
    title = f"{name} for {policy.purpose}{when}; times are in UTC"
    parts: list[RenderableType] = [Text(title, "bold"), ""]
    if why_unknown is not None:
        parts[1:1] = [hash_unknown_text(why_unknown)]
    if at_ms is None and boundaries_ms(found):
        parts.append(_Bars(found))
    return Group(*parts, _table(found, at_ms))


def hash_unknown_text(why_unknown: str) -> str:
    """A line that says why there is no hash."""
    return f"its hash in the ledger is not known without the right -c: {why_unknown}"


class _Bars:
    """A bar for each course, from left to right in the order of time, though not to its scale."""

    def __init__(self, found: tuple[Course, ...]) -> None:
        self._courses = found
        self._bounds: list[int | None] = [None, *boundaries_ms(found)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line, dots = ("-", "...") if options.ascii_only else ("─", "…")
        labels = [_cut(_places(course), _LABEL_CHARACTERS_MAX, dots) for course in self._courses]
        label_width = max(map(len, labels)) + 2
        heads = ["" if bound is None else _short(bound) for bound in self._bounds]
        width = min((options.max_width - label_width) // len(heads), 26)
        if width <= max(map(len, heads)):
            return  # The table says it all, too.
        yield Text(" " * label_width + "".join(head.ljust(width) for head in heads), "dim")
        for label, course in zip(labels, self._courses, strict=True):
            bar = Text(label.ljust(label_width))
            for stretch in course.stretches:
                columns = self._place(stretch.until_ms) - self._bounds.index(stretch.from_ms)
                name = _cut(f"{_basis(stretch.rule)} ", columns * width - 1, dots)
                bar.append(name.ljust(columns * width - 1, line) + " ", _style(stretch.rule))
            yield bar
        yield ""

    def _place(self, until_ms: int | None) -> int:
        return len(self._bounds) if until_ms is None else self._bounds.index(until_ms)


def _table(found: tuple[Course, ...], at_ms: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("where", "when", "basis", "if", "line"):
        table.add_column(head, justify="right" if head == "line" else "left", overflow="fold")
    for course in found:
        for number, stretch in enumerate(_shown(course, at_ms)):
            table.add_row(
                "" if number else _places(course),
                _when(stretch),
                Text(_basis(stretch.rule), _style(stretch.rule)),
                "" if stretch.rule is None else "\n".join(_conditions(stretch.rule)),
                ", ".join(map(str, stretch.lines)),
            )
    return table


def _shown(course: Course, at_ms: int | None) -> tuple[Stretch, ...]:
    return course.stretches if at_ms is None else (course.at(at_ms),)


def _places(course: Course) -> str:
    return ", ".join(
        "everywhere else" if label == EVERYWHERE_ELSE else label for label in course.labels
    )


def _when(stretch: Stretch) -> str:
    start = None if stretch.from_ms is None else _short(stretch.from_ms)
    end = None if stretch.until_ms is None else _short(stretch.until_ms)
    if start is None:
        return "always" if end is None else f"until {end}"
    return f"from {start}" if end is None else f"{start} to {end}"


def _short(time_ms: int) -> str:
    return _in_short(utc_text(time_ms))


def _in_short(time: str) -> str:
    """A day alone for its midnight, and no zeros that say nothing."""
    return (
        time.replace(".000Z", "Z").removesuffix("T00:00:00Z").replace("T", " ").replace(":00Z", "")
    )


def _basis(rule: Rule | None) -> str:
    return _NO_RULE if rule is None else str(rule.basis)


def _style(rule: Rule | None) -> str:
    return _NO_RULE_STYLE if rule is None else _STYLES[rule.basis]


def _conditions(rule: Rule) -> list[str]:
    return [
        _IN_WORDS[key](", ".join(asked) if isinstance(asked, list) else str(asked))
        for key, asked in conditions(rule).items()
    ]


def _cut(text: str, characters_max: int, dots: str) -> str:
    if len(text) <= characters_max:
        return text
    return text[: characters_max - len(dots)] + dots


def _stretch_json(stretch: Stretch) -> dict[str, Any]:
    rule = stretch.rule
    return {
        "from": _time_json(stretch.from_ms),
        "until": _time_json(stretch.until_ms),
        "basis": None if rule is None else rule.basis,
        "conditions": {} if rule is None else conditions(rule),
        "lines": stretch.lines,
    }


def _time_json(time_ms: int | None) -> str | None:
    return None if time_ms is None else utc_text(time_ms)
