"""The drawing of quality against size, with the knee of the curve and what taught its models."""

import itertools
import math
from typing import Any

from distill_system.tracking.figures import quantity
from distill_system.tracking.pictures import INK, MUTED, SERIES, new_figure
from distill_system.tracking.plots import LETTER, shorten


def sizes(
    names: list[str],
    points: list[tuple[float, float]],
    label: str,
    knee: int | None,
    beside: list[tuple[str, tuple[float, float]]],
) -> Any:
    """Quality against the number of parameters (a logarithm), the knee ringed.

    Args:
        names: of the models on the curve.
        points: (parameters, quality) of each.
        label: of the quality.
        knee: number of the point in `points` where the curve bends.
        beside: models that are no point of the curve: what taught them.
    """
    from matplotlib import ticker

    figure = new_figure()
    axes = figure.add_subplot()
    order = sorted(range(len(points)), key=lambda i: points[i])
    axes.plot([points[i][0] for i in order], [points[i][1] for i in order], color=SERIES[0], marker="o", markersize=5)
    if knee is not None:
        size, value = points[knee]
        axes.scatter([size], [value], s=170, facecolors="none", edgecolors=SERIES[0], linewidths=1.6)
    for _, (size, value) in beside:
        axes.scatter([size], [value], marker="s", s=30, color=MUTED)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: quantity(value)))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    ticks = sorted({size for size, _ in points})
    axes.set_xticks([ticks[0], *[tick for before, tick in itertools.pairwise(ticks) if tick > 1.25 * before]])
    rising = (
        points[order[-1]][1] >= points[order[0]][1]
    )  # a rising curve leaves room below to the right, a falling one above
    labels = [(name, place, -15 if rising else 9, INK) for name, place in _together(names, points)]
    labels += [(name, place, 8 if rising else -15, MUTED) for name, place in _together(*_apart(beside))]
    sizes_shown = [math.log(size) for size, _ in [*points, *(place for _, place in beside)]]
    low = min(sizes_shown) - 0.06 * (max(sizes_shown) - min(sizes_shown) or 1)
    high = max(sizes_shown) + 0.06 * (max(sizes_shown) - min(sizes_shown) or 1)
    for name, (size, _), _, _ in labels:  # room for each name to the right of its point
        high = max(high, low + (math.log(size) - low) / max(0.3, 1 - 1.25 * LETTER * len(name)))
    axes.set_xlim(math.exp(low), math.exp(high))
    axes.margins(y=0.2)
    for name, place, height, colour in labels:
        axes.annotate(name, place, xytext=(-3, height), textcoords="offset points", ha="left", color=colour)
    axes.set_xlabel("parameters")
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure


def _apart(named: list[tuple[str, tuple[float, float]]]) -> tuple[list[str], list[tuple[float, float]]]:
    return [name for name, _ in named], [place for _, place in named]


def _together(names: list[str], points: list[tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """Names with their places; models of hardly different size share one, since their names would stand on each other."""
    groups: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: points[i][0]):
        if groups and points[i][0] < 1.1 * points[groups[-1][0]][0]:
            groups[-1].append(i)
        else:
            groups.append([i])
    found = []
    for group in groups:
        ordered = sorted(group, key=lambda i: -points[i][1])
        found.append((shorten(", ".join(shorten(names[i], 18) for i in ordered), 30), points[ordered[0]]))
    return found
