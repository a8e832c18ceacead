"""The drawing beside a table: one panel a comparison, a line for each seed from baseline to method, means, and the interval of the paired difference."""

import io
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.render import Row, is_share, shown, unit
from distill_system.tracking.pictures import ALARM, FAINT, INK, MUTED, SERIES, new_figure, png, style

COLUMNS = 3
COLOURS = {"BEATS": SERIES[2], "NOT": ALARM}


def draw(rows: Sequence[Row]) -> bytes:
    """A PNG of the comparisons that have results; the interval is drawn around the method's mean, so that it beats where it is clear of the dashed line."""
    setups: dict[str, list[Row]] = {}
    for row in rows:
        if row.found:
            setups.setdefault(row.setup, []).append(row)
    assert setups, "nothing to draw"
    columns = min(COLUMNS, max(len(own) for own in setups.values()))
    lines = sum(math.ceil(len(own) / columns) for own in setups.values())
    with style():
        figure = new_figure(2.9 * columns, 2.6 * lines)
        place = 0
        for own in setups.values():
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
