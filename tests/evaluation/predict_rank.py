"""A split of random rows shared over ranks, and models that are a function of the row alone. Run as a program, it is one rank of the two-rank test."""

import sys

import torch
from torch import nn

from distill_system import distributed
from distill_system.evaluation.predict import predict
from distill_system.signals import IGNORE

SAMPLES, LONGEST, CLASSES = 7, 6, 5
TASKS = ("classification", "multi_label", "regression", "token_classification", "causal_lm")


class Model(nn.Module):
    """Logits of each position from its token, with a dropout that must not act; classification reads the first position."""

    def __init__(self, task, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(CLASSES, CLASSES, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.task = task

    def forward(self, batch):
        logits = self.dropout(self.table[batch["input_ids"]])
        return logits if self.task in ("token_classification", "causal_lm") else logits[:, 0]


def batches(task, rank=0, world=1, batch_size=2):
    """Rows `rank::world` in steps of `batch_size`, with filler so that every rank has equally many; row lengths 3 ... LONGEST."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (SAMPLES, LONGEST), generator=generator)
    mask = torch.arange(LONGEST) < (3 + torch.arange(SAMPLES) % 4)[:, None]
    labels = {
        "classification": tokens[:, 1],
        "multi_label": (tokens[:, :CLASSES] > 2).float(),
        "regression": tokens[:, :CLASSES] / 4,
        "token_classification": torch.where(
            mask & (tokens != 0) & (torch.arange(SAMPLES) != 2)[:, None], tokens, IGNORE
        ),
        "causal_lm": torch.where(mask, tokens, IGNORE),
    }[task]
    own = list(range(rank, SAMPLES, world))
    own += [-1] * (-(-SAMPLES // world) - len(own))
    for start in range(0, len(own), batch_size):
        index = torch.tensor(own[start : start + batch_size])
        valid, rows = index >= 0, index.clamp(min=0)
        # Filler keeps a label here: that it isn't valid must be enough to leave it out.
        batch = {"input_ids": tokens[rows], "attention_mask": mask[rows].long(), "labels": labels[rows]}
        yield batch | {"valid": valid, "index": index}


def run(task, rank=0, world=1, batch_size=2):
    model, teacher = Model(task, 1), Model(task, 2).eval()
    share = batches(task, rank, world, batch_size)
    return predict(model, share, task, "cpu", {"main": teacher}, samples=SAMPLES)


if __name__ == "__main__":
    distributed.start(torch.device("cpu"), threads=1)
    results = [run(task, distributed.rank(), distributed.world()) for task in TASKS]
    torch.save([vars(result) for result in results], f"{sys.argv[1]}/{distributed.rank()}.pt")
    distributed.stop()
