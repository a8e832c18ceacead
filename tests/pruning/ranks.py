"""What the ranks of test_ranks do: each holds a part of the weights and sees a part of the rows, and all find what one process finds."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill_system import distributed
from distill_system.pruning.scores.activation import InputNorms
from distill_system.pruning.scores.entropy import Histograms
from distill_system.pruning.selection import select

SIZES = {"b": 1_000, "a": 70_000, "empty": 0, "c": 3}
ROWS, TOKENS, FEATURES = 6, 5, 4


def scores() -> dict[str, torch.Tensor]:
    """Rounded, so that there are ties."""
    generator = torch.Generator().manual_seed(0)
    return {key: (8 * torch.randn(size, generator=generator)).round() / 8 for key, size in SIZES.items()}


def mask(prune: int, rank: int, world: int) -> list[int]:
    """Places of the pruned elements, in the order of keys; what this rank holds is a stretch of each."""
    held = {}
    for key, values in scores().items():
        share = -(-len(values) // world)
        held[key] = (rank * share, values[rank * share : (rank + 1) * share])
    result = select(lambda: ((key, *own) for key, own in held.items()), prune, SIZES)
    pruned = []
    for key, (offset, values) in held.items():
        gone = (~result.keep(key, offset, values)).nonzero().squeeze(1) + offset + result.starts[key]
        pruned += gone.tolist()
    return pruned


def watched(rank: int, world: int) -> dict[str, list[float]]:
    """A rank sees every `world`-th row, and the last one of two ranks none at all of the second module."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, TOKENS, FEATURES, generator=generator)
    keep_BT = torch.arange(TOKENS) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    modules = {"first": nn.Linear(FEATURES, 2), "second": nn.Linear(FEATURES, 2)}
    found = {}
    for kind, watcher in (("norms", InputNorms(modules)), ("entropy", Histograms(modules, 8))):
        for number in range(watcher.passes):
            watcher.begin(number)
            with watcher.watching():
                for row in range(rank, ROWS, world):
                    watcher.keep_BT = keep_BT[row : row + 1]
                    modules["first"](x[row : row + 1])
                    if row % 2 == 0:
                        modules["second"](x[row : row + 1])
            watcher.end(number)
        found |= {f"{kind} {name}": watcher.result(name).tolist() for name in modules}
    return found


def refusal(rank: int) -> str:
    """One rank's score is no number; what this rank says of it."""
    values = torch.tensor([1.0, math.nan if rank == 1 else 2.0])
    try:
        select(lambda: [("bad", 2 * rank, values)], 1, {"bad": 2 * distributed.world()})
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> dict[str, Any]:
    rank, world = distributed.rank(), distributed.world()
    parts = {prune: distributed.everyone(mask(prune, rank, world)) for prune in (0, 35_000, 71_003)}
    return {
        "pruned": {str(prune): sorted(place for part in own for place in part) for prune, own in parts.items()},
        "alone": [len(part) for part in parts[35_000]],
        "watched": distributed.everyone(watched(rank, world)),
        "refusals": distributed.everyone(refusal(rank)),
    }
