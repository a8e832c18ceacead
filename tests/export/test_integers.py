"""Matrices as whole numbers: the values of their grids to the bit, and words where a grid can't be told so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill_system.export.integers import Integers, integers_of, lines_of
from distill_system.models.grid import Granularity, Grid, OnGrid, ungrouped
from tests.models.on_grids import same

ROW = Granularity("row")


def on(count: int, scale, zero, granularity=ROW, axis: int = 1) -> OnGrid:
    return OnGrid(Grid(count, torch.tensor(scale).view(-1, 1), torch.tensor(zero).view(-1, 1)), granularity, axis)


def test_by_hand():
    binary = Integers.of(torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8), on(2, [0.5, 3.0], [0.5]))
    assert binary.code_OI.tolist() == [[0, 2], [2, 2]]  # doubled, so that the zero is whole
    assert (binary.scale.tolist(), binary.zero.tolist()) == ([[0.25], [1.5]], [[1], [1]])
    assert (binary.width, binary.parts) == (4, (2, 1))
    eight = Integers.of(torch.tensor([[0, 255]], dtype=torch.uint8), on(256, [0.5], [7.0], Granularity("tensor")))
    assert (eight.code_OI.tolist(), eight.scale.tolist(), eight.zero.tolist()) == ([[0, 255]], [[0.5]], [[7]])
    assert (eight.width, eight.parts) == (8, (1, 1))
    groups = Integers.of(
        torch.zeros(2, 4, dtype=torch.uint8), on(16, [1.0, 2.0, 3.0, 4.0], [8.0], Granularity("group", 2))
    )
    assert (groups.scale.tolist(), groups.zero.tolist()) == ([[1, 2], [3, 4]], [[8, 8], [8, 8]])
    assert groups.parts == (2, 2)


@given(
    count=st.sampled_from([2, 3, 4, 15, 16, 17, 64, 128, 255, 256]),
    granularity=st.sampled_from([Granularity("tensor"), ROW, *(Granularity("group", size) for size in (1, 3, 6))]),
    axis=st.sampled_from([0, 1]),
    own_zeros=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_values_are_those_of_the_grid(count, granularity, axis, own_zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    groups, weights = granularity.shape(4, 6)
    scale_G1 = torch.randn(groups, 1, generator=generator)
    scale_G1[0] = 0.0  # a row of zeros
    zero = torch.randint(0, count, (groups if own_zeros else 1, 1), generator=generator).float()
    if count <= 128 and not own_zeros:
        zero = zero.clamp(max=count - 2) + 0.5
    grid = Grid(count, scale_G1, zero)
    code_GN = torch.randint(0, count, (groups, weights), generator=generator).to(torch.uint8)
    shape = (4, 6) if axis == 1 else (6, 4)
    weight = ungrouped(grid.decode(code_GN), shape, axis)
    matrices, floats = integers_of({"w": weight}, {"w": OnGrid(grid, granularity, axis)})
    assert floats == {}
    found = matrices["w"]
    assert found.width == (4 if 2 * count - 1 <= 16 or (count <= 16 and own_zeros) else 8)
    assert int(found.code_OI.max()) < 1 << found.width
    outputs, in_row = found.parts
    steps = [
        part.repeat_interleave(4 // outputs, 0).repeat_interleave(6 // in_row, 1) for part in (found.scale, found.zero)
    ]
    expected = (found.code_OI.double() - steps[1].double()) * steps[0].double()
    assert torch.equal(expected.float(), weight if axis == 1 else weight.t())
    exactly = (found.code_OI.float() - steps[1].float()) * steps[0]
    assert same(exactly, grid.decode(OnGrid(grid, granularity, axis).codes(weight).view(groups, weights)).view(4, 6))


CANT = [
    (OnGrid(Grid(3, levels_GL=torch.tensor([[-1.0, 0.0, 0.7]])), ROW), "has levels that aren't evenly spaced"),
    (on(3, [1.0], [0.25]), "has a zero that lies neither on a code nor half-way between two"),
    (on(200, [1.0], [0.5]), "has a zero that lies neither on a code nor half-way between two"),
    (on(3, [1.0], [-1.0]), "has a zero that lies neither on a code nor half-way between two"),
    (on(3, [1.0], [16.0]), "has a zero that lies neither on a code nor half-way between two"),
    (
        OnGrid(Grid(3, torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1)), ROW),
        "has scales of torch.float64",
    ),
]


@pytest.mark.parametrize(("grid", "reason"), CANT)
def test_what_can_not_be_told(grid, reason):
    weight = grid.grid.decode(torch.tensor([[0, 2, 1]], dtype=torch.uint8))
    assert integers_of({"w": weight}, {"w": grid}) == ({}, {"w": reason})


def test_weights_that_are_not_there_or_not_on_their_grid():
    with pytest.raises(ValueError, match=r"^w has a grid, but the model has no such tensor$"):
        integers_of({"v": torch.zeros(1, 1)}, {"w": on(3, [1.0], [1.0])})
    with pytest.raises(ValueError, match=r"^w has 1 values that aren't on its grid of 3 levels$"):
        integers_of({"w": torch.tensor([[1.0, 0.5]])}, {"w": on(3, [1.0], [1.0])})


def test_lines():
    assert lines_of(["a"], {"b": "is odd", "c": "is old", "d": "is odd"}) == [
        "1 of 4 quantized matrices lie in it as codes",
        "as floats, because it is odd: b and 1 more",
        "as floats, because it is old: c",
    ]
