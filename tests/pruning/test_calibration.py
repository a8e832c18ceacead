"""Watchers against plain sums in float64: padding, filler, precision, how rows are divided; and the entropy's definition by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from distill_system.pruning.scores.activation import Activation, InputNorms
from distill_system.pruning.scores.entropy import Entropy, Histograms, entropy, histogram
from distill_system.pruning.scores.mean_activation import MeanActivation, Means

ROWS, TOKENS, FEATURES = 6, 5, 4
MAKE = {"norms": InputNorms, "means": Means, "entropy": lambda modules: Histograms(modules, bins=8)}
every_watcher = pytest.mark.parametrize("kind", MAKE)


def inputs(dtype=torch.float32, seed=0):
    return torch.randn(ROWS, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed)).to(dtype)


def padding():
    keep_BT = torch.arange(TOKENS) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    keep_BT[4] = False  # filler
    return keep_BT


def shown(watcher, batches):
    """Runs (module, x, keep) through all passes."""
    for number in range(watcher.passes):
        watcher.begin(number)
        with watcher.watching():
            for module, x, keep in batches:
                watcher.keep_BT = keep
                module(x)
        watcher.end(number)
    return watcher


def plain(kind, x_NI):
    """The same from the real tokens `[N, I]`, with loops."""
    found = []
    for column in x_NI.double().t().tolist():
        if kind == "norms":
            found.append(math.sqrt(sum(x * x for x in column) / len(column)))
        elif kind == "means":
            found.append(sum(abs(x) for x in column) / len(column))
        else:
            least, most = min(column), max(column)
            bins = [0] * 8
            for x in column:
                bins[min(7, int((x - least) / ((most - least) / 8)))] += 1
            found.append(-sum(n / len(column) * math.log(n / len(column)) for n in bins if n))
    return torch.tensor(found)


@every_watcher
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_padding_does_not_count_whatever_stands_there(kind, dtype, poison):
    module, keep_BT = nn.Linear(FEATURES, 3).to(dtype), padding()
    x = torch.where(keep_BT[..., None], inputs(dtype), poison)
    watcher = shown(MAKE[kind]({"m": module}), [(module, x, keep_BT)])
    result = watcher.result("m")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, plain(kind, x[keep_BT]), rtol=1e-5, atol=1e-6)
    assert watcher.keep_BT is None


@every_watcher
@given(cuts=st.lists(st.integers(0, ROWS), max_size=3), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_how_rows_are_divided_does_not_matter(kind, cuts, seed):
    module, x, keep_BT = nn.Linear(FEATURES, 3), inputs(seed=seed), padding()
    whole = shown(MAKE[kind]({"m": module}), [(module, x, keep_BT)]).result("m")
    edges = [0, *sorted(cuts), ROWS]
    parts = [(module, x[a:b], keep_BT[a:b]) for a, b in itertools.pairwise(edges)]
    assert torch.equal(shown(MAKE[kind]({"m": module}), parts).result("m"), whole)


@every_watcher
def test_forms_of_inputs_and_masks(kind):
    module, x, keep_BT = nn.Linear(FEATURES, 3), inputs(), padding()

    def found(*batches):
        return shown(MAKE[kind]({"m": module}), batches).result("m")

    flat = found((module, x.flatten(0, 1), keep_BT))  # as OPT calls its feed-forward
    assert torch.equal(flat, found((module, x, keep_BT)))
    rows_B = torch.tensor([True, True, False, True, False, True])
    expected = found((module, x[rows_B], None))
    for keep in (rows_B, rows_B[:, None]):  # pictures have no padding, but filler rows
        assert torch.equal(found((module, x, keep)), expected)
    pooled = found((module, x[:, 0], keep_BT))  # one vector a row
    assert torch.equal(pooled, found((module, x[[0, 1, 2, 3, 5], 0], None)))
    with pytest.raises(ValueError, match=r"m takes \[6, 5, 4\], which real tokens \[6, 4\] say nothing of"):
        found((module, x, keep_BT[:, :4]))


def test_several_modules_a_keyword_and_a_module_that_is_used_twice():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, FEATURES), Conv1D(2, FEATURES)

        def forward(self, x):
            return self.second(x=self.first(self.first(x)))

    model, x = Model(), inputs()
    watcher = shown(InputNorms({"first": model.first, "second": model.second}), [(model, x, None)])
    once = model.first(x).detach()
    twice = torch.cat([x, once]).flatten(0, 1)
    torch.testing.assert_close(watcher.result("first"), plain("norms", twice), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        watcher.result("second"), plain("norms", model.first(once).detach().flatten(0, 1)), rtol=1e-6, atol=0
    )


def test_hooks_go_whatever_happens():
    module = nn.Linear(FEATURES, 3)
    watcher = InputNorms({"m": module})
    watcher.begin(0)
    with pytest.raises(RuntimeError, match="stop"), watcher.watching():
        raise RuntimeError("stop")
    module(inputs())
    with pytest.raises(ValueError, match="no token went through m"):
        watcher.end(0)
    with watcher.watching():
        module(inputs().requires_grad_()).sum().backward()
    watcher.end(0)
    assert not watcher.result("m").requires_grad


@every_watcher
def test_nothing_seen_and_nothing_finite_are_refused(kind):
    module, other = nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 3)
    modules = {"seen": module, "unused": other, "too": other}
    with pytest.raises(ValueError, match="no token went through unused and 1 others"):
        shown(MAKE[kind](modules), [(module, inputs(), None)])
    with pytest.raises(ValueError, match="no token went through seen:"):
        shown(MAKE[kind]({"seen": module}), [(module, inputs(), torch.zeros(ROWS, TOKENS, dtype=torch.bool))])
    for wild in (math.nan, math.inf):
        x = inputs()
        x[1, 2, 3] = wild
        with pytest.raises(ValueError, match="what goes into seen isn't finite"):
            shown(MAKE[kind]({"seen": module}), [(module, x, None)])


def test_half_precision_does_not_overflow():
    module = nn.Linear(2, 2)
    watcher = InputNorms({"m": module})
    watcher.begin(0)
    watcher.see("m", torch.full((3, 2), 60_000.0, dtype=torch.float16), watcher.seen["m"])
    watcher.end(0)
    assert watcher.result("m").tolist() == [pytest.approx(60_000.0, rel=1e-3)] * 2


def test_norms_and_means_by_hand():
    module, x = nn.Linear(2, 1), torch.tensor([[3.0, -1.0], [-4.0, 1.0]])
    norms = shown(Activation().watcher({"m": module}), [(module, x, None)]).result("m")
    assert norms.tolist() == [pytest.approx(math.sqrt(12.5)), 1.0]
    means = shown(MeanActivation().watcher({"m": module}), [(module, x, None)]).result("m")
    assert means.tolist() == [3.5, 1.0]
    assert MeanActivation().of_units(means) is means


def test_entropy_by_hand():
    """Evenly over four bins ln 4; all in one 0; three to one -3/4 ln 3/4 - 1/4 ln 1/4."""
    counts = torch.tensor([[5, 5, 5, 5], [0, 20, 0, 0], [3, 0, 0, 1]])
    by_hand = [math.log(4), 0.0, -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]
    assert entropy(counts).tolist() == [pytest.approx(value) for value in by_hand]


def test_bins_are_equally_wide_from_the_smallest_to_the_largest():
    x = torch.tensor([[0.0], [0.9], [1.0], [3.9], [4.0], [-7.0], [9.0]])
    found = histogram(x, torch.tensor([0.0]), torch.tensor([4.0]), 4)
    assert found.tolist() == [[3, 1, 0, 3]]  # what lies outside counts in the nearest one
    constant = histogram(torch.full((5, 1), 2.0), torch.tensor([2.0]), torch.tensor([2.0]), 4)
    assert constant.tolist() == [[5, 0, 0, 0]]
    huge = torch.tensor([[-3.4e38], [3.4e38]])
    assert histogram(huge, huge[0], huge[1], 4).tolist() == [[1, 0, 0, 1]]


def test_a_dead_neuron_has_no_entropy_and_the_scale_does_not_matter():
    module = nn.Linear(3, 1)
    even = torch.arange(64.0)
    x = torch.stack([torch.full((64,), 3.0), even, 1000 * even], dim=1)
    watcher = shown(Entropy(bins=64).watcher({"m": module}), [(module, x[:40], None), (module, x[40:], None)])
    assert watcher.passes == 2
    assert watcher.result("m").tolist() == [0.0, pytest.approx(math.log(64)), pytest.approx(math.log(64))]
