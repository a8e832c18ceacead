"""What is pruned, in one vocabulary for every kind: a *unit* (a weight, a block, a neuron, a head, a layer) in a *group* of units that compete.

A round is `score -> select -> apply`: a score says what each unit is worth (`scores/`), a selection which of them go (`selection.py`), and masks
take them out of the forward (`masks.py`). Units that are whole lines of matrices are cut out of the model at the end (`cut.py`).

Shapes: O outputs, I inputs of a matrix (as stored: a Conv1D is `[I, O]`), U units of a group, n elements of a run.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """Lines of one parameter that belong to a group's units."""

    name: str  # of the parameter in the model
    shape: tuple[int, int]  # as stored; a bias is (n, 1)
    axis: int  # along which the units lie, of the stored tensor; -1: units are elements or blocks
    input_axis: int  # of the input features: 1 in a Linear, 0 in a Conv1D
    first: int = 0  # line of the first unit: a fused projection holds queries, keys and values side by side
    width: int = 1  # consecutive lines that a unit takes


@dataclass(frozen=True)
class Group:
    """Units that compete with each other: the neurons of one feed-forward, the heads of one attention; elements or blocks of one matrix."""

    name: str  # "layer 0 neurons"; of elements and blocks the parameter's name
    layer: int | None
    units: int
    slices: tuple[Slice, ...]  # matrices
    biases: tuple[Slice, ...] = ()  # cut with their lines, never masked: what they add meets a column of zeros
    watched: str = ""  # module whose input features are the units' activations
    block: tuple[int, int] | None = None  # of elements (1, 1)

    @property
    def elements(self) -> int:
        """Weights in all units together."""
        if self.block:
            return self.slices[0].shape[0] * self.slices[0].shape[1]
        return sum(self.units * part.width * part.shape[1 - part.axis] for part in self.slices)


@dataclass(frozen=True)
class Surgery:
    """A physical cut, as checkpoints and passports record it and as it is replayed."""

    kind: str  # neurons, heads or layers
    keep: dict[str, list[int]] = field(default_factory=dict)  # units that stay, by group; of layers {"layers": [...]}

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """Consecutive elements of one flattened matrix, which this rank holds."""

    name: str
    shape: tuple[int, int]
    input_axis: int
    offset: int
    values_n: Tensor

    def lines(self, axis: int) -> Tensor:
        """Each element's line `[n]` (int64) on an axis."""
        index_n = torch.arange(self.offset, self.offset + self.values_n.numel(), device=self.values_n.device)
        return index_n.div(self.shape[1], rounding_mode="floor") if axis == 0 else index_n.remainder(self.shape[1])

    def part(self, start: int, stop: int) -> "Run":
        """A stretch of it, counted from its own first element."""
        return Run(self.name, self.shape, self.input_axis, self.offset + start, self.values_n[start:stop])


def to_hex(keep_U: Tensor) -> str:
    """Bits of a boolean vector, the first unit in the highest bit of the first byte."""
    padded = torch.nn.functional.pad(keep_U.to(torch.uint8).cpu(), (0, -len(keep_U) % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return bytes((padded * weights).sum(1, dtype=torch.uint8).tolist()).hex()


def from_hex(bits: str, units: int) -> Tensor:
    """The boolean vector `[U]` again.

    >>> from_hex(to_hex(torch.tensor([True, False, True])), 3).tolist()
    [True, False, True]
    """
    octets = torch.tensor(list(bytes.fromhex(bits)), dtype=torch.uint8)
    return (octets[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1).flatten()[:units].bool()
