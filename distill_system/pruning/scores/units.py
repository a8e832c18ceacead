"""From weights to units: what a neuron, a head or a block gets is the mean over its weights.

Each rank sums what it holds; the sums of all ranks over a unit's weights are its mean, to be rounded to float32: how the weights are dealt out to ranks
changes the last digits of a sum in float64, and equal units should stay equal.

Shapes: n elements of a run, U units of a group.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from distill_system.pruning.base import Group, Run, Slice
from distill_system.pruning.scores.base import Score


def units_of(group: Group, held: Iterable[tuple[Run, Tensor | None]], score: Score) -> Tensor:
    """Sums of the scores of each unit's weights, `[U]` float64 on the CPU, as far as they lie in these runs.

    Args:
        group: of the units.
        held: runs of this rank, each with what was seen of it; those of other matrices are passed over.
        score: of the weights.
    """
    sums_U = torch.zeros(group.units, dtype=torch.float64)
    for run, seen in held:
        parts = [part for part in group.slices if part.name == run.name]
        if not parts:
            continue
        # One more, for what belongs to no unit of the group.
        found = torch.zeros(group.units + 1, dtype=torch.float64, device=run.values_n.device)
        for chunk, scores_n in score.chunks(run, seen):
            for part in parts:  # a fused projection has several
                if group.block is None:
                    first, sums_n = line_sums(chunk, scores_n, part.axis)
                    numbers_n = units_of_lines(group, part, torch.arange(first, first + len(sums_n)).to(sums_n.device))
                else:
                    numbers_n, sums_n = unit_numbers(group, part, chunk), scores_n.to(torch.float64)
                found.index_add_(0, numbers_n, sums_n)
        sums_U += found[:-1].cpu()
    return sums_U


def line_sums(run: Run, scores_n: Tensor, axis: int) -> tuple[int, Tensor]:
    """(first line, float64 sums) of a run's scores along the lines of an axis; a number for each element would cost more than the sums themselves."""
    columns = run.shape[1]
    before = run.offset % columns
    padded_RC = torch.nn.functional.pad(scores_n, (before, -(before + scores_n.numel()) % columns)).view(-1, columns)
    first = run.offset // columns if axis == 0 else 0
    return first, padded_RC.sum(1 - axis, dtype=torch.float64)


def units_of_lines(group: Group, part: Slice, line_n: Tensor) -> Tensor:
    """The unit to which each line belongs; `group.units` stands for none of the group."""
    unit_n = line_n.sub(part.first).div_(part.width, rounding_mode="floor")
    return torch.where((unit_n >= 0) & (unit_n < group.units), unit_n, group.units)


def unit_numbers(group: Group, part: Slice, run: Run) -> Tensor:
    """The unit to which each element of a run belongs, `[n]` int64; `group.units` stands for none of the group."""
    if group.block is not None:
        height, width = group.block
        across = part.shape[1] // width
        assert part.shape[0] // height * across == group.units, f"{group.name} isn't divided into its blocks"
        row_n = run.lines(0).div_(height, rounding_mode="floor")
        return run.lines(1).div_(width, rounding_mode="floor").add_(row_n.mul_(across))
    return units_of_lines(group, part, run.lines(part.axis))
