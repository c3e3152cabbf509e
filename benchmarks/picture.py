"""The picture of a run, as SVG: a bar of events/s for each contender, with its CPU an event."""

from html import escape
from pathlib import Path
from typing import NamedTuple

_WIDTH, _LEFT, _ROW, _TOP, _BAR = 890, 410, 42, 66, 22
_LONGEST = 330
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


def write_picture(path: Path, bars: list[Bar], note: str) -> None:
    """Write the bars, the longest first, with a note on machine and date below."""
    bars = sorted(bars, key=lambda bar: -bar.events_per_second)
    height = _TOP + _ROW * len(bars) + 24
    rows = "\n".join(_row(bar, number, bars[0]) for number, bar in enumerate(bars))
    described = "; ".join(f"{bar.title}: {bar.events_per_second:,.0f}" for bar in bars)
    path.write_text(
        f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"
     aria-labelledby="title desc" font-size="14" font-family="{_FONTS}">
  <title id="title">{_TITLE}</title>
  <desc id="desc">{escape(described)}</desc>
  <!-- Made by `make bench`; do not edit. -->
  <style>
{_STYLE}
  </style>
  <rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>
  <text class="text" x="14" y="26" font-size="17" font-weight="600">{_TITLE}</text>
  <text class="soft" x="14" y="46">with CPU an event; dashed: decides nothing</text>
{rows}
  <text class="soft" x="14" y="{height - 10}">{escape(note)}</text>
</svg>
""",
        encoding="utf-8",
    )


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
