"""Grids: which weights share one, what codes mean, and codes found again from values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.models.grid import Granularity, Grid, OnGrid, grouped, ungrouped

MATRIX_OI = torch.arange(12.0).view(2, 6)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (Granularity("tensor"), [list(range(12))]),
        (Granularity("row"), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        (Granularity("group", 3), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
        (Granularity("group", 1), [[i] for i in range(12)]),
    ],
)
def test_groups_are_parts_of_output_rows_however_the_matrix_is_stored(granularity, expected):
    assert granularity.shape(2, 6) == (len(expected), len(expected[0]))
    assert grouped(MATRIX_OI, granularity).tolist() == expected
    stored_IO = MATRIX_OI.t().contiguous()  # as a Conv1D has it
    assert grouped(stored_IO, granularity, input_axis=0).tolist() == expected
    assert torch.equal(ungrouped(torch.tensor(expected), (2, 6)), MATRIX_OI)
    assert torch.equal(ungrouped(torch.tensor(expected), (6, 2), input_axis=0), stored_IO)


@pytest.mark.parametrize(("size", "inputs", "closest"), [(64, 96, 48), (4, 6, 3), (7, 6, 6), (128, 64, 64), (5, 7, 7)])
def test_groups_that_do_not_divide_a_row_are_refused_with_the_closest_that_do(size, inputs, closest):
    with pytest.raises(ValueError, match=rf"^doesn't divide {inputs} inputs; nearest: {closest}$"):
        Granularity("group", size).shape(2, inputs)
    assert Granularity("group", closest).shape(2, inputs) == (2 * inputs // closest, closest)


def test_values_of_an_even_grid_by_hand():
    grid = Grid(4, scale_G1=torch.tensor([[0.5], [2.0]]), zero_G1=torch.tensor([[1.0], [3.0]]))
    code_GN = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.uint8)
    assert grid.decode(code_GN).tolist() == [[-0.5, 0.0, 0.5, 1.0], [0.0, -2.0, -4.0, -6.0]]
    binary = Grid(2, scale_G1=torch.tensor([[3.0]]), zero_G1=torch.tensor([[0.5]]))
    assert binary.decode(torch.tensor([[0, 1]], dtype=torch.uint8)).tolist() == [[-1.5, 1.5]]


def test_values_of_told_levels_by_hand():
    three = Grid(3, levels_GL=torch.tensor([[-0.25, 0.0, 1.0], [-2.0, 0.0, 4.0]]))
    code_GN = torch.tensor([[0, 1, 2], [2, 2, 0]], dtype=torch.uint8)
    assert three.decode(code_GN).tolist() == [[-0.25, 0.0, 1.0], [4.0, 4.0, -2.0]]
    two = Grid(2, levels_GL=torch.tensor([[-0.25, 1.0]]))
    assert two.decode(torch.tensor([[0, 1, 0]], dtype=torch.uint8)).tolist() == [[-0.25, 1.0, -0.25]]


def grids() -> st.SearchStrategy[tuple[Grid, torch.Tensor]]:
    """A grid and codes `[G, N]`."""

    def build(count: int, even: bool, groups: int, inputs: int, seed: int, empty: bool) -> tuple[Grid, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        code_GN = torch.randint(0, count, (groups, inputs), generator=generator).to(torch.uint8)
        if not even and count <= 3:
            return Grid(count, levels_GL=torch.randn(groups, count, generator=generator).sort(1).values), code_GN
        scale_G1 = torch.rand(groups, 1, generator=generator) + 1e-3
        zero_G1 = torch.randint(0, count, (groups, 1), generator=generator).float()
        if empty:
            scale_G1[0] = 0
        return Grid(count, scale_G1, torch.full((1, 1), 0.5) if count == 2 else zero_G1), code_GN

    counts = st.sampled_from([2, 3, 4, 7, 16, 255, 256])
    return st.builds(
        build, counts, st.booleans(), st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**31), st.booleans()
    )


@settings(max_examples=200, deadline=None)
@given(grids())
def test_codes_are_found_again_from_values(pair):
    grid, code_GN = pair
    values_GN = grid.decode(code_GN)
    found_GN = grid.encode_exactly(values_GN)
    assert torch.equal(grid.decode(found_GN), values_GN)
    distinct_GN = torch.ones_like(code_GN, dtype=torch.bool) if grid.scale_G1 is None else grid.scale_G1 > 0
    assert torch.equal(found_GN * distinct_GN, code_GN * distinct_GN)
    again = Grid.of(grid.count, grid.tensors())
    assert torch.equal(again.decode(code_GN), values_GN)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(16, torch.tensor([[0.1]]), torch.tensor([[8.0]])),
        Grid(3, levels_GL=torch.tensor([[-0.7, 0.0, 0.8]])),
    ],
)
def test_value_beside_the_grid_is_refused(grid):
    values_GN = grid.decode(torch.tensor([[0, 1, 2, 2]], dtype=torch.uint8))
    assert grid.encode_exactly(values_GN).tolist() == [[0, 1, 2, 2]]
    values_GN[0, 1:3] *= 1 + 1e-6
    values_GN[0, 1:3] += 1e-6
    with pytest.raises(ValueError, match=r"^has 2 values that aren't on its grid of"):
        grid.encode_exactly(values_GN)
    values_GN[0, 1:] = torch.tensor([torch.nan, torch.inf, 100.0])
    with pytest.raises(ValueError, match=r"^has 3 values"):
        grid.encode_exactly(values_GN)


@pytest.mark.parametrize("granularity", [Granularity("tensor"), Granularity("row"), Granularity("group", 3)])
def test_codes_of_a_stored_matrix_are_by_outputs_and_inputs(granularity):
    groups = granularity.shape(2, 6)[0]
    grid = Grid(3, torch.arange(1.0, groups + 1)[:, None], torch.ones(1, 1))
    code_OI = torch.tensor([[0, 1, 2, 2, 1, 0], [2, 2, 2, 0, 0, 0]], dtype=torch.uint8)
    weight_OI = ungrouped(grid.decode(grouped(code_OI, granularity)), (2, 6))
    assert torch.equal(OnGrid(grid, granularity).codes(weight_OI), code_OI)
    assert torch.equal(OnGrid(grid, granularity, input_axis=0).codes(weight_OI.t().contiguous()), code_OI)
