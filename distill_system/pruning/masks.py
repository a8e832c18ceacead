"""Masks that act in the forward: a linear that multiplies its weight by a mask of zeros and ones, by swapping the module's class.

Names of parameters stay, so optimizers, checkpoints and ZeRO see the model that they know. The mask is a frozen boolean parameter beside the weight:
ZeRO-3 shards it like the weight and gathers both together, checkpoints keep it, and whatever an optimizer does to its master weights, the forward
never sees a masked weight.

Shapes: X any leading dimensions, O outputs, I inputs. A mask is `[O, I]` as the weight, or `[O, 1]` or `[1, I]` where whole lines go (a Conv1D's
weight and mask are `[I, O]`).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASK, SCORE = "_mask", "_score"  # behind the parameter's name
PRIVATE = (MASK, SCORE)


def masked(weight_OI: Tensor, mask: Tensor) -> Tensor:
    """The weight that the forward uses; as bytes, because multiplying by a bool goes a slow way on CPUs."""
    return weight_OI * mask.view(torch.uint8)


class MaskedProduct(torch.autograd.Function):
    """`x @ (w * m)^T + b`, which keeps w and m for the backward instead of their product: under ZeRO-3 kept products would be the whole model.

    The gradient of w is masked too, unless the module says `dense_gradient`: then it goes straight through, for scores that want to know what a masked weight would have done.
    A learned score s gets the gradient of its mask, dL/dm = dL/d(w m) * w (Sanh et al. 2020, https://arxiv.org/abs/2005.07683, equation 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_XI: Tensor,
        weight: Tensor,
        bias_O: Tensor | None,
        mask: Tensor,
        score: Tensor | None,
        transposed: bool,
        module: Any,
    ) -> Tensor:
        ctx.save_for_backward(x_XI, weight, mask, score)
        ctx.transposed, ctx.module, ctx.has_bias = transposed, module, bias_O is not None
        ctx.autocast = torch.is_autocast_enabled(x_XI.device.type)
        ctx.dtype = torch.get_autocast_dtype(x_XI.device.type) if ctx.autocast else None
        effective = masked(weight, mask)
        return F.linear(x_XI, effective.t() if transposed else effective, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient_XO,) = gradients
        x_XI, weight, mask, score = ctx.saved_tensors
        wants_x, wants_w, wants_b, _, wants_s, *_ = ctx.needs_input_grad
        with torch.autocast(gradient_XO.device.type, dtype=ctx.dtype, enabled=ctx.autocast):
            x_gradient = weight_gradient = bias_gradient = score_gradient = None
            if wants_x:
                effective = masked(weight, mask)
                x_gradient = gradient_XO @ (effective.t() if ctx.transposed else effective)
            if wants_w or wants_s:
                flat_NO, flat_NI = gradient_XO.flatten(0, -2), x_XI.flatten(0, -2)
                if flat_NO.dtype != flat_NI.dtype and not ctx.autocast:
                    flat_NI = flat_NI.to(flat_NO.dtype)
                whole = flat_NI.t() @ flat_NO if ctx.transposed else flat_NO.t() @ flat_NI
                whole = whole.to(weight.dtype)
                if wants_s:
                    score_gradient = (whole * weight).sum_to_size(score.shape).to(score.dtype)
                    if ctx.module.penalty is not None:
                        score_gradient += ctx.module.penalty(score)
                if wants_w:
                    weight_gradient = whole if ctx.module.dense_gradient else whole.mul_(mask.view(torch.uint8))
            if ctx.has_bias and wants_b:
                bias_gradient = gradient_XO.flatten(0, -2).sum(0).to(weight.dtype)
        x_gradient = None if x_gradient is None else x_gradient.to(x_XI.dtype)
        return x_gradient, weight_gradient, bias_gradient, None, score_gradient, None, None


class MaskedLinear(nn.Linear):
    """A Linear whose class was swapped."""

    weight_mask: nn.Parameter
    dense_gradient: bool = False
    penalty: Callable[[Tensor], Tensor] | None = None  # gradient of what pulls scores down

    def forward(self, input: Tensor) -> Tensor:
        score = getattr(self, "weight_score", None)
        return cast(
            Tensor,
            MaskedProduct.apply(input, self.weight, self.bias, self.weight_mask, score, False, self),
        )


@functools.cache
def _masked_conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    class MaskedConv1D(Conv1D):  # type: ignore[misc]
        """A Conv1D (GPT-2's linear, its weight `[I, O]`) whose class was swapped."""

        dense_gradient: bool = False
        penalty: Callable[[Tensor], Tensor] | None = None

        def forward(self, x: Tensor) -> Tensor:
            score = getattr(self, "weight_score", None)
            return cast(
                Tensor,
                MaskedProduct.apply(x, self.weight, self.bias, self.weight_mask, score, True, self),
            )

    return MaskedConv1D


def is_masked(module: nn.Module) -> bool:
    return "weight_mask" in module._parameters


def add_mask(module: nn.Module, shape: Iterable[int], *, learned: float | None = None) -> None:
    """Gives a Linear or Conv1D a mask of ones, or leaves the one it has if it is as large as the weight.

    Args:
        module: changed in place.
        shape: of the mask: the weight's, or with a 1 where it is the same along that axis.
        learned: learning rate of a trainable score beside the mask, over the phase's own; None: there is none.
    """
    weight = cast(Tensor, module.weight)
    rows, columns = shape
    if not is_masked(module):
        ones = torch.ones(rows, columns, dtype=torch.bool, device=weight.device)
        module.weight_mask = nn.Parameter(ones, requires_grad=False)
        module.__class__ = MaskedLinear if isinstance(module, nn.Linear) else _masked_conv1d()
    elif module.weight_mask.shape != (rows, columns):
        widened = module.weight_mask.data.expand(weight.shape).clone()
        module.weight_mask = nn.Parameter(widened, requires_grad=False)
    if learned is not None:
        score = nn.Parameter(torch.zeros_like(module.weight_mask, dtype=weight.dtype))
        score.lr_scale = learned  # type: ignore[attr-defined]
        score.decays = False  # type: ignore[attr-defined]
        module.weight_score = score


def masked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of all modules with a mask."""
    yield from ((name, module) for name, module in model.named_modules() if is_masked(module))


def is_private(name: str) -> bool:
    """Whether a tensor of the state belongs to the pruning and not to the model that is handed on."""
    return name.endswith(PRIVATE)


def keep_zeros(model: nn.Module, names: Iterable[str]) -> int:
    """Masks the weights that are zero already, so that training can't revive them; returns how many.

    Args:
        model: a model that was pruned before.
        names: of its matrices.
    """
    kept = 0
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        weight = cast(Tensor, module.weight)
        zero_OI = weight.detach() == 0
        count = int(zero_OI.sum())
        if count:
            add_mask(module, weight.shape)
            cast(Tensor, module.weight_mask).data.copy_(~zero_OI)
            kept += count
    return kept
