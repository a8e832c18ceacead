"""What the ranks of test_relational do: each takes its rows of one batch, through a linear map that all share, and gradients are summed."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distill_system import distributed
from distill_system.losses.relational import Relational
from distill_system.signals import Signals, Targets

ROWS = torch.tensor([True, True, False, True, True, True, True, False])


def part(rows: slice) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    states, teacher = torch.randn(8, 3, 5, generator=generator), torch.randn(8, 3, 7, generator=generator)
    weight = torch.randn(4, 5, generator=generator).requires_grad_()
    targets = Targets(torch.zeros(8, dtype=torch.long)[rows], ROWS[rows])
    student = Signals(torch.zeros(1), hidden=(states[rows] @ weight.T,))
    total, count = Relational()(student, Signals(torch.zeros(1), hidden=(teacher[rows],)), targets)
    (gradient,) = torch.autograd.grad(total, weight)
    return {"total": total.detach(), "count": count, "gradient": gradient}


def one_process() -> dict[str, Any]:
    return {name: value.tolist() for name, value in part(slice(None)).items()}


def main(folder: Path) -> dict[str, Any]:
    size = len(ROWS) // distributed.world()
    own = part(slice(distributed.rank() * size, (distributed.rank() + 1) * size))
    parts = distributed.everyone(own["total"].item())
    for value in own.values():
        dist.all_reduce(value)
    return {name: value.tolist() for name, value in own.items()} | {"parts": parts}
