"""The drawing beside a table: one panel a comparison, a line for each seed from baseline to method, means, and the interval of the paired difference.

A set-up with a curve gets it above its panels: figures over a number, each with the interval of its difference to the first arm."""

import io
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.render import Curve, Row, is_share, shown, unit
from distill_system.tracking.pictures import ALARM, FAINT, INK, MUTED, SERIES, new_figure, png, style

COLUMNS = 3
COLOURS = {"BEATS": SERIES[2], "NOT": ALARM}


def draw(rows: Sequence[Row], curves: Sequence[Curve] = ()) -> bytes:
    """A PNG of the comparisons that have results; the interval is drawn around the method's mean, so that it beats where it is clear of the dashed line."""
    setups: dict[str, list[Row]] = {}
    for row in rows:
        if row.found:
            setups.setdefault(row.setup, []).append(row)
    assert setups, "nothing to draw"
    columns = min(COLUMNS, max(len(own) for own in setups.values()))
    curve_of = {curve.setup: curve for curve in curves if curve.setup in setups}
    lines = sum(math.ceil(len(own) / columns) for own in setups.values()) + len(curve_of)
    with style():
        figure = new_figure(2.9 * columns, 2.6 * lines)
        place = 0
        for setup, own in setups.items():
            if setup in curve_of:
                _curve(
                    figure.add_subplot(lines, columns, (place + 1, place + columns)),
                    curve_of[setup],
                    named=len(setups) > 1,
                )
                place += columns
            for at, row in enumerate(own):
                _panel(figure.add_subplot(lines, columns, place + at + 1), row, named=len(setups) > 1)
            place += columns * math.ceil(len(own) / columns)  # each set-up begins a line
        return fewer_colours(png(figure))


def fewer_colours(data: bytes) -> bytes:
    """The same picture at a third of its size: the repository keeps it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(32).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _curve(axes: Any, curve: Curve, *, named: bool) -> None:
    scale = 100 if is_share(curve.metric) else 1
    xs = [x for x, _, _ in curve.points]
    for line in curve.seeds:
        axes.plot(xs, [value * scale for value in line], color=MUTED, alpha=0.35, linewidth=1)
    axes.axhline(curve.points[0][1] * scale, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.plot(
        xs, [mean * scale for _, mean, _ in curve.points], color=SERIES[0], linewidth=1.6, marker="D", markersize=5
    )
    for x, mean, difference in curve.points:
        if difference is not None and math.isfinite(difference.low):
            half = (difference.high - difference.low) / 2 * scale
            axes.errorbar([x], [mean * scale], yerr=[half], color=SERIES[0], linewidth=2, capsize=4)
    axes.set_xlabel(curve.axis, fontsize=9)
    axes.set_ylabel(f"{curve.metric.replace('_', ' ')}{', %' if is_share(curve.metric) else ''}", fontsize=9)
    axes.set_title(
        curve.title if named else "means, seeds, and 95 % intervals of the difference to the first",
        fontsize=9,
        loc="left",
    )


def _panel(axes: Any, row: Row, *, named: bool) -> None:
    found, metric = row.found, row.metric
    assert found is not None
    scale, sign = 100 if is_share(metric) else 1, 1 if row.higher_is_better else -1
    for before, after in row.pairs:
        axes.plot(
            [0, 1], [before * scale, after * scale], color=MUTED, alpha=0.45, linewidth=1, marker="o", markersize=3
        )
    colour = COLOURS.get(row.verdict, INK)
    start, end = found.baseline * scale, found.method * scale
    axes.axhline(start, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    least = row.minimal_effect * scale * sign
    axes.axhspan(min(start, start + least), max(start, start + least), color=FAINT, alpha=0.6, linewidth=0)
    axes.plot([0], [start], color=INK, marker="D", markersize=6)
    if math.isfinite(found.low):
        half = (found.high - found.low) / 2 * scale
        axes.errorbar([1.12], [end], yerr=[half], color=colour, linewidth=2, capsize=4)
    axes.plot([1.12], [end], color=colour, marker="D", markersize=6)
    axes.set_xlim(-0.25, 1.4)
    axes.set_xticks([0, 1], ["baseline", "method"])
    axes.set_ylabel(f"{metric.replace('_', ' ')}{', %' if is_share(metric) else ''}", fontsize=9)
    title = f"{row.setup.replace('_', ' ')}: {row.name}" if named else row.name
    judged = f"{shown(found.difference, metric, signed=True)}{unit(metric)}: {row.verdict}"
    axes.set_title(f"{_folded(title)}\n{judged}", fontsize=9, color=colour, loc="left")


def _folded(text: str, width: int = 36) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:2])
