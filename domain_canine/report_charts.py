"""Charts as inline SVG: text and lines take their colours from the page, in light and dark."""

import math
from html import escape

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 40
POINTS = 400  # of a line; more of them are drawn as means of neighbours


def line_chart(
    label: str, series: dict[str, list[tuple[float, float]]], log: bool = False, marks: dict[float, str] | None = None
) -> str:
    """Lines over steps.

    Args:
        label: of the y axis, with its unit.
        series: (step, value) by what they are: training and validation.
        log: a logarithmic y axis.
        marks: steps and what happened there.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points if y > 0 or not log]
    if not ys:
        return ""
    at_x = _scale(min(0, *xs), max(xs) or 1, LEFT, WIDTH - RIGHT)
    x_ticks = ticks(0, max(xs) or 1, 5)
    if log:
        y_ticks = _log_ticks(min(ys), max(ys))
        at_log = _scale(math.log(y_ticks[0]), math.log(y_ticks[-1]), HEIGHT - BOTTOM, TOP)

        def at_y(value):
            return at_log(math.log(value))
    else:
        # Of what is far from zero the differences are the message.
        low = min(ys) if min(ys) > 0.4 * max(ys) else min(0, *ys)
        y_ticks = ticks(low, max(ys), 5, around=True)
        at_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_axes(x_ticks, y_ticks, at_x, at_y, "step", label)]
    for step, what in (marks or {}).items():
        x = at_x(step)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(f'<text x="{x + shift:.1f}" y="{TOP + 9}" text-anchor="{anchor}">{escape(what)}</text>')
    for name, points in series.items():
        points = _thinned([(x, y) for x, y in points if y > 0 or not log])
        where = [(at_x(x), at_y(y)) for x, y in points]
        parts.append(f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in where)}"/>')
        if name == "validation" or len(points) == 1:
            for (x, y), (step, value) in zip(where, points):
                told = f"<title>{name}, step {step:,.0f}: {value:.4g}</title>"
                parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3">{told}</circle>')
    return _svg(parts, f"{label} over steps")


def bar_chart(label: str, across: str, bars: list[tuple[str, float, bool, str]]) -> str:
    """Shares, from 0 to 1, as bars.

    Args:
        label, across: of the axes.
        bars: what a bar is of, its height, whether it is of few, and what is told of it.
    """
    y_ticks = [0, 0.25, 0.5, 0.75, 1]
    at_y = _scale(0, 1, HEIGHT - BOTTOM, TOP)
    wide = (WIDTH - LEFT - RIGHT) / max(len(bars), 1)
    every = max(1, math.ceil(24 / wide))
    parts = [_axes([], y_ticks, None, at_y, across, label, percent=True)]
    for index, (name, value, few, told) in enumerate(bars):
        x = LEFT + wide * index
        y = at_y(value)
        parts.append(
            f'<rect class="bar{" few" * few}" x="{x + wide * 0.1:.1f}" y="{y:.1f}" width="{wide * 0.8:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}"><title>{escape(told)}</title></rect>'
        )
        if index % every == 0:
            parts.append(
                f'<text x="{x + wide / 2:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{escape(name)}</text>'
            )
    return _svg(parts, f"{label} by {across}")


def ticks(low: float, high: float, count: int, around: bool = False) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high``; or around them, those beyond included."""
    span = (high - low) or abs(high) or 1
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    first, last = (math.floor(low / step), math.ceil(high / step)) if around else (math.ceil(low / step), high // step)
    return [step * index for index in range(int(first), max(int(last), int(first) + around) + 1)]


def _log_ticks(low, high):
    """1, 2, 5, 10, ... around the values; of many decades the powers of ten."""
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    found = [factor * 10.0**power for power in powers for factor in steps]
    first = max(index for index, value in enumerate(found) if value <= low)
    last = min(index for index, value in enumerate(found) if value >= high)
    return found[first : max(last, first + 1) + 1]


def _scale(low, high, start, end):
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)


def _thinned(points):
    size = math.ceil(len(points) / POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each)) for each in chunks]


def _axes(x_ticks, y_ticks, at_x, at_y, across, label, percent=False):
    parts, tiny = [], 0 < max(y_ticks) < 1e-3
    for value in y_ticks:
        y = at_y(value)
        told = f"{value:.0%}" if percent else f"{value:.1e}".replace(".0e", "e") if tiny and value else short(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{told}</text>')
    for value in x_ticks:
        x = at_x(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="0" y="13">{escape(label)}</text>')
    return "".join(parts)


def short(value: float) -> str:
    """An axis' number in few characters: 20k, 1.5M, 0.0002."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.6g}"


def _svg(parts, told):
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
