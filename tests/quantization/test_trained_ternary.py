"""Trained ternary quantization: the paper's two equations by hand and against plain loops, and the surrogate of a learned threshold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.quantization.trained_ternary import TrainedTernary, mean_above
from tests.quantization.samples import DRAW, NOW, matrices, row


def test_values_and_gradients_by_hand():
    quantizer = TrainedTernary(threshold=0.5)
    weight_GN, own = (
        row(1.0, 0.6, 0.5, 0.0, -0.5, -0.75),
        {"positive": row(3.0), "negative": row(2.0)},
    )  # M = 1, D = 0.5
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert code_GN.tolist() == [[2, 2, 1, 1, 1, 0]]
    assert grid.levels_GL.tolist() == [[-2.0, 0.0, 3.0]]
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[3.0, 3.0, 0.0, 0.0, 0.0, -2.0]]
    gradient_GN, found = quantizer.gradients(row(1.0, 2.0, 4.0, 8.0, 16.0, 32.0), weight_GN, own, NOW, DRAW)
    assert gradient_GN.tolist() == [[3.0, 6.0, 4.0, 8.0, 16.0, 64.0]]  # equation 8
    assert (found["positive"].item(), found["negative"].item()) == (3.0, -32.0)  # equation 7


def test_scales_are_in_units_of_the_largest_weight_in_gradients_of_weights():
    weight_GN, own = row(2.0, -1.0, 0.1), {"positive": row(1.5), "negative": row(0.5)}
    gradient_GN, _ = TrainedTernary(threshold=0.25).gradients(row(8.0, 8.0, 8.0), weight_GN, own, NOW, DRAW)
    assert gradient_GN.tolist() == [[8 * 1.5 / 2, 8 * 0.5 / 2, 8.0]]


def test_scales_begin_at_the_means_of_their_members():
    weight_GN = torch.tensor([[4.0, 2.0, 1.0, -3.0], [1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    own = TrainedTernary(threshold=0.3).initial(weight_GN)
    assert own["positive"].tolist() == [[3.0], [2.0], [0.0]]
    assert own["negative"].tolist() == [[3.0], [2.0], [0.0]]  # without members: the other's
    assert set(own) == {"positive", "negative"}
    assert mean_above(row(1.0, 2.0), row(5.0)).item() == 0


@settings(max_examples=50, deadline=None)
@given(matrices(), st.sampled_from([0.05, 0.4]), st.integers(0, 1000))
def test_against_plain_loops(weight_GN, threshold, seed):
    weight_GN = weight_GN.double()
    upstream_GN = torch.randn(weight_GN.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    quantizer = TrainedTernary(threshold=threshold)
    own = quantizer.initial(weight_GN)
    value_GN = quantizer.quantize(weight_GN, own, NOW, DRAW).tolist()
    gradient_GN, found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)
    for group, (weight_N, upstream_N) in enumerate(zip(weight_GN.tolist(), upstream_GN.tolist())):
        most = max(map(abs, weight_N))
        positive, negative = own["positive"][group].item(), own["negative"][group].item()
        sums = [0.0, 0.0]
        for place, (w, g) in enumerate(zip(weight_N, upstream_N)):
            if w > threshold * most:
                value, slope, sums[0] = positive, positive / most, sums[0] + g
            elif w < -threshold * most:
                value, slope, sums[1] = -negative, negative / most, sums[1] - g
            else:
                value, slope = 0.0, 1.0
            assert value_GN[group][place] == value
            assert gradient_GN[group, place].item() == pytest.approx(slope * g, rel=1e-9, abs=1e-12)
        assert [found["positive"][group].item(), found["negative"][group].item()] == pytest.approx(sums, abs=1e-12)


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_gradients_of_scales_are_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    weight_GN = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    upstream_GN = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    quantizer = TrainedTernary(threshold=0.3)
    own = quantizer.initial(weight_GN)

    def loss_G1(by):
        value_GN = quantizer.quantize(weight_GN, own | {name: own[name] + by}, NOW, DRAW)
        return (value_GN * upstream_GN).sum(1, keepdim=True)

    found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)[1][name]
    assert torch.allclose((loss_G1(1e-6) - loss_G1(-1e-6)) / 2e-6, found, rtol=1e-7)


def test_learned_threshold_gets_the_difference_over_the_width_of_its_window():
    generator = torch.Generator().manual_seed(2)
    weight_GN = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    weight_GN[:, ::5] = 0
    upstream_GN = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    quantizer = TrainedTernary(threshold=0.2, learn_threshold=True)
    own = quantizer.initial(weight_GN)
    assert own["threshold"].tolist() == [[0.2]] * 4
    assert quantizer.names == quantizer.trained == ("positive", "negative", "threshold")

    def loss_G1(threshold):
        value_GN = quantizer.quantize(weight_GN, own | {"threshold": torch.full((4, 1), threshold)}, NOW, DRAW)
        return (value_GN * upstream_GN).sum(1, keepdim=True)

    found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)[1]["threshold"]
    assert torch.allclose((loss_G1(0.3) - loss_G1(0.1)) / 0.2, found, rtol=1e-9)
    assert (found != 0).all()


def test_learned_threshold_by_hand_and_its_limits():
    quantizer = TrainedTernary(learn_threshold=True)
    weight_GN = row(1.0, 0.3, 0.2, -0.2, 0.1, 0.0)
    own = {"positive": row(3.0), "negative": row(2.0), "threshold": row(0.25)}  # window: 0.125 to 0.375
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[3.0, 3.0, 0.0, 0.0, 0.0, 0.0]]
    _, found = quantizer.gradients(row(1.0, 2.0, 4.0, 8.0, 16.0, 32.0), weight_GN, own, NOW, DRAW)
    assert found["threshold"].item() == (-3.0 * (2.0 + 4.0) + 2.0 * 8.0) / 0.25
    for beyond, values in ((-1.0, [3.0, 3.0, 3.0, -2.0, 3.0, 0.0]), (7.0, [3.0, 0.0, 0.0, 0.0, 0.0, 0.0])):
        assert quantizer.quantize(weight_GN, own | {"threshold": row(beyond)}, NOW, DRAW).tolist() == [values]
