"""Names of the quality metrics and which way is better; torch-free, so that a config that names one is checked at once."""

import math

METRICS = {
    "classification": ("accuracy", "macro_f1", "ece", "nll"),
    "multi_label": ("macro_f1", "micro_f1", "exact_match", "mean_average_precision", "nll"),
    "regression": ("mse", "mae", "pearson", "spearman", "r2"),
    "token_classification": ("f1", "accuracy", "ece", "nll"),
    "causal_lm": ("perplexity", "bits_per_byte", "nll"),
}
DEFAULT_METRIC = {
    "classification": "accuracy",
    "multi_label": "macro_f1",
    "regression": "mse",
    "token_classification": "f1",
    "causal_lm": "perplexity",
}
CHANCE_METRIC = {  # what `chance` of a teacher's figures is: this metric of an answer that doesn't look at the input
    "classification": "accuracy",
    "multi_label": "exact_match",
    "regression": "mse",
    "token_classification": "accuracy",
    "causal_lm": "perplexity",
}
HIGHER_IS_BETTER = frozenset(
    {
        "accuracy",
        "macro_f1",
        "micro_f1",
        "f1",
        "exact_match",
        "mean_average_precision",
        "pearson",
        "spearman",
        "r2",
        "agreement",
    }
)
LOWER_IS_BETTER = frozenset({"ece", "nll", "perplexity", "bits_per_byte", "kl", "mse", "mae"})


def better(metric: str, a: float | None, b: float | None) -> bool:
    """Whether `a` is strictly better than `b`; a value that is missing or NaN is worse than any other."""
    assert metric in HIGHER_IS_BETTER | LOWER_IS_BETTER, metric
    if a is None or math.isnan(a):
        return False
    if b is None or math.isnan(b):
        return True
    return a > b if metric in HIGHER_IS_BETTER else a < b
