"""Packed files: every bit comes back from as few bytes as are promised, and no file that was cut, damaged or forged is half loaded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from distill_system.models.grid import Granularity, Grid, OnGrid, grouped
from distill_system.models.packed_file import (
    bytes_by_kind,
    compress,
    matrices_of,
    read_stored,
    read_tensors,
    write_packed,
)
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packing import row_bytes
from distill_system.models.weights import PACKED
from tests.models.on_grids import nearest, put, same

ROW, GROUP, TENSOR = Granularity("row"), Granularity("group", 8), Granularity("tensor")


def matrix(shape, count: int, granularity=ROW, axis: int = 1, zeros: float = 0.0, seed: int = 0, levels: bool = False):
    """(weight, its grid); a share of the codes is the one of zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight_GN = grouped(weight, granularity, axis)
    grid = nearest(weight_GN, count, levels)
    code_GN = torch.randint(0, count, weight_GN.shape, generator=generator, dtype=torch.uint8)
    code_GN[torch.rand(weight_GN.shape, generator=generator) < zeros] = count // 2
    on = OnGrid(grid, granularity, axis)
    put(weight, on, code_GN)
    return weight, on


def sample(folder) -> dict[str, torch.Tensor]:
    made = {
        "ternary": matrix((12, 33), 3),
        "binary.grouped": matrix((6, 40), 2, GROUP),
        "four.stored.turned": matrix((24, 10), 16, GROUP, axis=0),
        "three": matrix((9, 13), 7, TENSOR),
        "eight": matrix((4, 6), 256),
        "levels": matrix((8, 12), 3, levels=True),
        "pruned": matrix((40, 90), 16, zeros=0.9),
    }
    tensors = {name: weight for name, (weight, _) in made.items()}
    tensors |= {
        "bias": torch.linspace(-1, 1, 7),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(3).half(),
    }
    write_packed(folder, tensors.items(), {name: on for name, (_, on) in made.items()})
    return tensors


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def test_every_tensor_comes_back_to_the_bit(tmp_path):
    tensors = sample(tmp_path)
    assert equal(read_tensors(tmp_path), tensors)
    stored = read_stored(tmp_path)
    assert {name for name, piece in stored.items() if isinstance(piece, PackedMatrix)} == {
        "ternary", "binary.grouped", "four.stored.turned", "three", "eight", "levels", "pruned",
    }  # fmt: skip
    packed = matrices_of(stored)
    assert all(packed[name].shape == tuple(tensors[name].shape) for name in packed)
    assert list(load_file(tmp_path / PACKED)["ternary:codes"].shape) == [12, 7]  # 33 codes, five a byte
    assert {name for name in load_file(tmp_path / PACKED) if name.endswith(":kept")} == {"pruned:kept"}


def test_rows_alone_are_those_of_the_whole(tmp_path):
    sample(tmp_path)
    for piece in matrices_of(read_stored(tmp_path)).values():
        whole = piece.values()
        assert same(piece.dense(), whole if piece.on_grid.input_axis == 1 else whole.t())
        some = torch.tensor([3, 0, 3, 1])
        assert same(piece.values(some), whole[some])
        assert same(piece.values(slice(1, 3)), whole[1:3])
        assert same(piece.values(some[:0]), whole[:0])
        for wrong in (-1, piece.outputs):
            with pytest.raises(IndexError):
                piece.values(torch.tensor([wrong]))


@given(
    count=st.integers(2, 256),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 5)),
    granularity=st.sampled_from([ROW, GROUP, TENSOR]),
    axis=st.sampled_from([0, 1]),
    zeros=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60)
def test_any_matrix_comes_back(tmp_path_factory, count, shape, granularity, axis, zeros, dtype, seed):
    outputs, inputs = shape[0], 8 * shape[1]
    weight, on = matrix((outputs, inputs) if axis == 1 else (inputs, outputs), count, granularity, axis, zeros, seed)
    grid = Grid.of(count, {name: tensor.to(dtype) for name, tensor in on.grid.tensors().items()})
    code_GN = on.grid.encode_exactly(grouped(weight, granularity, axis))
    on = OnGrid(grid, granularity, axis)
    weight = weight.to(dtype)
    put(weight, on, code_GN)
    folder = tmp_path_factory.mktemp("any")
    write_packed(folder, [("w", weight)], {"w": on})
    assert same(read_tensors(folder)["w"], weight)


@pytest.mark.parametrize(
    ("count", "zeros", "taken"),
    [(16, 0.8, True), (16, 0.6, True), (16, 0.2, False), (3, 0.7, True), (3, 0.2, False), (2, 0.9, False)],
)
def test_a_bitmap_is_taken_where_it_saves_a_tenth(count, zeros, taken):
    """It takes 1 + kept * b bits a weight instead of b: at 4 bits where more than 35 % are zero, at 1.6 where more than 72.5 % are."""
    weight, on = matrix((200, 400), count, zeros=zeros)
    told, pieces = compress("w", weight, on)
    kept, bits = float((weight != 0).float().mean()), {2: 1, 3: 1.6, 16: 4}[count]
    size = 8 * sum(piece.nbytes for name, piece in pieces.items() if name in ("w:codes", "w:kept")) / weight.numel()
    assert ("common" in told) == ("w:kept" in pieces) == taken == (1 + kept * bits < 0.9 * bits)
    assert size == pytest.approx(1 + kept * bits if taken else bits, abs=1e-3)


def test_a_bitmap_by_hand(tmp_path):
    """Codes 0 1 1 1 1 1 1 1 / 1 1 2 1 1 1 1 1: kept are the first and the eleventh, with codes 0 and 2, 0 + 2*3 = 6."""
    on = OnGrid(Grid(3, torch.tensor([[0.5], [2.0]]), torch.ones(1, 1)), ROW)
    weight = torch.zeros(2, 8)
    weight[0, 0], weight[1, 2] = -0.5, 2.0
    told, pieces = compress("w", weight, on)
    assert told == {"count": 3, "granularity": "row", "input_axis": 1, "inputs": 8, "outputs": 2, "common": 1}
    assert pieces["w:kept"].tolist() == [0b1, 0b100]
    assert pieces["w:codes"].tolist() == [6]
    write_packed(tmp_path, [("w", weight)], {"w": on})
    assert same(read_tensors(tmp_path)["w"], weight)


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 256])
def test_size_of_the_file(count, tmp_path):
    """What the bits promise, the grid's tensors, and two hundredths."""
    weight, on = matrix((768, 768), count)
    write_packed(tmp_path, [("w", weight)], {"w": on})
    size = (tmp_path / PACKED).stat().st_size
    kinds = bytes_by_kind(tmp_path)
    assert sum(kinds.values()) == size
    assert kinds["codes"] == 768 * row_bytes(768, count)
    promised = weight.numel() * {2: 1, 3: 1.6, 4: 2, 8: 3, 16: 4, 256: 8}[count] / 8
    assert size <= 1.02 * (promised + kinds["scales"])


def test_what_can_not_be_written(tmp_path):
    weight, on = matrix((4, 8), 3)
    off = weight.clone()
    off[1, 2] = 0.123
    for tensors, grids, words in [
        ([("a", weight), ("a", weight)], {}, "a was handed over twice"),
        ([], {}, "without tensors"),
        ([("a:b", weight)], {}, "a:b can't be stored"),
        ([("a", weight)], {"b": on}, "b has a grid, but the model has no such tensor"),
        ([("a", off)], {"a": on}, "a has 1 values that aren't on its grid of 3 levels"),
        ([("a", off * float("nan"))], {"a": on}, "aren't on its grid"),
        ([("a", weight[0])], {"a": on}, "only matrices lie on grids"),
        ([("a", weight[:3])], {"a": on}, "a has 4 grids for 3 groups"),
        ([("a", weight.double())], {"a": on}, "a is torch.float64, but its grid is torch.float32"),
        ([("a", weight)], {"a": OnGrid(on.grid, Granularity("group", 3))}, "doesn't divide 8 inputs"),
        ([("a", torch.zeros(2, dtype=torch.complex64))], {}, "has no name in safetensors files"),
    ]:
        with pytest.raises(ValueError, match=words):
            write_packed(tmp_path, tensors, grids)
    assert list(tmp_path.iterdir()) == []


def test_a_view_does_not_bring_its_buffer_along(tmp_path):
    flat = torch.arange(100_000.0)
    write_packed(tmp_path, [("a", flat[10:20]), ("b", flat[10:20])], {})
    assert (tmp_path / PACKED).stat().st_size < 1000
    assert torch.equal(read_tensors(tmp_path)["b"], flat[10:20])


def test_what_was_read_stays_when_another_file_takes_its_place(tmp_path):
    tensors = sample(tmp_path)
    stored = read_stored(tmp_path)
    write_packed(tmp_path, [("bias", torch.zeros(7))], {})
    assert same(stored["bias"], tensors["bias"])
    assert same(stored["ternary"].dense(), tensors["ternary"])
    stored["bias"].zero_()  # what is done to it stays in this process
    assert equal(read_tensors(tmp_path), {"bias": torch.zeros(7)})
