"""The few values that a quantized weight may have, and which of them it has: a *grid* for each group of weights, and a code for each weight.

A grid says `value = scale * (code - zero)`, or, where values aren't evenly spaced, `value = levels[code]`. Training, the dense folder and the packed
file all get their values from `Grid.decode`, so they are the same to the bit.

Shapes: O outputs, I inputs of a matrix; G groups, N weights of a group (rows that follow one another: G * N = O * I); L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MOST_LEVELS = 3  # that are told one by one


@dataclass(frozen=True)
class Granularity:
    """Which weights share a grid: all of a matrix, those of an output row, or `size` neighbours in a row."""

    kind: Literal["tensor", "row", "group"] = "row"
    size: int = 64  # of a group

    def shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """(G, N) of a matrix.

        Raises:
            ValueError: groups don't divide a row; the message is a clause.
        """
        if self.kind == "tensor":
            return 1, outputs * inputs
        if self.kind == "row":
            return outputs, inputs
        if inputs % self.size:
            divisors = [size for size in range(1, inputs + 1) if inputs % size == 0]
            closest = min(divisors, key=lambda size: (abs(size - self.size), -size))
            raise ValueError(f"doesn't divide {inputs} inputs; nearest: {closest}")
        return outputs * (inputs // self.size), self.size


def grouped(weight: Tensor, granularity: Granularity, input_axis: int = 1) -> Tensor:
    """A stored matrix as `[G, N]`: a view of a Linear's `[O, I]`, a copy of a Conv1D's `[I, O]` (`input_axis` 0)."""
    matrix_OI = weight if input_axis == 1 else weight.t()
    return matrix_OI.reshape(granularity.shape(*matrix_OI.shape))


def ungrouped(values_GN: Tensor, shape: tuple[int, ...] | torch.Size, input_axis: int = 1) -> Tensor:
    """The matrix as it is stored."""
    return values_GN.view(shape) if input_axis == 1 else values_GN.view(shape[1], shape[0]).t()


@dataclass(frozen=True)
class Grid:
    """The levels of each group of one matrix.

    Attributes:
        count: of levels; codes are 0 ... count - 1.
        scale_G1: distance of neighbouring levels, `[G, 1]`.
        zero_G1: the code of 0, `[G, 1]`, or `[1, 1]` where all groups have the same; may lie between two codes (binary: 0.5).
        levels_GL: instead of both, the levels themselves.
    """

    count: int
    scale_G1: Tensor | None = None
    zero_G1: Tensor | None = None
    levels_GL: Tensor | None = None

    def decode(self, code_GN: Tensor) -> Tensor:
        """Values `[G, N]` of codes (uint8), in the dtype of the scales."""
        if self.levels_GL is not None:
            assert self.levels_GL.shape[1] == self.count <= MOST_LEVELS, self.levels_GL.shape
            value_GN = torch.where(code_GN == 0, self.levels_GL[:, :1], self.levels_GL[:, -1:])
            return value_GN if self.count == 2 else torch.where(code_GN == 1, self.levels_GL[:, 1:2], value_GN)
        assert self.scale_G1 is not None
        assert self.zero_G1 is not None
        return code_GN.to(self.scale_G1.dtype).sub_(self.zero_G1).mul_(self.scale_G1)

    def tensors(self) -> dict[str, Tensor]:
        """What there is of it, by name."""
        named = {"scale": self.scale_G1, "zero": self.zero_G1, "levels": self.levels_GL}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @staticmethod
    def of(count: int, tensors: Mapping[str, Tensor]) -> "Grid":
        return Grid(count, tensors.get("scale"), tensors.get("zero"), tensors.get("levels"))

    def encode_exactly(self, values_GN: Tensor) -> Tensor:
        """The codes of values that lie on the grid, to the bit.

        Raises:
            ValueError: one doesn't; the message is a clause.
        """
        if self.levels_GL is not None:
            distance_LGN = torch.stack([(values_GN - self.levels_GL[:, i : i + 1]).abs() for i in range(self.count)])
            code_GN = distance_LGN.argmin(0)
        else:
            assert self.scale_G1 is not None
            assert self.zero_G1 is not None
            safe_G1 = torch.where(self.scale_G1 == 0, 1.0, self.scale_G1)
            code_GN = (values_GN / safe_G1 + self.zero_G1).round_().nan_to_num_(0.0).clamp_(0, self.count - 1)
        code_GN = code_GN.to(torch.uint8)
        off = (self.decode(code_GN) != values_GN).sum().item()
        if off:
            raise ValueError(f"has {off:,} values that aren't on its grid of {self.count} levels")
        return code_GN


@dataclass(frozen=True)
class OnGrid:
    """How one tensor of a model folder is quantized: its values lie on the grid, to the bit."""

    grid: Grid
    granularity: Granularity
    input_axis: int = 1  # 0 in a Conv1D

    def codes(self, weight: Tensor) -> Tensor:
        """`[O, I]` uint8, whatever way the matrix is stored."""
        code_GN = self.grid.encode_exactly(grouped(weight, self.granularity, self.input_axis))
        outputs, inputs = weight.shape if self.input_axis == 1 else weight.shape[::-1]
        return code_GN.view(outputs, inputs)
