"""The pictures of a run, as SVG.

A bar of events/s for each contender, with its CPU an event; or a panel for each factor, with what
an event costs at each of its values.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

_WIDTH, _LEFT, _ROW, _TOP, _BAR = 890, 410, 42, 66, 22
_LONGEST = 330
_ACROSS, _PANEL_WIDTH, _PANEL_HEIGHT, _PANEL_BASE, _HIGHEST = 3, 289, 176, 140, 100
_TITLE = "Events a second, side by side"
_FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
# It brings its own background, so that it can be read on a light page and on a dark one.
_STYLE = """\
    .page { fill: #f6f8fa; stroke: #c3ccd4 }
    .text { fill: #24303c }
    .soft { fill: #5c6873; font-size: 11.5px }
    .ours { fill: #2f7d4f }
    .peer { fill: #8aa0b4 }
    .bare { fill: none; stroke: #8aa0b4; stroke-width: 1.5; stroke-dasharray: 4 3 }"""


class Bar(NamedTuple):
    """One contender; `style` is `ours`, `peer`, or `bare` for one that does not decide."""

    title: str
    note: str
    events_per_second: float
    cpu_us_per_event: float
    style: str


class Column(NamedTuple):
    """One value of a factor."""

    label: str
    cpu_us_per_event: float
    is_base: bool


class Panel(NamedTuple):
    """A factor, with what an event costs at each of its values."""

    title: str
    columns: list[Column]


def write_picture(path: Path, bars: list[Bar], note: str) -> None:
    """Write the bars, the longest first, with a note on machine and date below."""
    bars = sorted(bars, key=lambda bar: -bar.events_per_second)
    rows = "\n".join(_row(bar, number, bars[0]) for number, bar in enumerate(bars))
    page = _Page(
        title=_TITLE,
        subtitle="with CPU an event; dashed: decides nothing",
        described="; ".join(f"{bar.title}: {bar.events_per_second:,.0f}" for bar in bars),
        made_by="make bench",
        height=_TOP + _ROW * len(bars) + 24,
        note=note,
    )
    page.write(path, rows)


def write_panels(path: Path, panels: list[Panel], note: str) -> None:
    """Write the panels, three side by side, each with a scale of its own that begins at 0."""
    described = (
        f"{panel.title}: "
        + ", ".join(f"{of.label}: {of.cpu_us_per_event:.1f} µs" for of in panel.columns)
        for panel in panels
    )
    page = _Page(
        title="CPU of the workers an event, as one factor grows",
        subtitle="µs, each panel on a scale of its own; green: the base case",
        described="; ".join(described),
        made_by="make scaling",
        height=_TOP + -(-len(panels) // _ACROSS) * _PANEL_HEIGHT + 24,
        note=note,
    )
    page.write(path, "\n".join(_panel(panel, number) for number, panel in enumerate(panels)))


class _Page(NamedTuple):
    title: str
    subtitle: str
    described: str
    made_by: str
    height: int
    note: str

    def write(self, path: Path, body: str) -> None:
        path.write_text(
            f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self.height}" role="img"
     aria-labelledby="title desc" font-size="14" font-family="{_FONTS}">
  <title id="title">{self.title}</title>
  <desc id="desc">{escape(self.described)}</desc>
  <!-- Made by `{self.made_by}`; do not edit. -->
  <style>
{_STYLE}
  </style>
  <rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{self.height - 1}" rx="8"/>
  <text class="text" x="14" y="26" font-size="17" font-weight="600">{self.title}</text>
  <text class="soft" x="14" y="46">{self.subtitle}</text>
{body}
  <text class="soft" x="14" y="{self.height - 10}">{escape(self.note)}</text>
</svg>
""",
            encoding="utf-8",
        )


def _panel(panel: Panel, number: int) -> str:
    left = 14 + number % _ACROSS * _PANEL_WIDTH
    top = _TOP + number // _ACROSS * _PANEL_HEIGHT
    dearest = max((column.cpu_us_per_event for column in panel.columns), default=1)
    step = (_PANEL_WIDTH - 24) / max(1, len(panel.columns))
    drawn = "\n".join(
        _column(column, left + step * n, step, top + _PANEL_BASE, dearest)
        for n, column in enumerate(panel.columns)
    )
    return f"""\
  <g text-anchor="middle">
    <text class="text" x="{left}" y="{top + 14}" text-anchor="start" font-weight="600">\
{escape(panel.title)}</text>
{drawn}
  </g>"""


def _column(column: Column, left: float, step: float, base: int, dearest: float) -> str:
    height = max(2, column.cpu_us_per_event / dearest * _HIGHEST)
    middle = left + step / 2
    style = "ours" if column.is_base else "peer"
    return f"""\
    <rect class="{style}" x="{middle - step * 0.35:.1f}" y="{base - height:.1f}" \
width="{step * 0.7:.1f}" height="{height:.1f}" rx="3"/>
    <text class="text" x="{middle:.1f}" y="{base - height - 6:.1f}" font-size="12">\
{column.cpu_us_per_event:.1f}</text>
    <text class="soft" x="{middle:.1f}" y="{base + 16}">{escape(column.label)}</text>"""


def _row(bar: Bar, number: int, longest: Bar) -> str:
    y = _TOP + number * _ROW
    length = max(2, bar.events_per_second / longest.events_per_second * _LONGEST)
    weight = ' font-weight="600"' if bar.style == "ours" else ""
    figures = f"{bar.events_per_second:,.0f} · {bar.cpu_us_per_event:.1f} µs"
    return f"""\
  <g{weight}>
    <text class="text" x="{_LEFT - 12}" y="{y + 11}" text-anchor="end">{escape(bar.title)}</text>
    <text class="soft" x="{_LEFT - 12}" y="{y + 26}" text-anchor="end" font-weight="400">\
{escape(bar.note)}</text>
    <rect class="{bar.style}" x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="3"/>
    <text class="text" x="{_LEFT + length + 8:.1f}" y="{y + 16}">{figures}</text>
  </g>"""
