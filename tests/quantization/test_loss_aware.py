"""Loss-aware scales: the closed form, alternation against all codes, fits from parts, and gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.quantization.loss_aware import LossAware
from tests.quantization.samples import DRAW, NOW, matrices, row

STATES = ["binary", "ternary", "kbit"]
every_state = pytest.mark.parametrize("states", STATES)


def fitted(quantizer, weight_n, curvature_n, alpha):
    """What training does with the terms of one group."""
    for _ in range(quantizer.iterations):
        over, under = (t.sum() for t in quantizer.terms(weight_n, curvature_n, alpha.expand_as(weight_n)))
        alpha = over / under if under > 0 else alpha
    return alpha


def cost(quantizer, weight_n, curvature_n, alpha):
    value_GN = quantizer.quantize(weight_n[None], {"alpha": alpha.view(1, 1)}, NOW, DRAW)
    return (curvature_n * (weight_n - value_GN[0]).square()).sum().item()


def test_binary_by_hand():
    quantizer = LossAware(states="binary", clip=1.0)
    weight_GN, curvature_n = row(1.0, -3.0, 0.0), torch.tensor([1.0, 2.0, 5.0])
    over_n, under_n = quantizer.terms(weight_GN[0], curvature_n, torch.ones(3))
    assert (over_n.tolist(), under_n.tolist()) == ([1.0, 6.0, 0.0], [1.0, 2.0, 5.0])  # a = 7 / 8
    own = {"alpha": row(0.875)}
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert (code_GN.tolist(), grid.scale_G1.item(), grid.zero_G1.item()) == ([[1, 0, 1]], 1.75, 0.5)
    assert quantizer.quantize(weight_GN, own, NOW, DRAW).tolist() == [[0.875, -0.875, 0.875]]
    gradient_GN, found = quantizer.gradients(row(1.0, 2.0, 3.0), weight_GN, own, NOW, DRAW)
    assert (gradient_GN.tolist(), found) == ([[0.0, 0.0, 3.0]], {})  # where |w| <= 0.875
    assert (quantizer.has_zero, quantizer.iterations, quantizer.levels(0.0)) == (False, 1, 2)


def test_ternary_and_kbit_by_hand():
    quantizer = LossAware(states="ternary", clip=1.0)
    weight_n, alpha_n = torch.tensor([1.0, -3.0, 0.4, 0.0]), torch.ones(4)  # b = 1, -1, 0, 0
    over_n, under_n = quantizer.terms(weight_n, torch.tensor([1.0, 2.0, 5.0, 7.0]), alpha_n)
    assert (over_n.tolist(), under_n.tolist()) == ([1.0, 6.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0])
    assert quantizer.quantize(weight_n[None], {"alpha": row(1.0)}, NOW, DRAW).tolist() == [[1.0, -1.0, 0.0, 0.0]]
    quantizer = LossAware(states="kbit", bits=3, clip=1.0)  # b = 2, -3, 0
    weight_n = torch.tensor([1.0, -3.0, 0.2])
    over_n, under_n = quantizer.terms(weight_n, torch.tensor([1.0, 2.0, 5.0]), torch.full((3,), 0.5))
    assert (over_n.tolist(), under_n.tolist()) == ([2.0, 18.0, 0.0], [4.0, 18.0, 0.0])
    code_GN, grid = quantizer.encode(weight_n[None], {"alpha": row(0.5)}, NOW, DRAW)
    assert (code_GN.tolist(), grid.count, grid.zero_G1.item()) == ([[5, 0, 3]], 7, 3.0)
    assert quantizer.gradients(row(1.0, 2.0, 4.0), weight_n[None], {"alpha": row(0.5)}, NOW, DRAW)[0].tolist() == [
        [1.0, 0.0, 4.0]  # where |w| <= 3 * 0.5
    ]
    assert [LossAware(states="kbit", bits=bits).levels(0.5) for bits in (3, 4, 8)] == [7, 15, 255]


def test_it_begins_at_the_unweighted_solution():
    weight_GN = torch.tensor([[1.0, -3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, -2.0, 0.1, 0.3]])
    assert LossAware(states="binary").initial(weight_GN)["alpha"].tolist() == [[1.0], [0.0], [pytest.approx(1.1)]]
    assert LossAware().initial(weight_GN)["alpha"].tolist() == [[3.0], [0.0], [2.0]]


@every_state
@settings(max_examples=40, deadline=None)
@given(weight_GN=matrices(), seed=st.integers(0, 1000), times=st.integers(1, 4))
def test_fitting_never_costs_more(states, weight_GN, seed, times):
    quantizer = LossAware(states=states, bits=3, iterations=times)
    weight_n = weight_GN[0].double()
    curvature_n = torch.rand(len(weight_n), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = quantizer.initial(weight_n[None])["alpha"][0, 0]
    last = fitted(quantizer, weight_n, curvature_n, first)
    before, after = (cost(quantizer, weight_n, curvature_n, alpha) for alpha in (first, last))
    rounding = 1e-12 * (curvature_n * weight_n**2).sum().item()
    assert after <= before + rounding
    for factor in (0.999, 1.001):  # for its codes no other scale costs less
        codes_n = quantizer.quantize(weight_n[None], {"alpha": first.view(1, 1)}, NOW, DRAW)[0] / max(first, 1e-300)
        alpha = fitted(LossAware(states=states, bits=3, iterations=1), weight_n, curvature_n, first)
        near, best = ((curvature_n * (weight_n - a * codes_n).square()).sum() for a in (alpha * factor, alpha))
        assert best <= near + rounding


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("states", ["binary", "ternary"])
def test_against_all_codes(states, seed):
    """Binary is the optimum; from the unweighted solution ternary comes to a fixed point, close to the best of all codes."""
    generator = torch.Generator().manual_seed(seed)
    weight_n = torch.randn(6, generator=generator, dtype=torch.float64)
    curvature_n = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    values = (-1.0, 1.0) if states == "binary" else (-1.0, 0.0, 1.0)
    costs = []
    for codes in itertools.product(values, repeat=6):
        code_n = torch.tensor(codes, dtype=torch.float64)
        under = (curvature_n * code_n**2).sum()
        alpha = (curvature_n * code_n * weight_n).sum() / under if under > 0 else torch.tensor(0.0)
        costs.append((curvature_n * (weight_n - alpha * code_n) ** 2).sum().item())
    quantizer = LossAware(states=states, iterations=10)
    alpha = fitted(quantizer, weight_n, curvature_n, quantizer.initial(weight_n[None])["alpha"][0, 0])
    found = cost(quantizer, weight_n, curvature_n, alpha)
    assert found >= min(costs) * (1 - 1e-9)
    assert found <= min(costs) * (1 + (1e-9 if states == "binary" else 0.5))
    assert fitted(LossAware(states=states, iterations=1), weight_n, curvature_n, alpha).item() == pytest.approx(alpha)


@every_state
def test_parts_of_a_group_add_up(states):
    quantizer = LossAware(states=states)
    generator = torch.Generator().manual_seed(0)
    weight_n, curvature_n, alpha_n = torch.randn(3, 30, generator=generator).abs().unbind()
    whole = quantizer.terms(weight_n, curvature_n, alpha_n)
    parts = [quantizer.terms(*(t[cut] for t in (weight_n, curvature_n, alpha_n))) for cut in (slice(7), slice(7, 30))]
    for together_n, part_n in zip(whole, zip(*parts)):
        assert torch.equal(torch.cat(part_n), together_n)


@every_state
def test_nothing_known_of_the_curvature_adds_nothing(states):
    over_n, under_n = LossAware(states=states).terms(torch.randn(5), torch.zeros(5), torch.zeros(5))
    assert over_n.tolist() == under_n.tolist() == [0.0] * 5


@pytest.mark.parametrize("states", ["ternary", "kbit"])
def test_pruned_weights_add_nothing_and_a_group_that_was_zero_comes_back(states):
    quantizer, curvature_n = LossAware(states=states), torch.ones(4)
    over_n, under_n = quantizer.terms(torch.tensor([0.0, 2.0, -2.0, 0.0]), curvature_n, torch.zeros(4))
    assert [t.tolist()[::3] for t in (over_n, under_n)] == [[0.0, 0.0], [0.0, 0.0]]
    assert (over_n.sum() / under_n.sum()).item() == pytest.approx(2.0 / quantizer.most)
