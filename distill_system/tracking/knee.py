"""Where a curve of size and quality bends: up to there size pays, beyond it hardly."""

import math
from collections.abc import Sequence

from distill_system.tracking.figures import METRICS, gap_words

FLAT = 0.02  # a bend smaller than this share of the curve's height is none


def knee(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> int | None:
    """The point that lies furthest above the chord from the smallest to the largest size.

    Sizes are taken as logarithms, and both axes are brought to 0 ... 1. Satopaa et al. 2011 (Kneedle), https://doi.org/10.1109/ICDCSW.2011.20.
    Differs from the paper in: no smoothing and no threshold over neighbours, for a handful of points; the largest distance decides.

    Args:
        points: (size, quality), in any order; sizes are positive.
        higher_is_better: False where a small quality is a good one.

    Returns:
        The number of the point in `points`; None for fewer than three sizes, a curve that doesn't bend, or bends the other way.

    >>> knee([(1, 0.5), (2, 0.8), (4, 0.82)]), knee([(1, 0.5), (2, 0.6), (4, 0.7)])
    (1, None)
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    sizes = [math.log(points[i][0]) for i in order]
    values = [points[i][1] if higher_is_better else -points[i][1] for i in order]
    if len(set(sizes)) < 3 or max(values) == min(values):
        return None
    height = max(values) - min(values)
    above = []
    for size, value in zip(sizes, values, strict=True):
        share = (size - sizes[0]) / (sizes[-1] - sizes[0])
        above.append((value - values[0] - share * (values[-1] - values[0])) / height)
    best = max(range(len(above)), key=lambda i: above[i])
    bends = above[best] > FLAT and values[best] > values[0]  # a smaller one that is better is no price for size
    return order[best] if bends else None


def knee_words(names: Sequence[str], points: Sequence[tuple[float, float]], metric: str) -> str:
    """What a doubling of the size gains before and beyond the knee, or over all where there is none; empty where nothing can be said.

    Args:
        names: of the models.
        points: (parameters, quality) of each.
        metric: of the quality.
    """
    better_high = METRICS[metric].higher_is_better if metric in METRICS else True
    order = sorted(range(len(points)), key=lambda i: points[i])
    if len({size for size, _ in points}) < 2:
        return ""
    small, large = order[0], order[-1]
    bend = knee(points, better_high)
    if bend is None:
        gain = _doubling(points[small], points[large], better_high)
        return f"No knee: from {names[small]} to {names[large]}, twice the size {_gains(metric, gain)}."
    first = _gains(metric, _doubling(points[small], points[bend], better_high))
    beyond = _gains(metric, _doubling(points[bend], points[large], better_high))
    return f"The knee is {names[bend]}: up to it twice the size {first}, beyond it {beyond}."


def _doubling(small: tuple[float, float], large: tuple[float, float], higher_is_better: bool) -> float:
    gain = (large[1] - small[1]) / math.log2(large[0] / small[0])
    return gain if higher_is_better else -gain


def _gains(metric: str, gain: float) -> str:
    return f"{'gains' if gain >= 0 else 'loses'} {gap_words(metric, abs(gain))}"
