"""Quantized matrices as other runtimes take them: whole numbers of 4 or 8 bits, `value = (number - zero) * scale` with a whole zero.

What can't be told so keeps its floats: levels that aren't evenly spaced (`trained_ternary`, `binary_constants`), and a zero that lies neither on a code
nor half-way between two.

Shapes: O outputs, I inputs of a matrix; G groups, K of them in a row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_system.models.grid import OnGrid


@dataclass(frozen=True)
class Integers:
    """A matrix `[O, I]`, whatever way the model stores it; its values are those of `Grid.decode`, to the bit.

    Attributes:
        code_OI: uint8, below 2^width.
        scale: float32.
        zero: uint8, below 2^width.
        width: bits of a number, 4 or 8.
        parts: of scales and zeros along O and I, their shape: (1, 1), (O, 1) or (O, K).
    """

    code_OI: Tensor
    scale: Tensor
    zero: Tensor
    width: int
    parts: tuple[int, int]

    @staticmethod
    def of(code_OI: Tensor, on: OnGrid) -> "Integers":
        """Raises: ValueError: a grid that can't be told so; the message is a clause."""
        scale_G1, zero_G1, count = on.grid.scale_G1, on.grid.zero_G1, on.grid.count
        if scale_G1 is None or zero_G1 is None:
            raise ValueError("has levels that aren't evenly spaced")
        if scale_G1.dtype != torch.float32:
            raise ValueError(f"has scales of {scale_G1.dtype}")
        if not zero_G1.eq(zero_G1.round()).all() and count <= 128:
            # Half-way between two codes: doubling codes and halving steps are exact.
            code_OI, scale_G1, zero_G1, count = 2 * code_OI, scale_G1 / 2, 2 * zero_G1, 2 * count - 1
        width = 4 if count <= 16 else 8
        if not (zero_G1.eq(zero_G1.round()) & (zero_G1 >= 0) & (zero_G1 < 1 << width)).all():
            raise ValueError("has a zero that lies neither on a code nor half-way between two")
        outputs, inputs = code_OI.shape
        in_row = inputs // on.granularity.size if on.granularity.kind == "group" else 1
        parts = (1 if on.granularity.kind == "tensor" else outputs, in_row)
        return Integers(code_OI, scale_G1.view(parts), zero_G1.expand_as(scale_G1).reshape(parts).byte(), width, parts)


def integers_of(
    weights: Mapping[str, Tensor], grids: Mapping[str, OnGrid]
) -> tuple[dict[str, Integers], dict[str, str]]:
    """(those tensors that can be told as integers, why the others can't), by name.

    Raises:
        ValueError: a tensor isn't on its grid, or there is none.
    """
    matrices: dict[str, Integers] = {}
    floats: dict[str, str] = {}
    for name, on in grids.items():
        if name not in weights:
            raise ValueError(f"{name} has a grid, but the model has no such tensor")
        try:
            code_OI = on.codes(weights[name].detach())
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        try:
            matrices[name] = Integers.of(code_OI, on)
        except ValueError as error:
            floats[name] = str(error)
    return matrices, floats


def lines_of(codes: Collection[str], floats: Mapping[str, str]) -> list[str]:
    """How many quantized matrices lie in a file as codes, and for each reason how many don't."""
    lines = [f"{len(codes)} of {len(codes) + len(floats)} quantized matrices lie in it as codes"]
    for reason in dict.fromkeys(floats.values()):
        names = [name for name, other in floats.items() if other == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"as floats, because it {reason}: {names[0]}{more}")
    return lines
