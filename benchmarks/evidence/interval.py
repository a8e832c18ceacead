"""What few seeds can say: Student's interval of paired differences, the effect a number of seeds can find, and the verdict by the rule of docs/evidence.md.

The difference of a pair is always in the good direction of its metric: positive means that the method is better. Quantiles of Student's t are found by
bisection of its distribution function, an incomplete beta function by Lentz's continued fraction (DLMF 8.17.22), so that no library is needed for them.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
POWER = 0.8
BEATS, NOT, INCONCLUSIVE, UNFINISHED = "BEATS", "NOT", "INCONCLUSIVE", "UNFINISHED"


def t_distribution(t: float, freedom: float) -> float:
    """P(T <= t) with `freedom` degrees of freedom."""
    tail = incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


def t_quantile(probability: float, freedom: float) -> float:
    """The t that P(T <= t) is `probability` for, in (0, 1)."""
    assert 0 < probability < 1, probability
    assert freedom > 0, freedom
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    high = 1.0
    while t_distribution(high, freedom) < probability:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * value / a


def _away_from_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value


@dataclass(frozen=True)
class Paired:
    """Two arms over the same seeds. `low` and `high` bound the mean difference; infinite with fewer than two seeds."""

    baseline: float
    method: float
    difference: float
    low: float
    high: float
    deviation: float
    wins: int
    count: int


def paired(baseline: Sequence[float], method: Sequence[float], *, higher_is_better: bool = True) -> Paired:
    """Means of both arms, and the mean of method minus baseline (in the good direction) with Student's 95 % interval.

    Args:
        baseline: a value for each seed.
        method: of the same seeds in the same order.
        higher_is_better: False turns the sign of the difference, not of the means.
    """
    assert len(baseline) == len(method), (len(baseline), len(method))
    assert len(baseline), "no seed has both arms"
    sign = 1 if higher_is_better else -1
    differences = [sign * (after - before) for before, after in zip(baseline, method)]
    count, mean = len(differences), statistics.fmean(differences)
    deviation = statistics.stdev(differences) if count > 1 else math.inf
    half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count) if count > 1 else math.inf
    return Paired(
        baseline=statistics.fmean(baseline),
        method=statistics.fmean(method),
        difference=mean,
        low=mean - half,
        high=mean + half,
        deviation=deviation,
        wins=sum(difference > 0 for difference in differences),
        count=count,
    )


def detectable_effect(deviation: float, count: int) -> float:
    """The mean difference that `count` seeds find with 80 % power, as far as a pilot's deviation of the paired difference tells.

    (t of the interval + t of the power) * deviation / sqrt(count): for 5 seeds within 2 % of the exact figure from the noncentral distribution.
    """
    if count < 2:
        return math.inf
    freedom = count - 1
    return (t_quantile((1 + CONFIDENCE) / 2, freedom) + t_quantile(POWER, freedom)) * deviation / math.sqrt(count)


def verdict(found: Paired, *, minimal_effect: float, planned: int) -> str:
    """BEATS, NOT or INCONCLUSIVE; UNFINISHED while seeds that were planned are missing, so that nobody stops where it looks best.

    Args:
        found: the pairs.
        minimal_effect: the smallest difference that anyone would care about, >= 0.
        planned: number of seeds that the set-up asks for.
    """
    if found.count < planned:
        return UNFINISHED
    if found.high < minimal_effect:
        return NOT  # also where it lies above 0: surely there, surely too small to matter
    return BEATS if found.low > 0 else INCONCLUSIVE
