"""The drawings of a chain of phases: its way through quality and bytes, and how fast the models at its stations are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_system.tracking.figures import short_number
from distill_system.tracking.pictures import FAINT, INK, MUTED, SERIES, new_figure
from distill_system.tracking.plots import LETTER, shorten, shorten_all, tick_words

LINE = 0.066  # a line's height, as a share of a figure's axes
# Where a name may stand beside its point: (shares of its width and of a line's height from the point to the name's middle), the best first.
PLACES = ((0, 1.1), (0, -1.1), (0.62, 0.5), (-0.62, 0.5), (0.62, -0.5), (-0.62, -0.5), (0, 2.1), (0, -2.1), (0.62, 1.6), (-0.62, 1.6))  # fmt: skip
Box = tuple[float, float, float, float]  # left, right, bottom, top, as shares of the axes


@dataclass(frozen=True)
class Stop:
    """A model on the way."""

    name: str
    bytes: float
    value: float
    packed: bool = False


def path(stops: Sequence[Stop], label: str) -> Any:
    """Quality over bytes (a logarithm, falling to the right), with an arrow from each stop to the next; packed files are squares."""
    from matplotlib import ticker

    figure = new_figure(height=3.3)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for stop in stops:
        axes.plot([stop.bytes], [stop.value], "s" if stop.packed else "o", color=SERIES[0], markersize=6, zorder=4)
    sizes, values = [stop.bytes for stop in stops], [stop.value for stop in stops]
    ratio = max(2.0, max(sizes) / min(sizes))
    axes.set_xlim(max(sizes) * ratio**0.13, min(sizes) / ratio**0.13)
    room = 0.3 * (max(values) - min(values) or abs(values[0]) or 1.0)
    axes.set_ylim(min(values) - room, max(values) + room)
    for one, other in itertools.pairwise(stops):
        axes.annotate(
            "",
            (other.bytes, other.value),
            (one.bytes, one.value),
            arrowprops={
                "arrowstyle": "-|>",
                "color": MUTED,
                "linewidth": 1.1,
                "shrinkA": 5,
                "shrinkB": 5,
                "mutation_scale": 10,
            },
            zorder=3,
        )
    to_share = axes.transData + axes.transAxes.inverted()
    points = [tuple(to_share.transform((stop.bytes, stop.value))) for stop in stops]
    names = shorten_all([stop.name for stop in stops], 16)
    for name, place in zip(names, name_places(names, points), strict=True):
        axes.text(*place, name, transform=axes.transAxes, ha="center", va="center", fontsize=8.8, color=INK, zorder=5)
    subs = (1, 2, 5) if ratio < 12 else (1, 3) if ratio < 120 else (1,)
    axes.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x / 1e6:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: tick_words(y)))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("weights on disk, MB")
    axes.set_ylabel(label)
    return figure


def name_places(names: Sequence[str], points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Middles of names beside their points, where they stand on no other name and no point, as far as that can be had.

    Args:
        names: as they will be written.
        points: as shares of the axes.
    """
    dots: list[Box] = [(x - 0.018, x + 0.018, y - 0.028, y + 0.028) for x, y in points]
    arrows = [dot for one, other in itertools.pairwise(points) for dot in _along(one, other)]
    taken: list[Box] = []
    found = []
    for name, (x, y) in zip(names, points, strict=True):
        width = 1.1 * LETTER * len(name) + 0.01
        best: tuple[float, tuple[float, float], Box] | None = None
        for rank, (across, up) in enumerate(PLACES):
            middle = (x + across * (width + 0.03), y + up * LINE)
            box = (middle[0] - width / 2, middle[0] + width / 2, middle[1] - LINE / 2, middle[1] + LINE / 2)
            outside = max(0, -box[0], box[1] - 1) + max(0, 0.01 - box[2], box[3] - 1)
            cost = 100 * sum(_overlap(box, other) for other in (*taken, *dots)) + 30 * outside + 0.002 * rank
            cost += sum(12 * _overlap(box, other) for other in arrows)
            if best is None or cost < best[0]:
                best = (cost, middle, box)
        assert best is not None
        taken.append(best[2])
        found.append(best[1])
    return found


def _along(one: tuple[float, float], other: tuple[float, float], count: int = 12) -> list[Box]:
    """Small boxes along an arrow."""
    shares = [(i + 0.5) / count for i in range(count)]
    middles = [(one[0] + s * (other[0] - one[0]), one[1] + s * (other[1] - one[1])) for s in shares]
    return [(x - 0.02, x + 0.02, y - 0.02, y + 0.02) for x, y in middles]


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[1], other[1]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[2], other[2])
    return across * up if across > 0 and up > 0 else 0.0


def latencies(bars: Sequence[tuple[str, float, bool]]) -> Any:
    """A bar a model: (name, milliseconds, whether it is packed)."""
    figure = new_figure(height=0.7 + 0.33 * len(bars))
    axes = figure.add_subplot()
    longest = max(value for _, value, _ in bars)
    for at, (_, value, packed) in enumerate(bars):
        axes.barh([at], [value], color=SERIES[0] if packed else MUTED, alpha=0.8 if packed else 0.55, height=0.62)
        words = f"{short_number(value)} ms"
        axes.annotate(
            words, (value, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.8, color=INK
        )
    axes.set_yticks(range(len(bars)), [shorten(name, 24) for name, _, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * longest)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.set_xlabel("ms")
    return figure
