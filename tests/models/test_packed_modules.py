"""Modules that compute from packed codes: the dense model's values to the bit, its outputs within rounding, a tile of weights at a time."""

import copy
import logging
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from distill_system.models import packed_modules as subject
from distill_system.models.grid import Granularity, OnGrid, grouped
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packed_modules import PackedEmbedding, PackedLinear, dequantized
from tests.models.on_grids import nearest, put, same

ROW, GROUP, TENSOR = Granularity("row"), Granularity("group", 8), Granularity("tensor")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Without kernels, but where a test puts one in."""
    monkeypatch.setitem(sys.modules, "distill_system.models.packed_kernels", None)


def put_kernels(monkeypatch, kernel_for) -> None:
    module = types.ModuleType("packed_kernels")
    module.kernel_for = kernel_for
    monkeypatch.setitem(sys.modules, "distill_system.models.packed_kernels", module)


def pair(
    kind: str = "linear", outputs=20, inputs=24, count=3, granularity=ROW, bias: bool = True, levels: bool = False
):
    """(a module with weights on a grid, the packed one)"""
    torch.manual_seed(0)
    if kind == "embedding":
        dense: nn.Module = nn.Embedding(outputs, inputs)
    else:
        dense = Conv1D(outputs, inputs) if kind == "conv1d" else nn.Linear(inputs, outputs, bias=bias)
    axis = 0 if kind == "conv1d" else 1
    weight_GN = grouped(dense.weight.detach(), granularity, axis)
    on = OnGrid(nearest(weight_GN, count, levels), granularity, axis)
    put(dense.weight, on, torch.randint(0, count, weight_GN.shape, dtype=torch.uint8))
    if getattr(dense, "bias", None) is not None:
        dense.bias.data.normal_()
    matrix = PackedMatrix.of(dense.weight.detach(), on)
    packed = PackedEmbedding(matrix) if kind == "embedding" else PackedLinear(matrix, dense.bias)
    return dense, packed


CASES = [
    ("linear", 2, ROW, {}),
    ("linear", 2, GROUP, {"levels": True}),
    ("linear", 3, ROW, {}),
    ("linear", 3, TENSOR, {"bias": False}),
    ("linear", 3, GROUP, {"levels": True}),
    ("linear", 8, GROUP, {}),
    ("linear", 16, GROUP, {}),
    ("linear", 200, ROW, {}),
    ("conv1d", 3, ROW, {}),
    ("conv1d", 16, GROUP, {}),
    ("conv1d", 2, TENSOR, {}),
]


@pytest.mark.parametrize("tile", [2**18, 24, 50, 1])
@pytest.mark.parametrize(("kind", "count", "granularity", "more"), CASES)
def test_linears_give_what_dense_ones_give(kind, count, granularity, more, tile, monkeypatch):
    monkeypatch.setattr(subject, "TILE", tile)
    dense, packed = pair(kind, count=count, granularity=granularity, **more)
    assert same(dequantized(packed), dense.weight.detach())
    assert packed.weight.is_contiguous()
    for shape in ((24,), (5, 24), (2, 3, 24), (0, 24)):
        x_XI = torch.randn(shape)
        found, expected = packed(x_XI), dense(x_XI)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        weight_OI = dense.weight.double() if kind == "linear" else dense.weight.double().t()
        exact = F.linear(x_XI.double(), weight_OI, None if dense.bias is None else dense.bias.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_product_by_hand():
    """Rows of codes 0 1 2 and 2 2 0 around 1, scales 0.5 and 2: [-0.5, 0, 0.5] and [2, 2, -2]; times [1, 10, 100], plus [0, 1000]."""
    weight = torch.tensor([[-0.5, 0.0, 0.5], [2.0, 2.0, -2.0]])
    on = OnGrid(nearest(weight, 3), ROW)
    packed = PackedLinear(PackedMatrix.of(weight, on), nn.Parameter(torch.tensor([0.0, 1000.0])))
    assert packed.packed.tolist() == [[0 + 3 + 2 * 9], [2 + 2 * 3]]
    assert packed(torch.tensor([1.0, 10.0, 100.0])).tolist() == [49.5, 822.0]


def test_no_more_than_a_tile_has_values(monkeypatch):
    _, packed = pair(outputs=1000, inputs=64)
    monkeypatch.setattr(subject, "TILE", 6400)
    sizes = []
    values = PackedMatrix.values
    monkeypatch.setattr(PackedMatrix, "values", lambda self, rows: sizes.append(values(self, rows)) or sizes[-1])
    packed(torch.randn(3, 64))
    assert [tuple(part.shape) for part in sizes] == [(100, 64)] * 10


@pytest.mark.parametrize("granularity", [ROW, GROUP])
@pytest.mark.parametrize("count", [2, 3, 7, 16, 256])
def test_embeddings_give_rows_to_the_bit(count, granularity, monkeypatch):
    dense, packed = pair("embedding", outputs=50, count=count, granularity=granularity)
    index = torch.tensor([[3, 0, 49, 3], [7, 7, 7, 1]])
    monkeypatch.setattr(PackedMatrix, "dense", lambda self: pytest.fail("the whole table had values"))
    assert same(packed(index), dense(index).detach())
    assert same(packed(index.int()), dense(index).detach())
    assert packed(index[:, :0]).shape == (2, 0, 24)
    assert packed(torch.tensor(5)).shape == (24,)
    for wrong in (-1, 50):
        with pytest.raises(IndexError):
            packed(torch.tensor([wrong]))


def test_what_modules_say_of_themselves():
    _, linear = pair(outputs=20, inputs=24)
    _, turned = pair("conv1d", outputs=20, inputs=24)
    _, table = pair("embedding", outputs=20, inputs=24)
    assert (linear.in_features, linear.out_features, linear.weight.shape) == (24, 20, (20, 24))
    assert (turned.nx, turned.nf, turned.weight.shape) == (24, 20, (24, 20))
    assert (table.num_embeddings, table.embedding_dim, table.weight.dtype) == (20, 24, torch.float32)
    assert "levels=3, granularity=row" in repr(linear)
    assert {name for name, _ in linear.named_buffers()} == {"packed", "scale", "zero"}
    assert [name for name, _ in linear.named_parameters()] == ["bias"]


def test_the_state_is_that_of_the_dense_module():
    for kind in ("linear", "conv1d", "embedding"):
        dense, packed = pair(kind)
        state, expected = packed.state_dict(), dense.state_dict()
        assert state.keys() == expected.keys()
        assert all(same(state[name], tensor) for name, tensor in expected.items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        packed.load_state_dict(state)  # nothing can be loaded into codes


def test_copies_are_whole_and_their_own():
    dense, packed = pair()
    x_NI = torch.randn(2, 24)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert same(copied.weight, dense.weight.detach())
        copied.scale.zero_()
        assert not copied.weight.any()
    assert same(packed.weight, dense.weight.detach())
    assert torch.equal(packed(x_NI), packed.plain(x_NI))


def test_gradients_reach_the_input():
    dense, packed = pair()
    x_NI = torch.randn(2, 24, requires_grad=True)
    packed(x_NI).square().sum().backward()
    found, x_NI.grad = x_NI.grad.clone(), None
    dense(x_NI).square().sum().backward()
    torch.testing.assert_close(found, x_NI.grad, rtol=1e-5, atol=1e-4)


def test_other_types():
    dense, packed = pair()
    x_NI = torch.randn(2, 24)
    torch.testing.assert_close(packed.double()(x_NI.double()), dense.double()(x_NI.double()))
    half = packed.bfloat16()(x_NI.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), dense.float()(x_NI), rtol=0.05, atol=0.2)
    dense, packed = pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x_NI).dtype == torch.bfloat16


def test_a_kernel_computes_where_there_is_one(monkeypatch):
    made = []

    def kernel_for(module):
        made.append(module)
        return lambda x_XI: module.plain(x_XI) + 1

    put_kernels(monkeypatch, kernel_for)
    _, packed = pair()
    x_NI = torch.randn(2, 24)
    for _ in range(2):
        assert torch.equal(packed(x_NI), packed.plain(x_NI) + 1)
    assert made == [packed]
    x_NI.requires_grad_()
    assert torch.equal(packed(x_NI), packed.plain(x_NI))
    with torch.no_grad():
        assert torch.equal(packed(x_NI), packed.plain(x_NI) + 1)
        packed.double()
        assert torch.equal(packed(x_NI.double()), packed.plain(x_NI.double()) + 1)
        assert made == [packed, packed]  # its tensors were others
        other = copy.deepcopy(packed)
        other(x_NI.double())
        assert made[-1] is other


def test_a_kernel_that_fails_is_told_once_and_not_asked_again(monkeypatch, caplog):
    calls = []

    def fail(*_):
        calls.append(1)
        raise RuntimeError("no such instruction")

    _, packed = pair()
    x_NI = torch.randn(2, 24)
    for kernel_for, word in [(lambda module: fail, "failed"), (fail, "could be made"), (lambda module: None, "")]:
        put_kernels(monkeypatch, kernel_for)
        packed.float()  # forgets the kernel
        caplog.clear()
        calls.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert torch.equal(packed(x_NI), packed.plain(x_NI))
        assert len(calls) == len(caplog.messages) == (1 if word else 0)
        assert all(word in message for message in caplog.messages)
