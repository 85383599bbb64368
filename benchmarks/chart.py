"""A bar chart of wall times in SVG, with a group of bars for each scenario."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.samples import IDEAL, Outcome

_WIDTH, _LEFT, _RIGHT = 860, 110, 150  # pixels
_BAR, _GAP, _HEADING = 16, 5, 30
_OURS, _OTHERS, _IDEAL, _WRONG = "#2266aa", "#b8bec8", "#7fb069", "#d98880"
_MIRROR = "mirror"


def svg(outcomes: Sequence[Outcome]) -> str:
    """Return the content of the SVG file. The bars of each scenario have their own scale."""
    parts, y = [], 10
    for outcome in outcomes:
        lines = list(_group(outcome, y))
        parts += lines
        y += _HEADING + len(outcome.tools) * (_BAR + _GAP) + 14
    legend = (
        f'<text x="{_LEFT}" y="{y + 6}" fill="#666">Bars: median wall time. Thin lines: minimum to maximum. '
        "Green: an ideal replay that checks nothing. Red: the targets were not equal, or the tool failed.</text>"
    )
    body = "\n".join([*parts, legend])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 20}" '
        f'viewBox="0 0 {_WIDTH} {y + 20}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _group(outcome: Outcome, top: int) -> Iterator[str]:
    """Yield the SVG elements of one scenario, which begins `top` pixels from the top."""
    yield f'<text x="10" y="{top + 14}" font-weight="bold" fill="#222">{escape(outcome.heading)}</text>'
    walls = {tool: outcome.wall(tool) for tool in outcome.tools}
    scale = (_WIDTH - _LEFT - _RIGHT) / max(spread.high for spread in walls.values())
    y = top + _HEADING - 6
    for tool, wall in sorted(walls.items(), key=lambda item: item[1].median):
        middle, text = y + _BAR / 2, y + _BAR - 4
        yield f'<text x="{_LEFT - 8}" y="{text}" text-anchor="end" fill="#222">{escape(tool)}</text>'
        length = wall.median * scale
        yield f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{_colour(outcome, tool)}"/>'
        low, high = (_LEFT + edge * scale for edge in (wall.low, wall.high))
        yield f'<path d="M{low:.1f} {middle} H{high:.1f}" stroke="#444" stroke-width="1"/>'
        yield f'<text x="{high + 8:.1f}" y="{text}" fill="#222">{_label(outcome, tool)}</text>'
        y += _BAR + _GAP


def _colour(outcome: Outcome, tool: str) -> str:
    """Return the colour of the bar of a tool."""
    if not outcome.correct(tool):
        return _WRONG
    return {_MIRROR: _OURS, IDEAL: _IDEAL}.get(tool, _OTHERS)


def _label(outcome: Outcome, tool: str) -> str:
    """Return the text beside the bar of a tool: its median wall time, and the ratio if the tool is `mirror`."""
    ratio = outcome.ratio(tool) if tool == _MIRROR else None
    best = "" if ratio is None else f" ({ratio:.2f} × best other)"
    return f"{outcome.wall(tool).median:.2f} s{best}"
