"""The drawings of pruning: how sparse each layer is, which layers stay, quality while the model shrinks, and how sensitive its parts are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_system.tracking.figures import percent, quantity
from distill_system.tracking.pictures import ALARM, FAINT, HEIGHT, INK, MUTED, PAPER, SERIES, WIDTH, new_figure
from distill_system.tracking.plots import LETTER, shorten, shorten_all, tick_words

MOST_STRIPS = 16  # matrices of a layer in one figure
MOST_BARS = 24
MOST_ROWS = 48  # of a heat map
BOXES_IN_A_ROW = 12


@dataclass
class Strip:
    """One kind of part over the layers; `shares` are of its units, 0 to 1."""

    name: str
    layers: list[int]
    shares: list[float]
    total: float | None = None  # over all layers, where parts differ in size


@dataclass
class Point:
    """A round: what was left and how good that was."""

    round: int
    remaining: float
    metric: float
    kept: bool = True
    handed_on: bool = False


def strips(rows: Sequence[Strip], target: float | None = None) -> Any:
    """Bars by layer, a strip for each kind of part below one another; all have the same scale, from 0 to the largest share or to 100 %.

    Args:
        rows: at least one.
        target: a share that all were meant to have, drawn as a line.
    """
    from matplotlib import ticker

    alone = len(rows) == 1
    figure = new_figure(height=HEIGHT if alone else 0.7 + 0.66 * len(rows))
    every = sorted({layer for row in rows for layer in row.layers})
    top = scale_of([share for row in rows for share in row.shares] + ([target] if target is not None else []))
    for axes, row in zip(figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0], rows, strict=True):
        heights = [100 * share for share in row.shares]
        axes.bar(row.layers, heights, color=SERIES[0], alpha=0.8, width=0.78)
        axes.bar(row.layers, [top] * len(row.layers), color=MUTED, alpha=0.09, width=0.78, zorder=0)
        # A bar of no height would look like a layer that was forgotten.
        empty = [layer for layer, share in zip(row.layers, row.shares, strict=True) if share == 0]
        if empty:
            axes.plot(empty, [0.012 * top] * len(empty), "_", color=SERIES[0], markersize=4, clip_on=False)
        if target is not None:
            axes.axhline(100 * target, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        if alone:
            for layer, height in zip(row.layers, heights, strict=True) if len(row.layers) <= 8 else ():
                # At the foot of the bar, where no line at the target crosses it.
                inside = height > 0.14 * top
                axes.annotate(
                    f"{height:.0f} %", (layer, 0 if inside else height), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5,
                    color=PAPER if inside else INK,
                )  # fmt: skip
            axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axes.set_ylabel("removed, %")
        else:
            axes.set_title(shorten(row.name, 36), loc="left", fontsize=8.8, color=INK, pad=3)
            words = f"{100 * row.total:.0f} %" if row.total is not None else ""
            axes.set_title(words, loc="right", fontsize=8.8, color=MUTED, pad=3)
            axes.set_yticks([0, top], ["0", f"{top:.0f} %"], fontsize=8)
        axes.set_ylim(0, top * (1.08 if alone else 1))
        axes.set_xlim(every[0] - 0.6, every[-1] + 0.6)
        axes.tick_params(axis="x", length=0)
        if len(every) <= 13:
            axes.set_xticks(every)
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(9, integer=True))
    axes.set_xlabel("layer")
    return figure


def scale_of(shares: Sequence[float]) -> float:
    """Where an axis of percents ends: at 100, or at a round number above shares that are far below it.

    >>> scale_of([0.9]), scale_of([0.21, 0.1]), scale_of([0.0])
    (100.0, 25.0, 5.0)
    """
    largest = 100 * max(shares, default=0.0)
    return next((end for end in (5.0, 10.0, 25.0) if largest <= end), 100.0)


def bars_of_shares(names: Sequence[str], shares: Sequence[float], target: float | None = None) -> Any:
    """Horizontal bars, for parts that belong to no layer (or to one that is used over and over)."""
    figure = new_figure(height=0.9 + 0.3 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [100 * share for share in shares], color=SERIES[0], alpha=0.8, height=0.64)
    for at, share in enumerate(shares):
        axes.annotate(f" {100 * share:.0f} %", (100 * share, at), va="center", color=INK, fontsize=8.8)
    if target is not None:
        axes.axvline(100 * target, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.set_yticks(range(len(names)), shorten_all(list(names), 24))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 116)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("removed, %")
    return figure


def boxes(stays: dict[int, bool]) -> Any:
    """A box a layer, in the order of the model: full ones stay, empty ones were taken out."""
    from matplotlib.patches import Rectangle

    lines = math.ceil(len(stays) / BOXES_IN_A_ROW)
    across = min(len(stays), BOXES_IN_A_ROW)
    figure = new_figure(height=0.25 + lines * WIDTH / BOXES_IN_A_ROW * 1.12)
    axes = figure.add_subplot()
    for at, (layer, kept) in enumerate(sorted(stays.items())):
        x, y = at % BOXES_IN_A_ROW, at // BOXES_IN_A_ROW
        look: dict[str, Any] = (
            {"facecolor": SERIES[0], "edgecolor": SERIES[0], "linewidth": 1}
            if kept
            else {"facecolor": "none", "edgecolor": MUTED, "linewidth": 1, "linestyle": (0, (2, 2))}
        )
        axes.add_patch(Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, **look))
        axes.text(x, y, str(layer), ha="center", va="center_baseline", fontsize=9.5, color=PAPER if kept else MUTED)
    axes.set_xlim(-0.5, BOXES_IN_A_ROW - 0.5 if lines > 1 else max(across, 8) - 0.5)
    axes.set_ylim(lines - 0.5, -0.5)
    axes.set_aspect("equal", anchor="W")
    axes.set_axis_off()
    return figure


def rounds(points: Sequence[Point], label: str, bound: float | None = None) -> Any:
    """A metric over what remains, from the whole model on the left to the smallest on the right; a crossed point was rolled back.

    Args:
        points: in the order of the rounds.
        label: of the metric.
        bound: of the gate, in the metric's unit; left out where it is so far from the points that they would fall together.
    """
    from matplotlib import ticker

    figure = new_figure()
    axes = figure.add_subplot()
    good = [point for point in points if point.kept]
    axes.plot(
        [p.remaining for p in good], [p.metric for p in good], color=SERIES[0], marker="o", markersize=4.5, zorder=3
    )
    base = next((p for p in points if p.handed_on), good[-1] if good else None)
    for point in points:
        if not point.kept:
            if base is not None:
                axes.plot(
                    [base.remaining, point.remaining], [base.metric, point.metric], color=ALARM, linewidth=1, linestyle=(0, (2, 2))
                )  # fmt: skip
            axes.plot([point.remaining], [point.metric], "x", color=ALARM, markersize=8, markeredgewidth=2, zorder=4)
        if point.handed_on:
            axes.scatter(
                [point.remaining], [point.metric], s=170, facecolors="none", edgecolors=SERIES[0], linewidths=1.6
            )
    sizes = [point.remaining for point in points]
    if min(sizes) > 0 and max(sizes) / min(sizes) > 4:
        axes.set_xscale("log")
    axes.margins(x=0.07, y=0.2)
    axes.invert_xaxis()
    if bound is not None and within_reach(bound, [p.metric for p in points]):
        axes.axhline(bound, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.margins(y=0.2)
    axes.get_xlim(), axes.get_ylim()  # settles the limits, which are lazy
    to_share = axes.transData + axes.transAxes.inverted()
    _number(axes, points, [tuple(to_share.transform((p.remaining, p.metric))) for p in points])
    whole = max(sizes)
    ticks = spaced(
        sorted(set(sizes), reverse=True),
        [to_share.transform((s, points[0].metric))[0] for s in sorted(set(sizes), reverse=True)],
        0.19,
    )
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{quantity(x)}\n{percent(x / whole)}"))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: tick_words(y)))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("remaining parameters (not zero)")
    axes.set_ylabel(label)
    return figure


def within_reach(bound: float, values: Sequence[float]) -> bool:
    """Whether a line at `bound` leaves the values at least a quarter of the height."""
    low, high = min(values), max(values)
    return high - low >= 0.25 * (max(high, bound) - min(low, bound)) or low <= bound <= high


def spaced(values: Sequence[float], places: Sequence[float], gap: float) -> list[float]:
    """The first and the last value, and those between that are `gap` from each other's places (0 to 1, rising)."""
    chosen = [0]
    last = len(values) - 1
    for at in range(1, last):
        if places[at] - places[chosen[-1]] >= gap and places[last] - places[at] >= gap:
            chosen.append(at)
    if last > 0 and places[last] - places[chosen[-1]] >= min(gap, 0.12):
        chosen.append(last)
    return [values[at] for at in chosen]


def _number(axes: Any, points: Sequence[Point], places: Sequence[tuple[float, float]]) -> None:
    """Writes each round's number beside its point, away from the curve, where there is room for it; important ones first."""
    taken: list[tuple[float, float, float]] = []
    order = sorted(range(len(points)), key=lambda i: (points[i].kept and not points[i].handed_on, -i))
    for i in order:
        x, y = places[i]
        beside = [points[k].metric for k in (i - 1, i + 1) if 0 <= k < len(points)]
        below = not points[i].kept or points[i].metric < min(beside, default=-math.inf)
        words = str(points[i].round) if points[i].kept else f"round {points[i].round}"
        side = "right" if x > 0.9 and not points[i].kept else "center"
        width = LETTER * (len(words) + 1)
        left, height = x - (width if side == "right" else width / 2), y + (-0.11 if below else 0.09)
        if any(left < b and a < left + width and abs(height - h) < 0.1 for a, b, h in taken):
            continue
        taken.append((left, left + width, height))
        axes.annotate(
            words, (points[i].remaining, points[i].metric), xytext=(0, (-16 if below else 9) + (3 - 6 * below if points[i].handed_on else 0)), textcoords="offset points", ha=side, fontsize=8.8,
            color=INK if points[i].kept else ALARM, zorder=5,
        )  # fmt: skip


def heat_map(
    names: Sequence[str], levels: Sequence[float], changes: Sequence[Sequence[float | None]], sign: int
) -> Any:
    """Rows are parts of the model, columns how much of one is removed; a cell has the change of the metric, its shade the harm.

    Args:
        names: of the rows.
        levels: shares that were removed.
        changes: of the metric against the whole model; None where it wasn't finite.
        sign: 1 where a rising metric is harm, else -1.
    """
    from matplotlib.patches import Rectangle

    tight = len(names) > 14
    figure = new_figure(height=0.85 + (0.215 if tight else 0.3) * len(names))
    axes = figure.add_subplot()
    finite = [sign * change for row in changes for change in row if change is not None]
    most = max([0.0, *finite]) or 1.0
    for y, row in enumerate(changes):
        for x, change in enumerate(row):
            # The root spreads the shades: one part that breaks the model would leave all others white.
            share = math.sqrt(max(0.0, sign * change) / most) if change is not None else 0.0
            alpha = round(0.04 + 0.56 * share, 3)
            colour = SERIES[1] if change is not None else FAINT
            axes.add_patch(Rectangle((x - 0.485, y - 0.46), 0.97, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
            if len(levels) <= 8:
                size = 8.8 if len(levels) <= 5 and not tight else 7.6
                axes.text(x, y, change_words(change), ha="center", va="center_baseline", fontsize=size, color=INK)
    axes.set_xticks(
        range(len(levels)), [f"{100 * level:.3g} %" for level in levels], fontsize=9 if len(levels) <= 6 else 8
    )
    axes.set_yticks(range(len(names)), list(names), fontsize=8 if tight else 9)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("removed of this part alone")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def change_words(change: float | None) -> str:
    """A signed number in at most five letters where it can be: +0.012, +1.3, -24.

    >>> [change_words(v) for v in (0.0123, -0.5, 1.26, 24.2, 12345.0, 0.00004, None)]
    ['+0.012', '-0.50', '+1.3', '+24', '+12k', '0', '–']
    """
    if change is None:
        return "–"
    size = abs(change)
    if size < 5e-4:
        return "0"
    if size >= 1000:
        return f"{change / 1000:+.0f}k" if size < 999_500 else f"{change:+.0e}"
    return f"{change:+.{3 if size < 0.0995 else 2 if size < 0.995 else 1 if size < 9.95 else 0}f}"
