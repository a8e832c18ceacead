"""Block-sparse linears: equal to the dense ones, whatever lies in front of the features, and swapped in a model without changing its outputs."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from distill_system.export.blocks import BlockSparseLinear, sparsify
from distill_system.export.dense import named_tensors
from distill_system.export.sparse import blocks_of, read_tensors, write_sparse
from tests.models import images, tiny


def without_blocks(weight: torch.Tensor, block: tuple[int, int], kept: float, seed: int = 0) -> None:
    shape = (weight.shape[0] // block[0], weight.shape[1] // block[1])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < kept
    with torch.no_grad():
        weight.mul_(mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)).add_(0.0)


def test_by_hand():
    """[[1, 2], [0, 0], [0, 0]] has one block of 1x2 that is kept: (3, 4) gives 1*3 + 2*4 = 11 and the biases."""
    linear = nn.Linear(2, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2], [0, 0], [0, 0]]))
        linear.bias.copy_(torch.tensor([0.5, 6, 7]))
    sparse = BlockSparseLinear.from_dense(linear, (1, 2))
    assert sparse(torch.tensor([3.0, 4])).tolist() == [11.5, 6, 7]
    assert sparse.values_Kwh.shape == (1, 2, 1)
    assert "kept=1 of 3" in repr(sparse)


@given(
    block=st.sampled_from([(1, 1), (4, 1), (1, 4), (4, 8), (16, 16)]),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    leading=st.sampled_from([(), (1,), (5,), (2, 3), (0,), (2, 0, 3)]),
    kept=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 3),
)
def test_gives_what_the_dense_one_gives(block, sides, leading, kept, bias, transposed, seed):
    outputs, inputs = sides[0] * block[0], sides[1] * block[1]
    torch.manual_seed(seed)
    if transposed:
        dense, block = Conv1D(outputs, inputs), block[::-1]
        nn.init.normal_(dense.bias)
    else:
        dense = nn.Linear(inputs, outputs, bias=bias)
    dense.double()
    without_blocks(dense.weight, block, kept, seed)
    sparse = BlockSparseLinear.from_dense(dense, block)
    x = torch.randn(*leading, inputs, dtype=torch.float64)
    expected = dense(x)
    for _ in range(2):  # the second time too: nothing is added to the bias itself
        torch.testing.assert_close(sparse(x), expected.detach(), rtol=1e-12, atol=1e-12)


def test_in_float32_at_the_size_that_is_measured():
    torch.manual_seed(0)
    dense = nn.Linear(1024, 1024)
    without_blocks(dense.weight, (32, 32), 0.1)
    sparse = BlockSparseLinear.from_dense(dense, (32, 32))
    x = torch.randn(32, 1024)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), F.linear(x, dense.weight, dense.bias), rtol=0, atol=1e-5)
    assert sum(p.nbytes for p in sparse.parameters()) < 0.13 * dense.weight.nbytes


@pytest.mark.parametrize("block", [(3, 4), (4, 5), (0, 4), (16, 4)])
def test_blocks_that_do_not_divide_are_refused(block):
    with pytest.raises(ValueError, match=rf"blocks of {block[0]}x{block[1]} don't divide a weight of shape \[8, 12\]"):
        BlockSparseLinear.from_dense(nn.Linear(12, 8), block)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "vit"])
def test_a_model_read_from_a_sparse_folder_runs_with_its_blocks(architecture, tmp_path):
    if architecture == "vit":
        model, inputs = images.build("vit"), images.batch()
    else:
        model, tokenizer = tiny.build(architecture)
        inputs = tiny.batch(tokenizer)
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not module.weight.shape[0] % 8 and not module.weight.shape[1] % 8
    ]
    for i, name in enumerate(names):
        without_blocks(model.get_parameter(name), (8, 8), 0.3, i)
    write_sparse(tmp_path, named_tensors(model), dict.fromkeys(names, (8, 8)), model.config, None)
    expected = tiny.logits(model, inputs)
    fresh = copy.deepcopy(model)
    nn.init.zeros_(fresh.get_parameter(names[0]))
    fresh.load_state_dict(read_tensors(tmp_path), strict=True)
    swapped = sparsify(fresh, blocks_of(tmp_path))
    assert len(swapped) > 5
    assert all(isinstance(fresh.get_submodule(name), BlockSparseLinear) for name in swapped)
    torch.testing.assert_close(tiny.logits(fresh, inputs), expected, rtol=0, atol=1e-5)


def test_a_name_that_is_no_linears_weight_is_refused_and_nothing_is_swapped():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    for blocks, words in [
        ({}, "no weight is named"),
        ({"0.weight": (4, 4), "1.weight": (4, 4)}, "1.weight is no weight of a linear layer"),
        ({"0.weight": (4, 4), "0.wieght": (4, 4)}, r"did you mean '0\.weight'"),
        ({"0.weight": (4, 3)}, "don't divide"),
    ]:
        with pytest.raises(ValueError, match=words):
            sparsify(model, blocks)
        assert type(model[0]) is nn.Linear
