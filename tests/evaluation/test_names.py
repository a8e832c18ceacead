"""Names of metrics: which way is better, and that reading them needs no torch."""

import subprocess
import sys

import pytest

from distill_system.evaluation import names


@pytest.mark.parametrize(
    ("metric", "a", "b", "expected"),
    [
        ("accuracy", 0.9, 0.8, True),
        ("accuracy", 0.8, 0.8, False),
        ("perplexity", 12.0, 13.0, True),
        ("ece", 0.2, 0.1, False),
        ("accuracy", 0.1, None, True),
        ("accuracy", float("nan"), 0.1, False),
        ("nll", 5.0, float("nan"), True),
        ("nll", None, None, False),
    ],
)
def test_better(metric, a, b, expected):
    assert names.better(metric, a, b) is expected


def test_every_metric_has_a_direction():
    known = names.HIGHER_IS_BETTER | names.LOWER_IS_BETTER
    assert all(metric in known for metrics in names.METRICS.values() for metric in metrics)
    assert not names.HIGHER_IS_BETTER & names.LOWER_IS_BETTER
    assert all(names.DEFAULT_METRIC[task] in names.METRICS[task] for task in names.METRICS)


def test_needs_no_torch():
    code = "import sys, distill_system.evaluation.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
