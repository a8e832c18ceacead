"""Inputs of quantized linears at few bits, with a step for each linear: learned by gradients (LSQ, Esser et al. 2019,
https://arxiv.org/abs/1902.08153), or a running range of what was seen (Jacob et al. 2017, https://arxiv.org/abs/1712.05877).

Differs from the papers in: symmetric codes of two's complement for all inputs; no scaling of the step's gradient, which Adam would undo; one range for
all ranks, the largest that any of them saw.

Shapes: X any shape.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from distill_system.models.input_steps import limits, quantized_input
from distill_system.signals import real_inputs

STEP = "input_step"  # beside the weight: a parameter where it is learned, else a buffer
DECAY = 0.9  # of the running range


class InputRounding(torch.autograd.Function):
    """Rounds to multiples of a step; the gradient passes where nothing was clipped, and the step gets LSQ's (equation 3)."""

    @staticmethod
    def forward(ctx: Any, x_X: Tensor, step_1: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x_X, step_1)
        ctx.bits = bits
        return quantized_input(x_X, step_1.to(x_X.dtype).abs(), bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (upstream_X,) = gradients
        x_X, step_1 = ctx.saved_tensors
        low, high = limits(ctx.bits)
        ratio_X = x_X / step_1.to(x_X.dtype).abs()
        inside_X = (ratio_X >= low) & (ratio_X <= high)
        step_gradient = None
        if ctx.needs_input_grad[1]:
            slope_X = torch.where(inside_X, ratio_X.round() - ratio_X, ratio_X.clamp(low, high))
            step_gradient = (upstream_X * slope_X).sum().view(1).to(step_1.dtype) * step_1.sign()
        return torch.where(inside_X, upstream_X, 0.0), step_gradient, None


class Activations:
    """Quantizes the inputs of all linears of a model.

    Args:
        bits: of a code.
        learned: whether steps are trained; else they follow a running range.
        scale_lr: learning rate of the steps, over the phase's own.
    """

    def __init__(self, bits: int, *, learned: bool, scale_lr: float = 1.0) -> None:
        self.bits, self.learned, self.scale_lr = bits, learned, scale_lr
        self.watching = False  # the inputs are only looked at, and pass as they are
        self.rows_B: Tensor | None = None  # bool: rows of the next forward that aren't filler; None: all
        self._keep_BT: Tensor | None = None  # real tokens of the present forward

    def follow(self, model: nn.Module) -> None:
        """Learns from each forward of the model which tokens are real: how far rows are padded hangs on which rows a rank has, and must change no step."""

        def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            mask_BT = named.get("attention_mask")
            keep = None if mask_BT is None or mask_BT.dim() != 2 else mask_BT.bool()
            if self.rows_B is not None:
                keep = self.rows_B[:, None] if keep is None else keep & self.rows_B[:, None]
            self._keep_BT = keep

        model.register_forward_pre_hook(note, with_kwargs=True)

    def prepare(self, module: nn.Module) -> None:
        step_1 = torch.ones(1)
        if self.learned:
            parameter: Any = nn.Parameter(step_1)
            parameter.lr_scale, parameter.decays = self.scale_lr, False
            module.register_parameter(STEP, parameter)
        else:
            module.register_buffer(STEP, step_1)
        module.__dict__["seen"] = None

    def __call__(self, module: Any, x_X: Tensor) -> Tensor:
        if self.watching or (module.training and not self.learned):
            self._look(module, x_X.detach())
        if self.watching:
            return x_X
        return cast(Tensor, InputRounding.apply(x_X, module.input_step, self.bits))

    def _look(self, module: Any, x_X: Tensor) -> None:
        """Keeps [largest |x|, sum of |x|, number] of real tokens; of all, where they can't be told (an expert's share of the tokens)."""
        real = None if self._keep_BT is None else real_inputs(x_X, self._keep_BT)
        size_X = (x_X if real is None else real).float().abs()
        if not size_X.numel():
            return
        told = torch.stack([size_X.max(), size_X.sum(), size_X.new_tensor(float(size_X.numel()))])
        before = module.seen
        module.seen = (
            told if before is None else torch.cat([torch.maximum(before[:1], told[:1]), before[1:] + told[1:]])
        )

    def first_step(self, largest: float, mean: float) -> float:
        """The step to begin with: LSQ's 2 mean|x| / sqrt(Qp) where it is learned, else such that the largest input fits."""
        high = limits(self.bits)[1]
        return max(2 * mean / high**0.5 if self.learned else largest / high, 1e-8)

    def next_step(self, step: float, largest: float) -> float:
        """The running range, moved towards what a step saw."""
        return max(DECAY * step + (1 - DECAY) * largest / limits(self.bits)[1], 1e-8)
