"""Binary quantizers: values and gradients by hand, against float64 references, and constants that meet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.quantization.binary import BinaryConstants, DeterministicBinary, means_around
from tests.quantization.samples import DRAW, NOW, matrices, row


def test_sign_times_mean_by_hand():
    quantizer, weight_GN = DeterministicBinary(clip=1.0), torch.tensor([[1.0, -2.0, 3.0, 0.0], [-0.5, -0.5, 0.5, 0.5]])
    code_GN, grid = quantizer.encode(weight_GN, {}, NOW, DRAW)
    assert code_GN.tolist() == [[1, 0, 1, 1], [0, 0, 1, 1]]  # sign(0) = 1
    assert grid.scale_G1.tolist() == [[3.0], [1.0]]  # from -s to s
    assert quantizer.quantize(weight_GN, {}, NOW, DRAW).tolist() == [[1.5, -1.5, 1.5, 1.5], [-0.5, -0.5, 0.5, 0.5]]
    upstream_GN = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    gradient_GN, own = quantizer.gradients(upstream_GN, weight_GN, {}, NOW, DRAW)
    assert gradient_GN.tolist() == [[1.0, 0.0, 0.0, 4.0], [5.0, 6.0, 7.0, 8.0]]  # where |w| <= 1.5, and <= 0.5
    assert own == {}


def test_unscaled_values_are_one_and_nothing_is_clipped_without_a_clip():
    quantizer, weight_GN = DeterministicBinary(scaled=False, clip=None), row(-0.0, -3.0, 1e-9)
    assert quantizer.quantize(weight_GN, {}, NOW, DRAW).tolist() == [[1.0, -1.0, 1.0]]
    assert quantizer.encode(weight_GN, {}, NOW, DRAW)[0].tolist() == [[1, 0, 1]]
    assert quantizer.gradients(row(1.0, 2.0, 3.0), weight_GN, {}, NOW, DRAW)[0].tolist() == [[1.0, 2.0, 3.0]]


@settings(max_examples=50, deadline=None)
@given(matrices())
def test_mean_is_the_best_scale(weight_GN):
    weight_GN = weight_GN.double()
    error_G = (DeterministicBinary().quantize(weight_GN, {}, NOW, DRAW) - weight_GN).square().sum(1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        scale_G1 = factor * weight_GN.abs().mean(1, keepdim=True)
        other_G = (torch.where(weight_GN >= 0, scale_G1, -scale_G1) - weight_GN).square().sum(1)
        assert (error_G <= other_G * (1 + 1e-12)).all()


def reference(weight_GN, low_G1, high_G1, middle_G1, clip):
    """Straight-through as autograd has it: q = C + (w - stopped w), where the weight's way is cut beyond the clip."""
    half_G1 = (high_G1 - low_G1).detach() / 2
    inside_GN = (weight_GN - (low_G1 + high_G1) / 2).abs() <= clip * half_G1
    passed_GN = torch.where(inside_GN, weight_GN, weight_GN.detach())
    return torch.where(weight_GN >= middle_G1, high_G1, low_G1) + (passed_GN - passed_GN.detach())


@pytest.mark.parametrize("assign", ["nearest", "sign"])
def test_constants_get_the_gradients_of_their_members(assign):
    generator = torch.Generator().manual_seed(0)
    weight_GN = (torch.randn(3, 40, generator=generator, dtype=torch.float64) + 0.3).requires_grad_()
    upstream_GN = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    quantizer = BinaryConstants(assign=assign, clip=1.5)
    own = {name: tensor.requires_grad_() for name, tensor in quantizer.initial(weight_GN.detach()).items()}
    middle_G1 = ((own["low"] + own["high"]) / 2).detach() if assign == "nearest" else torch.zeros(3, 1)
    expected_GN = reference(weight_GN, own["low"], own["high"], middle_G1, 1.5)
    (expected_GN * upstream_GN).sum().backward()
    plain = {name: tensor.detach() for name, tensor in own.items()}
    assert torch.equal(quantizer.quantize(weight_GN.detach(), plain, NOW, DRAW), expected_GN.detach())
    gradient_GN, found = quantizer.gradients(upstream_GN, weight_GN.detach(), plain, NOW, DRAW)
    assert torch.allclose(gradient_GN, weight_GN.grad, rtol=1e-12)
    assert 0 < (gradient_GN == 0).sum() < 60  # some are clipped
    for name, tensor in own.items():
        assert torch.allclose(found[name], tensor.grad, rtol=1e-12)


@pytest.mark.parametrize("name", ["low", "high"])
def test_gradients_of_constants_are_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    weight_GN = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    upstream_GN = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    quantizer = BinaryConstants()
    own = quantizer.initial(weight_GN)

    def loss_G1(by):
        value_GN = quantizer.quantize(weight_GN, own | {name: own[name] + by}, NOW, DRAW)
        return (value_GN * upstream_GN).sum(1, keepdim=True)

    found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)[1][name]
    assert torch.allclose((loss_G1(1e-6) - loss_G1(-1e-6)) / 2e-6, found, rtol=1e-7)


def test_learned_constants_by_hand():
    quantizer = BinaryConstants(clip=2.0)
    weight_GN, own = row(-3.0, 0.0, 0.5, 1.0), {"low": row(-1.0), "high": row(2.0)}  # middle 0.5
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert code_GN.tolist() == [[0, 0, 1, 1]]
    assert grid.levels_GL.tolist() == [[-1.0, 2.0]]
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[-1.0, -1.0, 2.0, 2.0]]
    gradient_GN, found = quantizer.gradients(row(1.0, 2.0, 4.0, 8.0), weight_GN, own, NOW, DRAW)
    assert gradient_GN.tolist() == [[0.0, 2.0, 4.0, 8.0]]  # |w - 0.5| <= 2 * 1.5
    assert (found["low"].item(), found["high"].item()) == (3.0, 12.0)


def test_constants_begin_at_the_means_of_their_members():
    weight_GN = torch.tensor([[-3.0, -1.0, 2.0, 4.0], [1.0, 2.0, 11.0, 12.0]])
    by_sign = BinaryConstants(assign="sign").initial(weight_GN)
    assert by_sign["low"].tolist() == [[-2.0], [-6.5]]  # where no weight is negative, minus the other
    assert by_sign["high"].tolist() == [[3.0], [6.5]]
    nearest = BinaryConstants().initial(weight_GN)
    assert (nearest["low"].tolist(), nearest["high"].tolist()) == ([[-2.0], [1.5]], [[3.0], [11.5]])
    low_G1, high_G1 = means_around(row(-2.0), row(0.0))
    assert (low_G1.item(), high_G1.item()) == (-2.0, 2.0)


@settings(max_examples=50, deadline=None)
@given(matrices(), st.floats(-3, 3), st.floats(-3, 3))
def test_constants_that_meet_or_cross_are_kept_apart(weight_GN, low, high):
    mean_G1 = weight_GN.abs().mean(1, keepdim=True)
    own = {"low": low * mean_G1, "high": high * mean_G1}
    grid = BinaryConstants(gap=0.5).encode(weight_GN, own, NOW, DRAW)[1]
    low_G1, high_G1 = grid.levels_GL.split(1, dim=1)
    assert (high_G1 - low_G1 >= 0.5 * mean_G1 * (1 - 1e-5)).all()
    assert torch.allclose(low_G1 + high_G1, own["low"] + own["high"], rtol=1e-5, atol=1e-5 * mean_G1.max().item())
    if high - low > 0.51:
        assert torch.equal(grid.levels_GL, torch.cat([own["low"], own["high"]], 1))


def test_gap_by_hand():
    own = {"low": row(1.0), "high": row(-1.0)}  # crossed
    quantizer, weight_GN = BinaryConstants(gap=1.0), row(-2.0, 2.0)  # mean|w| = 2
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[-1.0, 1.0]]
    assert quantizer.gradients(row(3.0, 5.0), weight_GN, own, NOW, DRAW)[1] == {"low": row(3.0), "high": row(5.0)}
