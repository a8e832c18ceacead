"""The drawing of what a packed file's bytes are spent on, beside the file that it was made from."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill_system.tracking.figures import megabytes, percent
from distill_system.tracking.pictures import INK, MUTED, SERIES, new_figure
from distill_system.tracking.plots import LETTER, shorten


def stacked(bars: Sequence[tuple[str, int]], parts: Mapping[str, int]) -> Any:
    """Above, a bar a file; below, the last file alone, in its parts.

    Args:
        bars: (name, bytes), the packed file last.
        parts: bytes of the packed file, by what they are spent on.
    """
    figure = new_figure(height=2.5)
    above, below = figure.subplots(2, 1, height_ratios=[len(bars), 1.9])
    longest = max(size for _, size in bars)
    for at, (_, size) in enumerate(bars):
        packed = at == len(bars) - 1
        above.barh([at], [size], color=SERIES[0] if packed else MUTED, alpha=0.8 if packed else 0.5, height=0.62)
        against = f" ({percent(size / bars[0][1])})" if packed and at else ""
        inside = size / longest > 0.7
        above.annotate(
            f"{megabytes(size)}{against}", (size, at), xytext=(-5 if inside else 5, 0), textcoords="offset points",
            va="center", ha="right" if inside else "left", color=INK,
        )  # fmt: skip
    above.set_yticks(range(len(bars)), [shorten(name, 12) for name, _ in bars])
    above.set_ylim(len(bars) - 0.5, -0.5)
    above.set_xlim(0, longest)
    _bare(above)

    whole = sum(parts.values())
    start = 0.0
    for number, (name, size) in enumerate(parts.items()):
        share = size / whole
        colour = SERIES[number % len(SERIES)]
        below.barh([0], [share], left=[start], color=colour, alpha=0.8, height=0.5, label=f"{name} {percent(share)}")
        if share > 2 * LETTER * len(megabytes(size)):
            below.annotate(megabytes(size), (start + share / 2, 0), ha="center", va="center_baseline", fontsize=8.8)
        start += share
    below.set_xlim(0, 1)
    below.set_ylim(-0.3, 0.3)
    below.set_yticks([])
    _bare(below)
    below.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0.05),
        ncols=2,
        frameon=False,
        fontsize=8.8,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
        borderaxespad=0,
    )
    return figure


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
