"""Masked linears: the product and every gradient against float64 autograd on the plain formula, in any form of mask, and what they keep in memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from distill_system.pruning.masks import add_mask, is_masked, is_private, keep_zeros, masked_modules


def module_of(kind: str, inputs: int = 5, outputs: int = 3, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(inputs, outputs, bias=bias) if kind == "linear" else Conv1D(outputs, inputs)
    return module.double()


def plain(module: nn.Module, x, weight, mask, bias):
    """The formula, with autograd through all of it."""
    effective = weight * mask
    return F.linear(x, effective if isinstance(module, nn.Linear) else effective.t(), bias)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("form", ["whole", "rows", "columns"])
@pytest.mark.parametrize("leading", [(4,), (2, 3)])
def test_product_and_gradients(kind, form, leading):
    module = module_of(kind)
    rows, columns = module.weight.shape
    add_mask(module, {"whole": (rows, columns), "rows": (rows, 1), "columns": (1, columns)}[form])
    torch.manual_seed(1)
    module.weight_mask.data = torch.rand(module.weight_mask.shape) > 0.4
    x = torch.randn(*leading, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in (module.weight, module.bias))
    twin = x.detach().clone().requires_grad_()
    expected = plain(module, twin, weight, module.weight_mask.double(), bias)
    given = module(x)
    assert torch.equal(given, expected)
    seed = torch.randn_like(given)
    given.backward(seed)
    expected.backward(seed)
    for own, theirs in ((x, twin), (module.weight, weight), (module.bias, bias)):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-12, atol=1e-14)
    assert (module.weight.grad[~module.weight_mask.expand_as(module.weight)] == 0).all()


def test_a_worked_value():
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, -3.0]]))
        linear.bias.fill_(0.5)
    add_mask(linear, (1, 2))
    linear.weight_mask.data = torch.tensor([[True, False]])
    y = linear(torch.tensor([[10.0, 100.0]]))
    assert y.item() == 20.5
    y.backward()
    assert linear.weight.grad.tolist() == [[10.0, 0.0]]


def test_a_dense_gradient_goes_straight_through():
    module = module_of("linear")
    add_mask(module, (3, 5))
    module.weight_mask.data.zero_()
    module.dense_gradient = True
    module(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    assert (module.weight.grad == 2).all()


@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (1, 5)])
def test_a_learned_score_hears_what_its_mask_does(shape):
    """dL/dm of y = x (w m)^T, by autograd on a floating mask."""
    module = module_of("linear")
    add_mask(module, shape, learned=10.0)
    module.weight_mask.data = torch.rand(shape) > 0.5
    mask = module.weight_mask.double().requires_grad_()
    x = torch.randn(4, 5, dtype=torch.float64)
    plain(module, x, module.weight.detach(), mask, module.bias.detach()).square().sum().backward()
    module(x).square().sum().backward()
    torch.testing.assert_close(module.weight_score.grad, mask.grad, rtol=1e-12, atol=1e-14)
    assert module.weight_score.lr_scale == 10.0
    assert not module.weight_score.decays


def test_a_penalty_is_added_to_the_scores_gradient():
    module = module_of("linear")
    add_mask(module, (3, 5), learned=1.0)
    x = torch.randn(4, 5, dtype=torch.float64)
    module(x).sum().backward()
    without = module.weight_score.grad.clone()
    module.weight_score.grad = None
    module.penalty = lambda score: torch.full_like(score, 0.25)
    module(x).sum().backward()
    torch.testing.assert_close(module.weight_score.grad, without + 0.25)


def test_frozen_parts_get_no_gradient():
    module = module_of("linear", bias=False)
    add_mask(module, (3, 5))
    module.weight.requires_grad_(False)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert module.weight.grad is None


def test_autocast_gives_what_a_linear_of_masked_weights_gives():
    torch.manual_seed(0)
    linear, reference = nn.Linear(8, 4), nn.Linear(8, 4)
    reference.load_state_dict(linear.state_dict())
    add_mask(linear, (4, 8))
    linear.weight_mask.data = torch.rand(4, 8) > 0.5
    reference.weight.data *= linear.weight_mask
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given, expected = linear(x), reference(x)
        assert given.dtype == torch.bfloat16
        assert torch.equal(given, expected)
    given.float().sum().backward()
    expected.float().sum().backward()
    torch.testing.assert_close(linear.weight.grad, reference.weight.grad * linear.weight_mask, rtol=1e-2, atol=1e-2)
    assert linear.weight.grad.dtype == torch.float32


def test_the_product_isn_t_kept_for_the_backward():
    """Under ZeRO-3 weights are given back after the forward; a kept product of each would be the whole model."""
    linear = nn.Linear(64, 64)
    add_mask(linear, (64, 64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(torch.randn(2, 64))
    floating = [tensor for tensor in kept if tensor.numel() == 64 * 64 and tensor.is_floating_point()]
    assert [tensor.data_ptr() for tensor in floating] == [linear.weight.data_ptr()]


def test_names_stay_and_private_ones_are_told():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    before = list(model.state_dict())
    add_mask(model[0], (3, 3), learned=1.0)
    assert [name for name in model.state_dict() if not is_private(name)] == before
    assert {name for name in model.state_dict() if is_private(name)} == {"0.weight_mask", "0.weight_score"}
    assert [name for name, _ in masked_modules(model)] == ["0"]
    assert not is_masked(model[2])


def test_a_line_mask_widens_where_a_whole_one_is_there():
    linear = nn.Linear(3, 2)
    add_mask(linear, (2, 1))
    linear.weight_mask.data = torch.tensor([[True], [False]])
    add_mask(linear, (2, 3))
    assert linear.weight_mask.tolist() == [[True] * 3, [False] * 3]


def test_zeros_stay_zero_through_training():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:2] = 0
    assert keep_zeros(model, ["0.weight", "2.weight"]) == 8
    assert not is_masked(model[2])  # nothing is zero there
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model[0].weight[:2] == 0).all()
    assert (model[0].weight[2:] != 0).all()
