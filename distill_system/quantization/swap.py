"""Linears and embeddings that compute with quantized weights while they train, by swapping the module's class: names of parameters stay.

What a quantizer keeps of a weight lies beside it (`weight_step`, `weight_positive`): as parameters where it is trained, else as buffers. Optimizers,
checkpoints and ZeRO see the model that they know, with a few small tensors more.

Shapes: X any leading dimensions, O outputs, I inputs; G groups, N weights of a group.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_system.models.grid import grouped, ungrouped
from distill_system.quantization.base import Draw, Given, Moment, Quantizer

PREFIX = "weight_"  # of a quantizer's tensors beside the weight


@dataclass
class Site:
    """What a swapped module knows of its quantization.

    Attributes:
        quantizer: shared by all modules that are quantized alike.
        moment: shared by all modules of the model.
        number: of the weight in the model; modules that share a weight share it.
        input_axis: 0 in a Conv1D.
        activations: quantizer of the inputs, or None.
    """

    quantizer: Quantizer
    moment: Moment
    number: int
    input_axis: int = 1
    activations: Any = None

    def draw(self, *, training: bool) -> Draw:
        return Draw(self.moment.seed, self.moment.step, self.number, training)

    def given(self, tensors: tuple[Tensor, ...]) -> Given:
        return dict(zip(self.quantizer.names, tensors, strict=True))

    def effective(self, weight: Tensor, mask: Tensor | None, given: Given, *, training: bool) -> Tensor:
        """The matrix `[O, I]` (of a Conv1D `[I, O]`) that the forward uses."""
        kept = weight if mask is None else weight * mask.view(torch.uint8)
        weight_GN = grouped(kept, self.quantizer.granularity, self.input_axis)
        value_GN = self.quantizer.quantize(weight_GN, given, self.moment, self.draw(training=training))
        if self.moment.mixing < 1:
            value_GN = torch.lerp(weight_GN, value_GN, self.moment.mixing)
        return ungrouped(value_GN, weight.shape, self.input_axis)

    def gradients(
        self,
        upstream: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        given: Given,
        *,
        training: bool,
        dense: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the weight and of what the quantizer trains, from the gradient of `effective`; `dense`: of masked weights too."""
        kept = weight if mask is None else weight * mask.view(torch.uint8)
        weight_GN = grouped(kept, self.quantizer.granularity, self.input_axis)
        upstream_GN = grouped(upstream, self.quantizer.granularity, self.input_axis)
        draw, mixing = self.draw(training=training), self.moment.mixing
        inner_GN, own = self.quantizer.gradients(upstream_GN, weight_GN, given, self.moment, draw)
        if mixing < 1:
            inner_GN = torch.lerp(upstream_GN, inner_GN, mixing)
            own = {name: gradient * mixing for name, gradient in own.items()}
        gradient = ungrouped(inner_GN, weight.shape, self.input_axis)
        return gradient if mask is None or dense else gradient * mask.view(torch.uint8), own


class QuantizedProduct(torch.autograd.Function):
    """`x @ q(w)^T + b`, which keeps w and quantizes again for the backward: under ZeRO-3 kept products would be the whole model."""

    @staticmethod
    def forward(
        ctx: Any, x_XI: Tensor, weight: Tensor, bias_O: Tensor | None, mask: Tensor | None, module: Any, *own: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_XI, weight, mask, *own)
        ctx.module, ctx.has_bias, ctx.training = module, bias_O is not None, module.training
        ctx.autocast = torch.is_autocast_enabled(x_XI.device.type)
        ctx.dtype = torch.get_autocast_dtype(x_XI.device.type) if ctx.autocast else None
        site: Site = module.site
        matrix = site.effective(weight, mask, site.given(own), training=module.training)
        return F.linear(x_XI, matrix if site.input_axis == 1 else matrix.t(), bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient_XO,) = gradients
        x_XI, weight, mask, *own = ctx.saved_tensors
        site: Site = ctx.module.site
        wants_x, wants_w, wants_b = ctx.needs_input_grad[:3]
        wants_own = any(ctx.needs_input_grad[5:])
        given = site.given(tuple(own))
        x_gradient = weight_gradient = bias_gradient = None
        found: dict[str, Tensor] = {}
        with torch.autocast(gradient_XO.device.type, dtype=ctx.dtype, enabled=ctx.autocast):
            if wants_x:
                matrix = site.effective(weight, mask, given, training=ctx.training)
                x_gradient = (gradient_XO @ (matrix if site.input_axis == 1 else matrix.t())).to(x_XI.dtype)
            flat_NO = gradient_XO.flatten(0, -2)
            if wants_w or wants_own:
                flat_NI = x_XI.flatten(0, -2)
                if flat_NO.dtype != flat_NI.dtype and not ctx.autocast:
                    flat_NI = flat_NI.to(flat_NO.dtype)
                upstream = flat_NO.t() @ flat_NI if site.input_axis == 1 else flat_NI.t() @ flat_NO
                upstream = upstream.to(weight.dtype)
                dense = getattr(
                    ctx.module, "dense_gradient", False
                )  # a score wants to know what masked weights would do
                weight_gradient, found = site.gradients(
                    upstream, weight, mask, given, training=ctx.training, dense=dense
                )
            if ctx.has_bias and wants_b:
                bias_gradient = flat_NO.sum(0).to(weight.dtype)
        own_gradients = [
            found[name].to(tensor.dtype) if needed else None
            for name, tensor, needed in zip(site.quantizer.names, own, ctx.needs_input_grad[5:], strict=True)
        ]
        return x_gradient, weight_gradient if wants_w else None, bias_gradient, None, None, *own_gradients


def own_tensors(module: Any) -> tuple[Tensor, ...]:
    return tuple(getattr(module, PREFIX + name) for name in module.site.quantizer.names)


def _product(module: Any, x_XI: Tensor) -> Tensor:
    if module.site.activations is not None:
        x_XI = module.site.activations(module, x_XI)
    mask = module._parameters.get("weight_mask")
    return cast(Tensor, QuantizedProduct.apply(x_XI, module.weight, module.bias, mask, module, *own_tensors(module)))


class QuantizedLinear(nn.Linear):
    """A Linear whose class was swapped."""

    site: Site

    def forward(self, input: Tensor) -> Tensor:
        return _product(self, input)


@functools.cache
def quantized_conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    class QuantizedConv1D(Conv1D):  # type: ignore[misc]
        """A Conv1D (GPT-2's linear, its weight `[I, O]`) whose class was swapped."""

        site: Site

        def forward(self, x: Tensor) -> Tensor:
            return _product(self, x)

    return QuantizedConv1D


class PassThrough(torch.autograd.Function):
    """Rows of a table as they are quantized; the gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, rows_XI: Tensor, site: Site) -> Tensor:
        granularity, draw = site.quantizer.granularity, site.draw(training=False)
        flat_NI = rows_XI.reshape(-1, rows_XI.shape[-1])
        rows_GN = grouped(flat_NI, granularity)
        value_GN = site.quantizer.quantize(rows_GN, {}, site.moment, draw)
        if site.moment.mixing < 1:
            value_GN = torch.lerp(rows_GN, value_GN, site.moment.mixing)
        return value_GN.view(rows_XI.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class QuantizedEmbedding(nn.Embedding):
    """An Embedding whose class was swapped: only the rows that a batch looks up are quantized, so its quantizer keeps nothing beside the table."""

    site: Site

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, PassThrough.apply(super().forward(input), self.site))


def is_quantized(module: nn.Module) -> bool:
    return "site" in vars(module)


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, module) of all modules that quantize their weight, also those that share one."""
    yield from ((name, module) for name, module in model.named_modules() if is_quantized(module))


def swap(module: nn.Module, site: Site) -> None:
    """Makes a Linear, Conv1D or Embedding compute with quantized weights, in place.

    Raises:
        ValueError: the groups don't divide the module's rows (a clause), or an embedding's quantizer would keep tensors beside the table.
    """
    weight = cast(Tensor, module.weight)
    embedding = isinstance(module, nn.Embedding)
    if embedding and (site.quantizer.names or site.quantizer.granularity.kind == "tensor"):
        raise ValueError("is no quantizer for embeddings, whose rows must each tell their own grid")
    weight_GN = grouped(weight.detach(), site.quantizer.granularity, site.input_axis)
    for name, tensor in site.quantizer.initial(weight_GN).items():
        if name in site.quantizer.trained:
            parameter: Any = nn.Parameter(tensor)
            parameter.lr_scale, parameter.decays = site.quantizer.scale_lr, False
            module.register_parameter(PREFIX + name, parameter)
        else:
            module.register_buffer(PREFIX + name, tensor)
    module.__dict__["site"] = site
    if embedding:
        module.__class__ = QuantizedEmbedding
    else:
        module.__class__ = QuantizedLinear if isinstance(module, nn.Linear) else quantized_conv1d()
