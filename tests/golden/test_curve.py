"""A refactor keeps this curve: one tiny distillation with dropout, accumulation, clipping, unlabelled rows and an epoch's end."""

import json

import pytest

from tests.golden.make import PATH
from tests.golden.run import STEPS, curve

RELATIVE = 1e-4  # CPUs differ in last bits, and ten steps of Adam carry them on
ADVICE = (
    "the golden curve has changed: if that was meant (another formula, order or default), say why in the commit and accept it with"
    " `python -m tests.golden.make`; if not, the change has a defect"
)


def test_the_curve_is_the_golden_one():
    golden, found = json.loads(PATH.read_text()), curve()
    assert list(golden["steps"]) == [str(step) for step in range(1, STEPS + 1)]
    for part in ("steps", "validation"):
        assert found[part].keys() == golden[part].keys(), ADVICE
        for step, figures in golden[part].items():
            assert found[part][step] == pytest.approx(figures, rel=RELATIVE), f"{part} {step}: {ADVICE}"
