"""A matrix whose weights lie on a grid, held as packed codes: any of its rows can be given their values, by `Grid.decode`, without the others.

Shapes: O outputs, I inputs; B bytes of a packed row; R rows that are asked for; G groups, N weights of a group.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from distill_system.models.grid import Grid, OnGrid
from distill_system.models.packing import largest_code, pack_rows, row_bytes, unpack_rows

Rows: TypeAlias = slice | Tensor  # a range of rows, or their numbers [R]


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """Rows of a Linear or an Embedding as they are stored, of a Conv1D the columns.

    Attributes:
        packed_OB: codes, packed row by row (`models.packing`), uint8.
        inputs: I.
        on_grid: the grids, which weights share one, and whether the model stores the matrix as `[O, I]` or (`input_axis` 0) as `[I, O]`.
    """

    packed_OB: Tensor
    inputs: int
    on_grid: OnGrid

    @staticmethod
    def of(weight: Tensor, on_grid: OnGrid) -> "PackedMatrix":
        """Packs a stored matrix.

        Raises:
            ValueError: it has values that aren't on the grid, or other groups; the message is a clause.
        """
        code_OI = on_grid.codes(weight)
        return PackedMatrix(pack_rows(code_OI, on_grid.grid.count), code_OI.shape[1], on_grid)

    @property
    def outputs(self) -> int:
        return self.packed_OB.shape[0]

    @property
    def count(self) -> int:
        return self.on_grid.grid.count

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.on_grid.grid.tensors().values())).dtype

    @property
    def shape(self) -> tuple[int, int]:
        """As the model stores it."""
        return (self.outputs, self.inputs) if self.on_grid.input_axis == 1 else (self.inputs, self.outputs)

    @property
    def nbytes(self) -> int:
        return self.packed_OB.nbytes + sum(tensor.nbytes for tensor in self.on_grid.grid.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self.packed_OB, **self.on_grid.grid.tensors()}

    def check(self) -> None:
        """Raises: ValueError: rows of another length than their codes need, or codes that no level belongs to; the message is a clause."""
        wanted = row_bytes(self.inputs, self.count)
        if self.packed_OB.dtype != torch.uint8 or self.packed_OB.dim() != 2 or self.packed_OB.shape[1] != wanted:
            found = f"{self.packed_OB.dtype} codes of shape {list(self.packed_OB.shape)}"
            raise ValueError(f"has {found}, expected rows of {wanted} bytes for {self.inputs} of {self.count} levels")
        if largest_code(self.packed_OB, self.count) >= self.count:
            raise ValueError(f"has codes beyond its {self.count} levels")

    def codes(self, rows: Rows = slice(None)) -> Tensor:
        """`[R, I]`, uint8."""
        return unpack_rows(_pick(self.packed_OB, rows), self.inputs, self.count)

    def values(self, rows: Rows = slice(None)) -> Tensor:
        """`[R, I]`, in the dtype of the grid: to the bit what the dense model holds."""
        code_RI = self.codes(rows)
        size = self.on_grid.granularity.size if self.on_grid.granularity.kind == "group" else self.inputs
        grid = Grid.of(
            self.count, {name: self._of_rows(part, rows) for name, part in self.on_grid.grid.tensors().items()}
        )
        return grid.decode(code_RI.reshape(-1, size)).view(len(code_RI), self.inputs)

    def _of_rows(self, part_GX: Tensor, rows: Rows) -> Tensor:
        """Those groups of a grid's tensor that lie in some rows; a single one is shared by all."""
        if len(part_GX) == 1:
            return part_GX
        return _pick(part_GX.view(self.outputs, -1, part_GX.shape[1]), rows).flatten(0, 1)

    def dense(self) -> Tensor:
        """The matrix as the model stores it, contiguous."""
        value_OI = self.values()
        return value_OI if self.on_grid.input_axis == 1 else value_OI.t().contiguous()


def _pick(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)  # refuses what is out of range
