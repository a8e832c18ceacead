"""Pieces of tensors from disk equal the same pieces of the whole tensor, whatever the range, shape and dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from distill_system.models.streaming import read_flat_range, read_tensor, tensor_locations

SHAPES = {
    "scalar": (),
    "empty": (0, 3),
    "vector": (7,),
    "matrix": (5, 3),
    "cube": (2, 3, 4),
    "flat": (1, 17),
    "one": (1,),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{dtype}": (torch.randn(shape, generator=generator) * 100).to(dtype)
        for name, shape in SHAPES.items()
        for dtype in DTYPES
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors, tensor_locations(folder)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), start=st.integers(0, 30), length=st.integers(0, 30))
def test_any_range_of_any_tensor(stored, data, start, length):
    tensors, locations = stored
    name = data.draw(st.sampled_from(sorted(tensors)))
    piece = read_flat_range(locations[name], start, start + length)
    expected = tensors[name].flatten()[start : start + length]
    assert piece.dtype == expected.dtype
    assert torch.equal(piece, expected)


def test_whole_tensors(stored):
    tensors, locations = stored
    assert locations.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert locations[name].shape == tuple(tensor.shape)
        assert torch.equal(read_tensor(locations[name]), tensor)


def test_ranks_put_a_tensor_together_without_reading_more(stored):
    tensors, locations = stored
    location = locations["cube.torch.float32"]
    size = -(-location.numel // 5)
    pieces = [read_flat_range(location, rank * size, (rank + 1) * size) for rank in range(5)]
    assert [len(piece) for piece in pieces] == [5, 5, 5, 5, 4]
    assert torch.equal(torch.cat(pieces), tensors["cube.torch.float32"].flatten())


def test_a_file_that_shrinks_is_an_error(tmp_path):
    save_file({"a": torch.arange(100.0)}, tmp_path / "model.safetensors")
    location = tensor_locations(tmp_path)["a"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EOFError, match="truncated"):
        read_flat_range(location, 0, 100)
    assert len(read_flat_range(location, 0, 98)) == 98
