"""Names, directions and words of figures: which metric speaks for a model, and how numbers are written for people."""

import math
from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Metric:
    label: str
    higher_is_better: bool
    digits: int
    hint: str = ""


# In the order in which they are shown; the first that a model has is its quality.
METRICS = {
    "f1": Metric("F1", True, 4, "of exact spans; of single tags where they are not in BIO form"),
    "accuracy": Metric("accuracy", True, 4, "share of the held-out rows (words, where words have tags) that are right"),
    "mse": Metric("mean squared error", False, 4, "in the squared unit of the labels"),
    "perplexity": Metric("perplexity", False, 3, "exp of the mean negative log-likelihood of a token"),
    "macro_f1": Metric("macro F1", True, 4, "mean over the classes of the harmonic mean of precision and recall"),
    "micro_f1": Metric("micro F1", True, 4, "harmonic mean of precision and recall over all labels of all rows"),
    "exact_match": Metric("exact match", True, 4, "share of the held-out rows with all labels right"),
    "mean_average_precision": Metric(
        "mean average precision", True, 4, "area under precision and recall, mean over labels"
    ),
    "mae": Metric("mean absolute error", False, 4, "in the unit of the labels"),
    "pearson": Metric("Pearson’s r", True, 4, "linear correlation with the labels"),
    "spearman": Metric("Spearman’s rho", True, 4, "correlation of ranks with those of the labels"),
    "r2": Metric("R²", True, 4, "share of the labels’ variance that is explained"),
    "bits_per_byte": Metric("bits per byte", False, 4, "independent of the tokenizer"),
    "nll": Metric("NLL", False, 4, "mean negative log-likelihood, in nats"),
    "ece": Metric("calibration error", False, 4, "expected gap between confidence and accuracy, 15 bins"),
}
SIGNED = ("pearson", "spearman", "r2")  # can be 0 or below: a share of the teacher's would say nothing
COUNTS = ("samples", "tokens")  # of a split; they are no quality


@dataclass(frozen=True)
class Quality:
    name: str
    value: float

    @property
    def label(self) -> str:
        return METRICS[self.name].label if self.name in METRICS else self.name.replace("_", " ")

    @property
    def higher_is_better(self) -> bool:
        return METRICS[self.name].higher_is_better if self.name in METRICS else True

    @property
    def shown(self) -> str:
        return metric_words(self.name, self.value)


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_names(metrics: dict[str, Any]) -> list[str]:
    """Names of a model's metrics in the order in which they are shown, counts left out."""
    numbers = [name for name, value in metrics.items() if is_number(value) and name not in COUNTS]
    order = list(METRICS)
    return sorted(numbers, key=lambda name: (order.index(name) if name in order else len(order), name))


def quality(metrics: dict[str, Any]) -> Quality | None:
    names = metric_names(metrics)
    return Quality(names[0], float(metrics[names[0]])) if names else None


def metric_words(name: str, value: Any) -> str:
    if not is_number(value):
        return "-"
    digits = METRICS[name].digits if name in METRICS else 4
    return f"{value:.{digits}f}" if abs(value) < 10**6 else f"{value:.3g}"


SHARES = ("accuracy", "f1", "macro_f1", "micro_f1", "exact_match", "mean_average_precision", "ece")


def gap_words(name: str, gap: float) -> str:
    """A difference of two values of a metric: `0.4 points of accuracy` (hundredths) where it is a share, else in its own unit."""
    label = METRICS[name].label if name in METRICS else name.replace("_", " ")
    return f"{100 * gap:.1f} points of {label}" if name in SHARES else f"{short_number(gap)} of {label}"


def short_number(value: Any, digits: int = 3) -> str:
    """Three telling digits, no exponent between 0.001 and a million: 0.0123, 4.56, 1234."""
    if value is None or not isinstance(value, int | float):
        return "-"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def quantity(value: Any) -> str:
    """22.7M, 105k."""
    if not is_number(value):
        return "-"
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{short_number(value / limit)}{unit}"
    return f"{value:g}"


def percent(share: float) -> str:
    """A share, with no more digits than tell something: 100 %, 52 %, 3.1 %; its sign stays on the number's line."""
    number = f"{100 * share:.0f}" if share == 0 or abs(share) >= 0.0995 else short_number(100 * share, 2)
    return f"{number}\u00a0%"


def megabytes(value: Any) -> str:
    """Decimal megabytes, as `ls` and the hubs count them."""
    return f"{short_number(value / 1e6)} MB" if is_number(value) else "-"


def duration(seconds: Any) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    if not is_number(seconds):
        return "-"
    whole = round(max(0, seconds))
    if whole < 60:
        return f"{whole} s" if seconds >= 10 or whole == seconds else f"{max(0, seconds):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
