"""Inputs of linears at few bits: `round(x / step)`, clipped, times the step. The steps stand in the config, so that any loaded form can apply them.

Shapes: X any shape.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

HANDLES = "input_hooks"  # of the model


def limits(bits: int) -> tuple[int, int]:
    """(lowest, highest) code, of two's complement."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantized_input(x_X: Tensor, step: Tensor, bits: int) -> Tensor:
    """Nearest multiples of `step`, of which 2^bits are there."""
    low, high = limits(bits)
    return (x_X / step).round_().clamp_(low, high).mul_(step)


def attach_steps(model: nn.Module, bits: int, steps: Mapping[str, float]) -> None:
    """Lets modules of a loaded model round their inputs, by a hook before their forward.

    Raises:
        ValueError: the model has no such module.
    """
    handles = model.__dict__.setdefault(HANDLES, [])
    for name, value in steps.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"quantizes inputs of {name}, which the model doesn't have") from error
        handles.append(module.register_forward_pre_hook(_hook(bits, torch.tensor(value, dtype=torch.float32))))


def detach_steps(model: nn.Module) -> None:
    """Takes the hooks away again: the model is to be trained, with other steps or none."""
    for handle in model.__dict__.pop(HANDLES, []):
        handle.remove()


def _hook(bits: int, step: Tensor) -> Any:
    def quantize(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x_X = inputs[0]
        return (quantized_input(x_X, step.to(x_X), bits), *inputs[1:])

    return quantize
