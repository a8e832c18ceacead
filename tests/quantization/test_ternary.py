"""Ternary quantizers without learned scales: thresholds by hand, and draws that are fair, alike and repeatable."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.quantization.base import Draw
from distill_system.quantization.ternary import BernoulliTernary, TernaryConnect, drawn, group_scale
from tests.quantization.samples import DRAW, NOW, matrices, row

EVALUATION = replace(DRAW, training=False)


def test_scales_by_hand():
    weight_GN = torch.tensor([[-1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(group_scale(weight_GN, "mean"), torch.tensor([[1.4 * 2.0], [0.0]]))  # zeros don't count
    assert group_scale(weight_GN, "max").tolist() == [[3.0], [0.0]]
    assert group_scale(weight_GN, "none").tolist() == [[1.0], [1.0]]


def test_thresholds_by_hand():
    quantizer = TernaryConnect(scale="max", threshold=0.5, threshold_negative=0.25, clip=0.75)
    weight_GN = row(4.0, 2.0, 2.5, 0.0, -1.0, -1.25, -4.0)  # s = 4: above 2, below -1
    code_GN, grid = quantizer.encode(weight_GN, {}, NOW, DRAW)
    assert code_GN.tolist() == [[2, 1, 2, 1, 1, 0, 0]]
    assert (grid.count, grid.scale_G1.tolist(), grid.zero_G1.tolist()) == (3, [[4.0]], [[1.0]])
    assert quantizer.quantize(weight_GN, {}, NOW, DRAW).tolist() == [[4.0, 0.0, 4.0, 0.0, 0.0, -4.0, -4.0]]
    upstream_GN = row(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    gradient_GN, own = quantizer.gradients(upstream_GN, weight_GN, {}, NOW, DRAW)
    assert gradient_GN.tolist() == [[0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]]  # where |w| <= 3
    assert own == {}


@settings(max_examples=50, deadline=None)
@given(matrices(), st.sampled_from([0.1, 0.5, 0.9]))
def test_default_scale_and_threshold_are_those_of_ternary_weight_networks(weight_GN, threshold):
    weight_GN = weight_GN.double()
    value_GN = TernaryConnect(threshold=threshold).quantize(weight_GN, {}, NOW, DRAW)
    for weight_N, value_N in zip(weight_GN.tolist(), value_GN.tolist()):
        kept = [abs(w) for w in weight_N if w != 0]
        scale = 1.4 * sum(kept) / len(kept) if kept else 0.0
        for w, value in zip(weight_N, value_N):
            if abs(abs(w) - threshold * scale) > 1e-9 * scale:
                expected = math.copysign(scale, w) if abs(w) > threshold * scale else 0.0
                assert value == pytest.approx(expected, rel=1e-12)


def test_draws_by_hand():
    weight_GN, uniform_GN = row(0.0, 1.0, -1.0, -3.0, 4.0, 9.0), row(0.0, 0.2, 0.25, 0.7, 0.999, 0.999)
    # |w| / s = 0, 1/4, 1/4, 3/4, 1, above 1
    assert drawn(weight_GN, row(4.0), uniform_GN).tolist() == [[0.0, 1.0, 0.0, -1.0, 1.0, 1.0]]
    quantizer, weight_GN = BernoulliTernary(scale="max", clip=0.5), row(0.0, 1.0, -2.0, -2.5, 4.0)
    assert quantizer.quantize(weight_GN, {}, NOW, EVALUATION).tolist() == [[0.0, 0.0, 0.0, -4.0, 4.0]]
    gradient_GN, own = quantizer.gradients(row(1.0, 2.0, 3.0, 4.0, 5.0), weight_GN, {}, NOW, DRAW)
    assert gradient_GN.tolist() == [[1.0, 2.0, 3.0, 0.0, 0.0]]
    assert own == {}


def test_draws_are_the_weight_on_average():
    quantizer, weight_GN = BernoulliTernary(scale="max"), row(1.0, 0.75, 0.5, -0.1, 0.0, -1.0)
    steps = 4000
    values_SN = torch.cat([quantizer.quantize(weight_GN, {}, NOW, Draw(5, step, 0, True)) for step in range(steps)])
    assert set(values_SN.unique().tolist()) == {-1.0, 0.0, 1.0}
    size_N = weight_GN[0].abs()
    spread_N = (size_N * (1 - size_N) / steps).sqrt()
    assert ((values_SN.mean(0) - weight_GN[0]).abs() <= 5 * spread_N).all()


@pytest.mark.parametrize("evaluation", ["expectation", "best_of"])
def test_draws_are_fresh_in_each_step_alike_within_it_and_none_in_evaluation(evaluation):
    quantizer = BernoulliTernary(evaluation=evaluation)
    weight_GN = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    def value(**changes):
        return quantizer.quantize(weight_GN, {}, NOW, replace(DRAW, **changes))

    assert torch.equal(value(), value())
    assert not torch.equal(value(), value(step=DRAW.step + 1))
    assert not torch.equal(value(), value(number=DRAW.number + 1))
    assert not torch.equal(value(), value(seed=DRAW.seed + 1))
    assert torch.equal(value(training=False), value(training=False, step=DRAW.step + 1))
    assert not torch.equal(value(), value(training=False))


@settings(max_examples=50, deadline=None)
@given(matrices())
def test_expectation_is_ternary_connect(weight_GN):
    expected_GN = TernaryConnect().quantize(weight_GN, {}, NOW, DRAW)
    assert torch.equal(BernoulliTernary().quantize(weight_GN, {}, NOW, EVALUATION), expected_GN)


@settings(max_examples=50, deadline=None)
@given(matrices(), st.integers(1, 5))
def test_best_draw_of_each_group(weight_GN, draws):
    quantizer = BernoulliTernary(scale="max", evaluation="best_of", draws=draws)
    value_GN = quantizer.quantize(weight_GN, {}, NOW, EVALUATION)
    scale_G1, one = group_scale(weight_GN, "max"), replace(EVALUATION, step=0)
    tries_DGN = torch.stack(
        [drawn(weight_GN, scale_G1, one.uniform(weight_GN, place)) * scale_G1 for place in range(1, draws + 1)]
    )
    error_DG = (tries_DGN - weight_GN).square().sum(2)
    for group, best in enumerate(error_DG.argmin(0).tolist()):
        assert torch.equal(value_GN[group], tries_DGN[best, group])
