"""The drawings of the report. They are small multiples (one column on a telephone, three on a desk), so that their text can be read on both."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill_system.tracking.pictures import ALARM, HEIGHT, INK, MUTED, SERIES, WIDTH, new_figure

LETTER = 0.017  # a small letter's width, as a share of a figure's axes
POINTS = 320  # a curve has no more: the screen has no more


@dataclass
class Curve:
    """A named curve; `steps` rise."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int | None = None  # number in SERIES, where one name has one colour in several figures


@dataclass
class Marks:
    """What happened at which step: `phases` are (step, name) where a phase begins."""

    phases: list[tuple[float, str]] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    bad: list[float] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    rolled_back: list[float] = field(default_factory=list)
    fewer_bits: list[float] = field(default_factory=list)


@dataclass
class Panel:
    """A figure to be drawn: its place on the page, its file's name and its words."""

    group: str
    file: str
    title: str
    caption: str
    draw: Callable[[], Any]


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:60]


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_all(names: Sequence[str], limit: int) -> list[str]:
    """Short names that still differ: the beginnings, or the ends where the beginnings are alike."""
    beginnings = [shorten(name, limit) for name in names]
    if len(set(beginnings)) == len(set(names)):
        return beginnings
    return [name if len(name) <= limit else "…" + name[1 - limit :] for name in names]


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """No more than `points` points: of each stretch its smallest and largest value, so that no spike gets lost."""
    pairs = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    if len(pairs) > points:
        size = math.ceil(2 * len(pairs) / points)
        stretches = [pairs[at : at + size] for at in range(0, len(pairs), size)]
        ends = [{min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])} for part in stretches]
        pairs = sorted(pair for part in ends for pair in part)
    return Curve(curve.name, [s for s, _ in pairs], [v for _, v in pairs])


def smooth(curve: Curve) -> Curve:
    """A centred running mean over a twentieth of the curve."""
    half = max(1, len(curve.values) // 40)
    sums = [0.0]
    for value in curve.values:
        sums.append(sums[-1] + value)
    count = len(curve.values)
    spans = [(max(0, i - half), min(count, i + half + 1)) for i in range(count)]
    return Curve(curve.name, curve.steps, [(sums[b] - sums[a]) / (b - a) for a, b in spans])


def curves(
    curve_list: list[Curve],
    marks: Marks | None = None,
    log: bool | None = None,
    smoothed: bool = True,
    named: bool = True,
) -> Any:
    """Curves over steps, each named at its own end; `log=None` chooses a logarithmic axis where values span more than a factor 50."""
    figure = new_figure()
    axes = figure.add_subplot()
    numbered = [Curve(c.name, *_finite(c), at if c.colour is None else c.colour) for at, c in enumerate(curve_list)]
    shown = [curve for curve in numbered if len(curve.steps)]
    for curve in shown:
        colour = _colour(curve)
        few = thin(curve)
        if len(curve.values) <= 40:
            dots = {"marker": "o", "markersize": 3.2} if len(curve.values) <= 24 else {}
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.6, **dots)
        elif smoothed:
            axes.plot(few.steps, few.values, color=colour, linewidth=0.8, alpha=0.28)
            calm = thin(smooth(curve))
            axes.plot(calm.steps, calm.values, color=colour, linewidth=1.7)
        else:
            axes.plot(few.steps, few.values, color=colour, linewidth=1.6)
    values = [value for curve in shown for value in curve.values]
    positive = bool(values) and min(values) > 0
    if positive and (log or (log is None and max(values) / min(values) > 50)):
        axes.set_yscale("log")
    _ticks(axes)
    if named:
        _end_labels(axes, shown)
    _draw_marks(axes, marks or Marks())
    axes.set_xlabel("step")
    return figure


def _colour(curve: Curve) -> str:
    return SERIES[(curve.colour or 0) % len(SERIES)]


def _finite(curve: Curve) -> tuple[list[float], list[float]]:
    pairs = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    return [s for s, _ in pairs], [v for _, v in pairs]


def _ticks(axes: Any) -> None:
    from matplotlib import ticker

    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10000 else f"{x:g}"))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: tick_words(y)))
    else:
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the heights' order and as near to them as can be (least squares: pool adjacent violators)."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, int]] = []  # (mean, size) of heights whose own gaps are taken off
    for at, i in enumerate(order):
        blocks.append((heights[i] - at * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, n), (a, m) = blocks.pop(), blocks.pop()
            blocks.append(((a * m + b * n) / (m + n), m + n))
    flat = [mean for mean, size in blocks for _ in range(size)]
    places = [0.0] * len(heights)
    for at, i in enumerate(order):
        places[i] = flat[at] + at * gap
    return places


def tick_words(value: float) -> str:
    """0.25, 1200, 2.5e-4; what floating point leaves of zero is 0."""
    if abs(value) < 1e-15:
        return "0"
    return f"{value:.3g}".replace("e-0", "e-") if abs(value) < 1e-3 else f"{value:.6g}"


def _end_labels(axes: Any, shown: list[Curve]) -> None:
    """Names at the curves' ends, moved apart where they would touch. One curve needs no name: the figure's title has it."""
    if len(shown) < 2:
        return
    axes.get_xlim(), axes.get_ylim()  # settles the limits, which are lazy
    last = [(smooth(c) if len(c.values) > 40 else c).values[-1] for c in shown]
    to_share = axes.transAxes.inverted()
    heights = [
        to_share.transform(axes.transData.transform((c.steps[-1], v)))[1] for c, v in zip(shown, last, strict=True)
    ]
    places = spread(heights, gap=0.085)
    names = shorten_all([curve.name for curve in shown], 14)
    for i, curve in enumerate(shown):
        axes.annotate(
            names[i], xy=(1.015, places[i]), xycoords="axes fraction", va="center", color=_colour(curve), annotation_clip=False
        )  # fmt: skip


def _draw_marks(axes: Any, marks: Marks) -> None:
    for step in marks.pruned:  # from top to bottom where they are few, else they would hide the curve
        axes.axvline(step, ymin=0 if len(marks.pruned) <= 12 else 0.94, color=MUTED, linewidth=0.9, alpha=0.6, zorder=1)
    for step in marks.fewer_bits:
        axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    for step in marks.rolled_back:
        axes.axvline(step, color=ALARM, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    if len(marks.phases) > 1:
        across = axes.get_xaxis_transform()
        for step, _ in marks.phases:
            axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        low, high = axes.get_xlim()
        letter = (high - low) * LETTER
        ends = [step for step, _ in marks.phases[1:]] + [high]
        room = [int((end - step) / letter) - 1 for (step, _), end in zip(marks.phases, ends, strict=True)]
        short = shorten_all([name for _, name in marks.phases], max(6, min(12, *room)))
        names = [
            name if len(name) <= min(12, fit) else cut
            for (_, name), fit, cut in zip(marks.phases, room, short, strict=True)
        ]
        free = low
        for (step, _), name in zip(marks.phases, names, strict=True):
            if step >= free:  # else its name would stand on the one before
                free = step + letter * len(name)
                axes.text(step, 1.02, f" {name}", transform=across, color=MUTED, fontsize=8.5, va="bottom", ha="left")
    for steps, symbol, colour in (
        (marks.resumed, "^", INK),
        (marks.bad, "x", ALARM),
        (marks.rolled_back, "<", ALARM),
    ):
        if steps:
            axes.plot(
                steps, [0.035] * len(steps), symbol, color=colour, markersize=5.5, transform=axes.get_xaxis_transform(), clip_on=False, zorder=5
            )  # fmt: skip


def calibration(bins: list[dict[str, Any]]) -> Any:
    """Accuracy against confidence; a dot's area is the share of rows in its bin, the thin line its gap to the diagonal."""
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    full = [b for b in bins if b.get("count")]
    total = sum(b["count"] for b in full) or 1
    for b in full:
        axes.plot([b["confidence"]] * 2, [b["confidence"], b["accuracy"]], color=SERIES[0], linewidth=1.2, alpha=0.6)
    axes.scatter(
        [b["confidence"] for b in full], [b["accuracy"] for b in full], s=[12 + 300 * b["count"] / total for b in full], color=SERIES[0],
        alpha=0.75, linewidths=0,
    )  # fmt: skip
    lowest = min([b["confidence"] for b in full] + [b["accuracy"] for b in full] + [0.5])
    axes.set_xlim(max(0.0, math.floor(lowest * 10 - 0.5) / 10), 1.02)
    axes.set_ylim(max(0.0, math.floor(lowest * 10 - 0.5) / 10), 1.04)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure


MOST_LABELS = 20


def confused(labels: list[str], matrix: list[list[float]]) -> list[int]:
    """Which labels are drawn: all, or the most mistaken ones where there are more than a figure can hold."""
    if len(labels) <= MOST_LABELS:
        return list(range(len(labels)))
    mistakes = [sum(row) - row[i] + sum(r[i] for r in matrix) - row[i] for i, row in enumerate(matrix)]
    return sorted(sorted(range(len(labels)), key=lambda i: (-mistakes[i], i))[:MOST_LABELS])


def confusion(labels: list[str], matrix: list[list[float]]) -> Any:
    """Rows are the true labels, columns what the model said; the shade is the share of the row."""
    from matplotlib.patches import Rectangle

    chosen = confused(labels, matrix)
    size = len(chosen)
    figure = new_figure(height=HEIGHT if size <= 6 else WIDTH)
    axes = figure.add_subplot()
    for y, i in enumerate(chosen):
        total = sum(matrix[i]) or 1
        for x, j in enumerate(chosen):
            share = matrix[i][j] / total
            axes.add_patch(
                Rectangle(
                    (x - 0.48, y - 0.46),
                    0.96,
                    0.92,
                    facecolor=SERIES[0],
                    alpha=round(0.05 + 0.45 * share, 3),
                    linewidth=0,
                )
            )
            if size <= 8:
                axes.text(
                    x, y, f"{matrix[i][j]:g}", ha="center", va="center", color=INK, fontsize=11 if size <= 4 else 8.5
                )
    names = shorten_all([str(labels[i]) for i in chosen], 12)
    slanted = size > 3 or max(map(len, names), default=0) > 9
    axes.set_xticks(
        range(size),
        names,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        fontsize=9 if size <= 8 else 8,
    )
    axes.set_yticks(range(size), names, fontsize=9 if size <= 8 else 8)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def bars(names: list[str], values: list[float], label: str, words: list[str]) -> Any:
    """Horizontal bars with their values written beside them."""
    figure = new_figure(height=0.9 + 0.34 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), values, color=SERIES[0], alpha=0.8, height=0.62)
    for at, (value, word) in enumerate(zip(values, words, strict=True)):
        axes.annotate(f" {word}", (value, at), va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(names)), [shorten(name, 26) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, (max(values, default=1) or 1) * 1.25)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    return figure


def scatter_lines(groups: list[tuple[str, list[float], list[float]]], x_label: str, y_label: str, log_x: bool) -> Any:
    """A metric over a swept number, one line for each group of the other settings."""
    figure = new_figure()
    axes = figure.add_subplot()
    for number, (_, xs, ys) in enumerate(groups):
        axes.plot(xs, ys, color=SERIES[number % len(SERIES)], marker="o", markersize=4.5, linewidth=1.4)
    if log_x:
        axes.set_xscale("log")
    _ticks(axes)
    from matplotlib import ticker

    ticks = sorted({x for _, xs, _ in groups for x in xs})
    if len(ticks) <= 8:
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    elif not log_x:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    _end_labels(axes, [Curve(name, xs, ys, at) for at, (name, xs, ys) in enumerate(groups)])
    axes.set_xlabel(shorten(x_label, 50))
    axes.set_ylabel(shorten(y_label, 40))
    return figure
