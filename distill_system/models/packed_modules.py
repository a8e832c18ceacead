"""Linears and embeddings that compute from packed codes: a tile of rows is given its values, used and forgotten, so that memory stays near the file's size.

They stand in a normal `PreTrainedModel` where a Linear, a Conv1D or an Embedding stood. `weight` gives the whole matrix its values, anew at each access;
`state_dict()` is that of the dense model, so that whatever saves the model writes a plain one.

Values are those of the dense model to the bit. Outputs are sums over the same products, tile by tile: a matrix product of other sizes may add in another
order, so they agree within 1e-5 of the largest output (float32), not to the bit.

Shapes: X any leading dimensions, N rows of an input, O outputs, I inputs; V words, D their dimensions.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_system.models.grid import Grid, OnGrid
from distill_system.models.packed_matrix import PackedMatrix

log = logging.getLogger("distill_system.models")
TILE = 2**18  # weights that have their values at the same time: 1 MB of float32
Kernel = Callable[[Tensor], Tensor]


class Packed(nn.Module):
    """A module whose weight is a packed matrix, in buffers `packed`, `scale`, `zero` and `levels` (what there is of them).

    Args:
        matrix: modules that share a weight share its tensors.
    """

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.inputs, self.count = matrix.inputs, matrix.count
        self.granularity, self.input_axis = matrix.on_grid.granularity, matrix.on_grid.input_axis
        for name, tensor in matrix.tensors().items():
            self.register_buffer(name, tensor, persistent=False)  # the state dict has the weight in their place

    @property
    def matrix(self) -> PackedMatrix:
        """The packed matrix, of the tensors as they are now: they may have been moved."""
        tensors = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        on_grid = OnGrid(Grid.of(self.count, tensors), self.granularity, self.input_axis)
        return PackedMatrix(tensors["packed"], self.inputs, on_grid)

    @property
    def weight(self) -> Tensor:
        """The whole matrix as a dense model stores it."""
        return self.matrix.dense()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("kernel", None)  # may hold on to tensors that are moved now
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kernel"}  # a copy's tensors are others

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.matrix.outputs}, levels={self.count}, granularity={self.granularity.kind}"


class PackedLinear(Packed):
    """A Linear or a Conv1D (GPT-2's linear, its weight `[I, O]`) for inference.

    Args:
        matrix: of the weight.
        bias_O: the parameter, which other modules may share, or None.
    """

    def __init__(self, matrix: PackedMatrix, bias_O: nn.Parameter | None = None) -> None:
        super().__init__(matrix)
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        if matrix.on_grid.input_axis == 0:
            self.nx, self.nf = matrix.inputs, matrix.outputs  # as a Conv1D calls them
        self.register_parameter("bias", bias_O)

    def forward(self, x_XI: Tensor) -> Tensor:
        if (kernel := self._kernel()) is not None and not (torch.is_grad_enabled() and x_XI.requires_grad):
            try:
                return kernel(x_XI)
            except Exception:
                log.warning("a kernel for packed weights failed; the plain path takes over", exc_info=True)
                self.__dict__["kernel"] = None
        return self.plain(x_XI)

    def plain(self, x_XI: Tensor) -> Tensor:
        """The product tile by tile: the reference of kernels."""
        matrix, bias = self.matrix, self.bias
        output_XO: Tensor | None = None
        step = max(1, TILE // matrix.inputs)
        for first in range(0, matrix.outputs, step):
            rows = slice(first, min(first + step, matrix.outputs))
            part_OI = matrix.values(rows).to(x_XI.dtype)
            part_XO = F.linear(x_XI, part_OI, None if bias is None else bias[rows])
            if step >= matrix.outputs:
                return part_XO
            if output_XO is None:
                output_XO = part_XO.new_empty(*part_XO.shape[:-1], matrix.outputs)
            output_XO[..., rows] = part_XO
        assert output_XO is not None
        return output_XO

    def _kernel(self) -> Kernel | None:
        if "kernel" not in self.__dict__:
            self.__dict__["kernel"] = kernel_for(self)
        kernel: Kernel | None = self.__dict__["kernel"]
        return kernel


class PackedEmbedding(Packed):
    """An Embedding that gives values to the rows that are looked up, and to no others."""

    def __init__(self, matrix: PackedMatrix, padding_idx: int | None = None) -> None:
        super().__init__(matrix)
        self.num_embeddings, self.embedding_dim, self.padding_idx = matrix.outputs, matrix.inputs, padding_idx

    def forward(self, index_X: Tensor) -> Tensor:
        return self.matrix.values(index_X.reshape(-1)).view(*index_X.shape, self.embedding_dim)


def dequantized(module: Packed) -> Tensor:
    """The weight with its values, as a dense model stores it: to the bit what was packed."""
    return module.weight


def kernel_for(module: PackedLinear) -> Kernel | None:
    """What computes a module's output from its input faster than `PackedLinear.plain`, with the bias: `x_XI -> y_XO`; None where nothing does.

    `models.packed_kernels.kernel_for` is asked, once a module. Whatever it gives is called without gradients, with inputs of any dtype and device; where
    it raises, the plain path takes over for good.
    """
    try:
        kernels: Any = importlib.import_module("distill_system.models.packed_kernels")
    except ImportError:
        return None
    try:
        kernel: Kernel | None = kernels.kernel_for(module)
        return kernel
    except Exception:
        log.warning("no kernel for packed weights could be made; the plain path takes over", exc_info=True)
        return None


def packed_modules(model: nn.Module) -> dict[str, Packed]:
    """The packed modules of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
