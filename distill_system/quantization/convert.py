"""What a trained model hands on: its quantized weights as values on their grids, and the grids, one module in memory at a time.

Shapes: G groups, N weights of a group.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.models.grid import OnGrid, grouped, ungrouped
from distill_system.quantization.activations import STEP
from distill_system.quantization.base import Quantizer
from distill_system.quantization.swap import PREFIX, Site, quantized_modules


class Conversion:
    """Turns the stream of a live model's tensors into the stream of the model that is handed on.

    Args:
        model: with swapped modules; of its parameters only names are read (they may be scattered), of its buffers the values.

    Attributes:
        grids: of the weights that went through, by name.
        zeros: how many of their values are zero, by name.
        steps: of the inputs, by module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.grids: dict[str, OnGrid] = {}
        self.zeros: dict[str, int] = {}
        self.steps: dict[str, float] = {}
        self._modules: dict[str, Any] = {}
        self._owner: dict[str, str] = {}  # of a quantizer's trained tensor: the weight that waits for it
        self._private: set[str] = set()  # tensors that are not handed on
        first: dict[int, str] = {}  # a shared weight comes under the first of its names
        for name, module in quantized_modules(model):
            weight = first.setdefault(id(module.weight), f"{name}.weight")
            self._modules.setdefault(weight, module)
            for own in module.site.quantizer.names:
                self._owner[f"{name}.{PREFIX}{own}"] = weight
            self._private |= {f"{name}.{PREFIX}{own}" for own in module.site.quantizer.names} | {f"{name}.{STEP}"}

    def __call__(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) with quantized weights on their grids; tensors of quantizers are left out."""
        waiting: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        for name, tensor in tensors:
            if name.endswith(f".{STEP}") and name in self._private:
                self.steps[name.removesuffix(f".{STEP}")] = abs(float(tensor))
            elif name in self._modules:
                site: Site = self._modules[name].site
                if site.quantizer.trained:
                    waiting[name] = (tensor, {})
                else:
                    yield name, self._convert(name, tensor, {})
            elif name in self._owner and name.rpartition(f".{PREFIX}")[2] in self._quantizer(name).trained:
                weight = self._owner[name]
                waiting[weight][1][name.rpartition(f".{PREFIX}")[2]] = tensor
                if len(waiting[weight][1]) == len(self._quantizer(name).trained):
                    yield weight, self._convert(weight, *waiting.pop(weight))
            elif name not in self._private:
                yield name, tensor
        assert not waiting, f"nothing came of what quantizes {sorted(waiting)}"

    def _quantizer(self, name: str) -> Quantizer:
        return self._modules[self._owner[name]].site.quantizer

    @torch.no_grad()
    def _convert(self, name: str, weight: Tensor, trained: dict[str, Tensor]) -> Tensor:
        module = self._modules[name]
        site: Site = module.site
        quantizer = site.quantizer
        given = {
            own: trained[own] if own in trained else getattr(module, PREFIX + own).detach().cpu().float()
            for own in quantizer.names
        }
        weight_GN = grouped(weight.float(), quantizer.granularity, site.input_axis)
        code_GN, grid = quantizer.encode(weight_GN, given, site.moment, site.draw(training=False))
        self.grids[name] = OnGrid(grid, quantizer.granularity, site.input_axis)
        value = ungrouped(grid.decode(code_GN), weight.shape, site.input_axis).contiguous()
        self.zeros[name] = int((value == 0).sum())
        return value
