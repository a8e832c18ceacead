"""Swapped modules: products, gradients, masks, mixing, embeddings; with a quantizer that can be worked out by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from distill_system.pruning.masks import add_mask
from distill_system.quantization.base import Moment
from distill_system.quantization.swap import QuantizedEmbedding, Site, quantized_modules, swap
from tests.quantization.toys import Halves, Signs


def swapped(module, quantizer=None, **site):
    quantizer, moment = quantizer or Signs(), site.pop("moment", Moment())
    swap(module, Site(quantizer, moment, 0, **site))
    return module, moment


def linear(rows=3, columns=4):
    torch.manual_seed(0)
    return nn.Linear(rows if rows > 3 else columns, rows).double()


def test_the_class_is_swapped_and_names_stay():
    module, _ = swapped(linear())
    assert isinstance(module, nn.Linear)
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias", "weight_factor"]
    assert module.weight_factor.shape == (3, 1)
    assert (module.weight_factor.lr_scale, module.weight_factor.decays) == (1.0, False)
    assert [name for name, _ in quantized_modules(nn.Sequential(module, nn.ReLU()))] == ["0"]


def test_forward_by_hand():
    module, _ = swapped(nn.Linear(2, 1, bias=False))
    module.weight.data.copy_(torch.tensor([[0.3, -0.1]]))
    assert module(torch.tensor([[2.0, 5.0]])).item() == pytest.approx(0.5 * (2 - 5))


@pytest.mark.parametrize("kind", ["tensor", "row", "group"])
@pytest.mark.parametrize("conv1d", [False, True])
def test_gradients_are_the_quantizer_s(kind, conv1d):
    torch.manual_seed(1)
    module = Conv1D(3, 4).double() if conv1d else nn.Linear(4, 3).double()
    swap(module, Site(Signs(kind), Moment(), 0, input_axis=0 if conv1d else 1))
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, 3, dtype=torch.float64)
    module(x).backward(upstream)

    weight_OI = (module.weight.t() if conv1d else module.weight).detach()
    groups = {"tensor": (1, 12), "row": (3, 4), "group": (6, 2)}[kind]
    factor_G1 = module.weight_factor.detach().clone().requires_grad_()
    sign_OI = weight_OI.sign()
    effective_OI = (factor_G1 * sign_OI.reshape(groups)).view(3, 4)
    effective_OI.retain_grad()
    x_again = x.detach().clone().requires_grad_()
    y = F.linear(x_again, effective_OI, module.bias.detach())
    y.backward(upstream)
    torch.testing.assert_close(module(x), y)
    torch.testing.assert_close(x.grad, x_again.grad)
    torch.testing.assert_close(module.weight_factor.grad, factor_G1.grad)
    wanted = 2 * effective_OI.grad
    torch.testing.assert_close(module.weight.grad, wanted.t() if conv1d else wanted)
    torch.testing.assert_close(module.bias.grad, upstream.flatten(0, 1).sum(0))


def test_masked_weights_stay_zero_and_get_no_gradient():
    module = nn.Linear(4, 3).double()
    add_mask(module, (3, 4))
    kept = torch.rand(3, 4) > 0.5
    module.weight_mask.data.copy_(kept)
    swapped(module)
    x = torch.randn(5, 4, dtype=torch.float64)
    module(x).sum().backward()
    assert torch.equal(module.weight.grad[~kept], torch.zeros(int((~kept).sum()), dtype=torch.float64))
    assert module.weight.grad[kept].abs().min() > 0
    effective = module.site.effective(
        module.weight, module.weight_mask, {"factor": module.weight_factor}, training=True
    )
    assert torch.equal(effective == 0, ~kept)


def test_mixing_goes_over_from_full_precision():
    module, moment = swapped(linear())
    plain = copy.deepcopy(module)
    plain.__class__ = nn.Linear
    x = torch.randn(2, 4, dtype=torch.float64)
    moment.mixing = 1.0
    whole = module(x)
    moment.mixing = 0.0
    torch.testing.assert_close(module(x), plain(x))
    module(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(module.weight.grad, plain.weight.grad)
    assert module.weight_factor.grad.abs().max() == 0
    moment.mixing = 0.25
    torch.testing.assert_close(module(x), 0.75 * plain(x) + 0.25 * whole)


def test_embeddings_quantize_the_rows_they_look_up():
    table = nn.Embedding(10, 4, padding_idx=0)
    dense = copy.deepcopy(table)
    swapped(table, Halves())
    assert isinstance(table, QuantizedEmbedding)
    ids = torch.tensor([[1, 2, 0], [9, 1, 1]])
    assert torch.equal(table(ids), (dense(ids) * 2).round().clamp(-4, 4) / 2)
    table(ids).sum().backward()
    dense(ids).sum().backward()
    assert torch.equal(table.weight.grad, dense.weight.grad)


def test_an_embedding_s_quantizer_may_keep_nothing():
    with pytest.raises(ValueError, match="no quantizer for embeddings"):
        swapped(nn.Embedding(3, 4), Signs())
    with pytest.raises(ValueError, match="no quantizer for embeddings"):
        swapped(nn.Embedding(3, 4), Halves("tensor"))


def test_frozen_weights_get_no_gradient():
    module, _ = swapped(linear())
    module.weight.requires_grad_(False)
    x = torch.randn(2, 4, dtype=torch.float64)
    module(x).sum().backward()
    assert module.weight.grad is None
    assert module.weight_factor.grad is not None


def test_under_autocast():
    module, _ = swapped(nn.Linear(8, 4))
    x = torch.randn(3, 8)
    exact = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2)
