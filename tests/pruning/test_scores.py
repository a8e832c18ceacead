"""Scores: the papers' equations against plain sums, the same value wherever an element lies, and what a config check reads of them."""

import importlib
import inspect
import itertools
import math
import pkgutil
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distill_system.pruning.scores
from distill_system.config.instantiate import instantiate
from distill_system.errors import Refusal
from distill_system.pruning.base import Group, Run, Slice
from distill_system.pruning.scores import base
from distill_system.pruning.scores.activation import Activation
from distill_system.pruning.scores.base import Score
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.scores.movement import Movement, penalty_gradient
from distill_system.pruning.scores.random_score import Random, splitmix64
from distill_system.pruning.scores.taylor import Taylor
from distill_system.pruning.scores.units import units_of
from distill_system.schema import check_parameters, signature_of_target

ROOT = Path(__file__).parents[2]
YAMLS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "scores").glob("*.yaml"))}
KINDS = ("weights", "blocks", "neurons", "heads")
SHAPE = (6, 8)
every_score = pytest.mark.parametrize("name", YAMLS)
of_weights = pytest.mark.parametrize(
    "name", [name for name in YAMLS if instantiate(YAMLS[name]).watches != "activations"]
)


def matrix(dtype=torch.float32, seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run_of(weight, start=0, stop=None, input_axis=1, name="layer.0.weight"):
    return Run(name, tuple(weight.shape), input_axis, start, weight.flatten()[start:stop])


def seen_of(score, size, inputs, seed=1):
    """What such a score could have seen."""
    count = inputs if score.watches == "inputs" else size
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).abs() if score.watches else None


def classes():
    modules = [
        importlib.import_module(f"{distill_system.pruning.scores.__name__}.{info.name}")
        for info in pkgutil.iter_modules(distill_system.pruning.scores.__path__)
    ]
    found = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    return {cls for cls in found if issubclass(cls, Score) and cls is not Score}


def test_every_score_has_a_file_and_the_other_way_round():
    assert {type(instantiate(node)) for node in YAMLS.values()} == classes()
    assert YAMLS.keys() == {"magnitude", "movement", "taylor", "activation", "random", "mean_activation", "entropy"}


@every_score
def test_the_file_shows_the_defaults_and_what_the_class_says_can_be_read_without_an_import(name):
    signature = signature_of_target(YAMLS[name]["_target_"])
    assert check_parameters(YAMLS[name], signature, "") == []
    score = instantiate(YAMLS[name])
    assert signature.attributes["suits"] == type(score).suits
    assert signature.attributes["watches"] == type(score).watches
    assert set(score.suits) <= set(KINDS)
    assert score.watches in ("", "gradients", "inputs", "activations")
    assert ("weights" in score.suits) == (score.watches != "activations")
    defaults = inspect.signature(type(score)).parameters if "__init__" in vars(type(score)) else {}
    shown = {key: value for key, value in YAMLS[name].items() if key != "_target_"}
    assert {key: parameter.default for key, parameter in defaults.items()} == shown


@of_weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_axis", [0, 1])
@given(cuts=st.lists(st.integers(0, 48), max_size=3), chunk=st.sampled_from([1, 5, 64]))
@settings(max_examples=20, deadline=None)
def test_an_element_is_worth_the_same_in_any_run_and_chunk(name, dtype, input_axis, cuts, chunk):
    score, weight = instantiate(YAMLS[name]), matrix(dtype)
    seen = seen_of(score, weight.numel(), SHAPE[input_axis])
    whole_n = score.of_elements(run_of(weight, input_axis=input_axis), seen)
    assert whole_n.dtype == torch.float32
    found_n = torch.full_like(whole_n, math.nan)
    edges = [0, *sorted(cuts), weight.numel()]
    with mock.patch.object(base, "CHUNK", chunk):
        for start, stop in itertools.pairwise(edges):
            own = seen[start:stop] if seen is not None and score.watches == "gradients" else seen
            for part, scores_n in score.chunks(run_of(weight, start, stop, input_axis), own):
                assert 0 < scores_n.numel() <= chunk
                found_n[part.offset : part.offset + scores_n.numel()] = scores_n
    assert torch.equal(found_n, whole_n)


def test_magnitude_by_hand():
    weight = torch.tensor([[-2.0, 0.5], [-0.0, 1e-45]])
    assert Magnitude().of_elements(run_of(weight), None).tolist() == weight.abs().flatten().tolist()


def test_movement_by_hand():
    """A weight that gradient descent pushes away from zero gains, on either side of zero; over two steps."""
    score, seen = Movement(), torch.zeros(4)
    values, gradient = torch.tensor([2.0, 2.0, -2.0, -2.0]), torch.tensor([-0.5, 0.5, 0.5, -0.5])
    score.accumulate(seen, values, gradient)
    assert seen.tolist() == [1.0, -1.0, 1.0, -1.0]
    score.accumulate(seen, torch.full((4,), 3.0, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16))
    assert seen.tolist() == [-2.0, -4.0, -2.0, -4.0]
    assert score.of_elements(run_of(values[None]), seen).tolist() == seen.tolist()
    assert (score.learned, score.soft, score.revives) == (False, False, True)
    assert (Magnitude().learned, Magnitude().soft, Magnitude().revives) == (False, False, False)


def test_taylor_is_the_change_of_a_linear_loss():
    """Without a weight, a loss that is linear in it changes by exactly that."""
    generator = torch.Generator().manual_seed(0)
    values, slope = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = torch.zeros(8)
    Taylor().accumulate(seen, values, slope)
    for place in range(8):
        without = values.clone()
        without[place] = 0
        assert seen[place].item() == pytest.approx(abs((without - values).dot(slope).item()), rel=1e-6)
    Taylor().accumulate(seen, values, -slope)  # effects of opposite sign add up
    torch.testing.assert_close(seen.double(), 2 * (values * slope).abs(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("input_axis", [0, 1])
def test_activation_meets_each_weight_with_its_own_input(input_axis):
    weight = matrix()
    norms = torch.arange(1.0, SHAPE[input_axis] + 1)
    found = Activation().of_elements(run_of(weight, input_axis=input_axis), norms).view(SHAPE)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            norm = norms[row if input_axis == 0 else column]
            assert found[row, column].item() == pytest.approx(abs(weight[row, column].item()) * norm.item(), rel=1e-6)


def test_learned_movement():
    score = Movement(mode="learned")
    assert (score.learned, score.soft, score.lr_scale) == (True, False, 300.0)
    learned = torch.tensor([0.5, -3.0])
    assert score.of_elements(run_of(torch.ones(1, 2)), learned).tolist() == [0.5, -3.0]
    soft = Movement(mode="learned", threshold="soft", cutoff=0.1)
    assert soft.soft
    edge = math.log(0.1 / 0.9)  # sigmoid(edge) = 0.1
    assert soft.keep_soft(torch.tensor([0.0, edge + 1e-3, edge - 1e-3, -50.0])).tolist() == [True, True, False, False]
    with pytest.raises(Refusal, match=r"threshold: is soft.*mode=learned"):
        Movement(threshold="soft")


def test_the_penalty_is_the_derivative_of_the_mean_of_sigmoids():
    scores = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(3.0 * scores.sigmoid().mean(), scores)
    soft = Movement(mode="learned", threshold="soft", penalty=6.0)
    found = soft.penalty_gradient(scores.detach(), share=0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)
    part = soft.penalty_gradient(scores.detach()[2:5], share=0.5, total=7)  # of a rank that holds three of them
    assert torch.equal(part, found[2:5])
    assert penalty_gradient(torch.zeros(1), 1.0, 1).item() == 0.25


def test_splitmix64_gives_the_published_numbers():
    """The first outputs for state 0, as in the reference implementation."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert [value % (1 << 64) for value in splitmix64(0, 0, 5).tolist()] == expected
    assert [value % (1 << 64) for value in splitmix64(0, 3, 2).tolist()] == expected[3:]
    assert splitmix64((1 << 64) - 1, 0, 1).item() % (1 << 64) == 0xE4D971771B652C20


def test_random_is_uniform_and_hangs_on_seed_round_and_name():
    weight = torch.zeros(100, 1000)
    one = Random().of_elements(run_of(weight), None)
    assert 0 <= one.min() < 1e-4
    assert 1 - 1e-4 < one.max() < 1
    assert torch.histc(one, 10, 0, 1).sub(10_000).abs().max() < 500  # five standard deviations
    neighbours = torch.corrcoef(torch.stack([one[:-1], one[1:]]))[0, 1].item()
    assert abs(neighbours) < 0.02
    assert torch.equal(Random().of_elements(run_of(weight), None), one)
    for attribute in ("seed", "round"):
        other = Random()
        setattr(other, attribute, 1)
        assert abs(torch.corrcoef(torch.stack([one, other.of_elements(run_of(weight), None)]))[0, 1].item()) < 0.02
    assert not torch.equal(Random().of_elements(run_of(weight, name="layer.1.weight"), None), one)


def part(name, shape, axis, first=0, width=1):
    return Slice(name, shape, axis=axis, input_axis=1, first=first, width=width)


GROUPS = {
    "neurons": (Group("g", 0, 6, (part("in", (6, 8), 0), part("out", (5, 6), 1))), {"in": (6, 8), "out": (5, 6)}),
    "heads, fused": (  # queries of two heads, one key and one value head each, of width 2
        Group("g", 0, 2, (part("qkv", (16, 4), 0, 0, 4), part("qkv", (16, 4), 0, 8, 2), part("o", (4, 8), 1, 0, 4))),
        {"qkv": (16, 4), "o": (4, 8)},
    ),
    "blocks": (Group("w", 0, 6, (part("w", (6, 8), -1),), block=(2, 4)), {"w": (6, 8)}),
    "elements": (Group("w", 0, 48, (part("w", (6, 8), -1),), block=(1, 1)), {"w": (6, 8)}),
}


def sums_by_hand(group, weights):
    sums = [0.0] * group.units
    for piece in group.slices:
        weight = weights[piece.name].tolist()
        for row in range(piece.shape[0]):
            for column in range(piece.shape[1]):
                if group.block:
                    across = piece.shape[1] // group.block[1]
                    unit = row // group.block[0] * across + column // group.block[1]
                else:
                    unit = ((row if piece.axis == 0 else column) - piece.first) // piece.width
                if 0 <= unit < group.units:
                    sums[unit] += abs(weight[row][column])
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("kind", GROUPS)
@given(cut=st.floats(0, 1), chunk=st.sampled_from([1, 7, 1 << 20]), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_units_are_sums_over_their_weights_on_any_ranks(kind, cut, chunk, seed):
    group, shapes = GROUPS[kind]
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ranks = [[], []]
    for name, weight in weights.items():
        at = int(cut * weight.numel())
        ranks[0].append((run_of(weight, 0, at, name=name), None))
        ranks[1].append((run_of(weight, at, None, name=name), None))
    ranks[0].append((run_of(matrix(), name="of another group"), None))
    with mock.patch.object(base, "CHUNK", chunk):
        sums_U = sum(units_of(group, held, Magnitude()) for held in ranks)
    assert sums_U.dtype == torch.float64
    torch.testing.assert_close(sums_U, sums_by_hand(group, weights), rtol=1e-12, atol=0)
    ones = [
        (Run(name, shape, 1, 0, torch.ones(shape[0] * shape[1])), None) for name, shape in shapes.items()
    ]  # a unit's mean is taken over as many weights as it has
    torch.testing.assert_close(
        units_of(group, ones, Magnitude()), torch.full((group.units,), group.elements / group.units).double()
    )


def test_units_of_scores_that_have_seen_something():
    weight, seen = matrix(), torch.arange(48.0)
    group = Group("g", 0, 6, (part("w", (6, 8), 0),))
    held = [
        (run_of(weight, 0, 19, name="w"), seen[:19]),
        (run_of(weight, 19, None, name="w"), seen[19:]),
    ]
    with mock.patch.object(base, "CHUNK", 7):
        assert torch.equal(units_of(group, held, Taylor()), seen.view(6, 8).double().sum(1))
        norms = torch.arange(1.0, 9.0)
        found = units_of(group, [(run, norms) for run, _ in held], Activation())
    torch.testing.assert_close(found, (weight.double().abs() * norms).sum(1), rtol=1e-6, atol=0)


def test_equal_units_stay_equal_once_rounded():
    """Twins whose weights are dealt out differently: their sums in float64 differ in the last digits, their means in float32 don't."""
    generator = torch.Generator().manual_seed(3)
    row = torch.randn(501, generator=generator) * torch.exp(8 * torch.randn(501, generator=generator))
    weight = torch.stack([row, row, row])
    group = Group("g", 0, 3, (part("w", (3, 501), 0),))
    sums = []
    for cut in range(0, 1503, 97):
        held = [(run_of(weight, 0, cut, name="w"), None)], [(run_of(weight, cut, None, name="w"), None)]
        sums.append(sum(units_of(group, own, Magnitude()) for own in held))
    assert len(set(torch.stack(sums).flatten().tolist())) > 1
    assert len(set((torch.stack(sums) / 501).float().flatten().tolist())) == 1


def test_what_a_score_does_not_do_it_refuses():
    modules = {"m": nn.Linear(2, 2)}
    with pytest.raises(NotImplementedError):
        Magnitude().watcher(modules)
    with pytest.raises(NotImplementedError):
        Magnitude().accumulate(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    with pytest.raises(NotImplementedError):
        instantiate(YAMLS["entropy"]).of_elements(run_of(matrix()), None)
