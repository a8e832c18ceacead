"""Compiled products with packed weights: values to the bit, sums against float64, every layout, and what happens without a compiler."""

import logging
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.models import packed_kernels
from distill_system.models.grid import Granularity, Grid, OnGrid, grouped
from distill_system.models.packed_kernels import FEW, compiled, kernel
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packed_modules import PackedLinear
from distill_system.models.packing import pack_rows

COUNTS = (2, 3, 4, 5, 8, 13, 16, 32, 64, 128, 255, 256)


def matrix(outputs, inputs, count, kind="row", size=4, *, levels=False, one_zero=False, seed=0):
    """(packed rows, grid, granularity, dense weight) of random codes."""
    generator = torch.Generator().manual_seed(seed)
    granularity = Granularity(kind, size)
    groups = granularity.shape(outputs, inputs)[0]
    if levels:
        grid = Grid(count, levels_GL=torch.randn(groups, count, generator=generator))
    else:
        zero = (
            torch.full((1, 1), 0.5) if count == 2 else torch.randint(0, count, (1 if one_zero else groups, 1)).float()
        )
        grid = Grid(count, torch.rand(groups, 1, generator=generator) + 0.1, zero)
    code_OI = torch.randint(0, count, (outputs, inputs), generator=generator, dtype=torch.uint8)
    weight_OI = grid.decode(grouped(code_OI, granularity)).view(outputs, inputs)
    return pack_rows(code_OI, count), grid, granularity, weight_OI


def made(packed, inputs, count, grid, granularity):
    product = kernel(packed, inputs, count, grid, granularity)
    assert product is not None, "the kernels could not be compiled here"
    return product


def close(found, x, weight, bias=None):
    wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    scale = max(1e-30, float((x.abs().double() @ weight.abs().double().t()).max()))
    assert float((found.double() - wanted).abs().max()) <= 1e-6 * scale


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["tensor", "row", "group"])
def test_values_to_the_bit_and_sums_against_float64(count, kind):
    packed, grid, granularity, weight_OI = matrix(37, 132, count, kind, 12, one_zero=kind == "row")
    product = made(packed, 132, count, grid, granularity)
    assert torch.equal(product.decode(0, 37), weight_OI)
    assert torch.equal(product.decode(5, 9), weight_OI[5:9])
    bias_O = torch.randn(37)
    for rows in (1, 3, FEW, FEW + 1, 150):
        x_NI = torch.randn(rows, 132)
        for product.wide in (True, False):  # as if vectors were long, and short
            close(product(x_NI, bias_O), x_NI, weight_OI, bias_O)
            close(product(x_NI), x_NI, weight_OI)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", ["tensor", "row", "group"])
def test_levels_told_one_by_one(count, kind):
    packed, grid, granularity, weight_OI = matrix(19, 60, count, kind, 10, levels=True)
    product = made(packed, 60, count, grid, granularity)
    assert torch.equal(product.decode(0, 19), weight_OI)
    x_NI = torch.randn(2, 60)
    close(product(x_NI), x_NI, weight_OI)


@settings(max_examples=150, deadline=None)
@given(
    outputs=st.integers(1, 40),
    parts=st.integers(1, 9),
    size=st.integers(1, 40),
    count=st.sampled_from(COUNTS),
    kind=st.sampled_from(["tensor", "row", "group"]),
    rows=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_any_size(outputs, parts, size, count, kind, rows, seed):
    inputs = parts * size
    packed, grid, granularity, weight_OI = matrix(outputs, inputs, count, kind, size, seed=seed)
    product = made(packed, inputs, count, grid, granularity)
    assert torch.equal(product.decode(0, outputs), weight_OI)
    x_NI = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    found = product(x_NI)
    assert found.shape == (rows, outputs)
    if rows:
        close(found, x_NI, weight_OI)


def test_by_hand():
    # Codes 2, 0, 1 of three levels: 2 + 0*3 + 1*9 = 11; values 0.5 * (code - 1) = 0.5, -0.5, 0.
    packed = torch.tensor([[11]], dtype=torch.uint8)
    grid = Grid(3, torch.tensor([[0.5]]), torch.tensor([[1.0]]))
    product = made(packed, 3, 3, grid, Granularity("row"))
    assert product(torch.tensor([4.0, 3.0, 9.0]), torch.tensor([10.0])).tolist() == [0.5 * 4 - 0.5 * 3 + 10]


def test_rows_do_not_hang_on_their_neighbours_or_on_threads():
    packed, grid, granularity, _ = matrix(300, 640, 3)
    product = made(packed, 640, 3, grid, granularity)
    x_NI = torch.randn(7, 640)
    threads = torch.get_num_threads()
    together = product(x_NI)
    torch.set_num_threads(2)
    try:
        again = product(x_NI)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, again)
    assert torch.equal(together[3], product(x_NI[3]))


def test_leading_dimensions_and_strides():
    packed, grid, granularity, weight_OI = matrix(8, 20, 16, "group", 5)
    product = made(packed, 20, 16, grid, granularity)
    x = torch.randn(20, 3, 2).permute(2, 1, 0)
    assert product(x).shape == (2, 3, 8)
    close(product(x).reshape(-1, 8), x.reshape(-1, 20), weight_OI)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packed": torch.zeros(4, 9, dtype=torch.uint8)}, "must be torch.uint8 of 4 bytes a row"),
        ({"packed": torch.zeros(4, 4)}, "codes of torch.float32"),
        ({"count": 1}, "1 levels, must be 2 to 256"),
        ({"grid": Grid(3, torch.ones(3, 1), torch.ones(1, 1))}, "a grid of shape"),
        ({"grid": Grid(3, torch.ones(4, 1), torch.ones(2, 1))}, "a grid of shape"),
    ],
)
def test_what_is_not_there_is_not_read(change, words):
    packed, grid, granularity, _ = matrix(4, 20, 3)
    values = {"packed": packed, "count": 3, "grid": grid} | change
    with pytest.raises(ValueError, match=words):
        kernel(values["packed"], 20, values["count"], values["grid"], granularity)


def test_inputs_that_do_not_fit():
    packed, grid, granularity, _ = matrix(4, 20, 3)
    product = made(packed, 20, 3, grid, granularity)
    for x in (torch.randn(2, 19), torch.randn(2, 20).double(), torch.randn(2, 20).half()):
        with pytest.raises(ValueError, match=r"must be float32 \[..., 20\]"):
            product(x)


def module_of(outputs=24, inputs=30):
    packed, grid, granularity, _ = matrix(outputs, inputs, 3)
    bias = torch.nn.Parameter(torch.randn(outputs), requires_grad=False)
    return PackedLinear(PackedMatrix(packed, inputs, OnGrid(grid, granularity)), bias)


def test_a_module_uses_it_where_it_can_and_the_plain_path_elsewhere():
    module = module_of()
    x = torch.randn(5, 30)
    torch.testing.assert_close(module(x), module.plain(x), rtol=1e-5, atol=1e-5)
    assert "kernel" in module.__dict__
    half = module_of().half()
    assert torch.equal(half(x.half()), half.plain(x.half()))
    wanted = x.clone().requires_grad_()
    module(wanted).sum().backward()
    torch.testing.assert_close(wanted.grad, module.weight.sum(0).expand(5, 30))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has no library yet, and an empty cache."""
    packed_kernels._library.cache_clear()
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    yield monkeypatch
    packed_kernels._library.cache_clear()


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_the_plain_path_does_the_work(fresh, caplog, compiler):
    fresh.setenv("CXX", compiler)
    module = module_of()
    x = torch.randn(2, 30)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(module(x), module.plain(x))
    assert len([r for r in caplog.records if "the slow way" in r.message]) == 1


def test_it_can_be_switched_off(fresh, caplog):
    fresh.setenv(packed_kernels.SWITCH, "0")
    packed, grid, granularity, _ = matrix(4, 20, 3)
    assert kernel(packed, 20, 3, grid, granularity) is None
    assert not caplog.records


def test_code_that_multiplies_wrongly_is_not_used(monkeypatch, caplog):
    def off_by_one(library):
        raise RuntimeError("what was compiled multiplies 3 levels wrongly")

    packed, grid, granularity, _ = matrix(4, 20, 3)
    assert kernel(packed, 20, 3, grid, granularity) is not None  # so that it is compiled
    packed_kernels._library.cache_clear()
    monkeypatch.setattr(packed_kernels, "_prove", off_by_one)
    with caplog.at_level(logging.WARNING):
        assert kernel(packed, 20, 3, grid, granularity) is None
    packed_kernels._library.cache_clear()
    assert "multiplies 3 levels wrongly" in caplog.text


def test_it_is_compiled_once(fresh, tmp_path):
    first = compiled(("-O1",))
    written = os.stat(first).st_mtime_ns
    assert compiled(("-O1",)) == first
    assert os.stat(first).st_mtime_ns == written
    assert [path.suffix for path in (tmp_path / "kernels").iterdir() if path.suffix != ".lock"] == [".so"]
