"""Runs a model, and its teachers beside it, over a split that is shared between ranks; every rank ends up with all predictions.

Rows that only fill up a micro-batch are dropped, and each sample counts exactly once whatever the number of ranks. Of language models only sums are
kept: `[N, T, V]` would not fit anywhere.

Shapes: B samples of a batch, N of the split, T tokens, C classes or words of the vocabulary, P labelled words of all samples.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.evaluation.metrics import agreement_sums
from distill_system.losses.task import hard_label
from distill_system.signals import IGNORE

Batch = Mapping[str, Tensor]
Forward = Callable[[Batch], Tensor]
PIECE = (
    2**20
)  # logits that are worked on at once: 4 MB in float32, which stays in a CPU's cache (2**24 took 3.6 times as long)


@dataclass
class Predictions:
    """What a model and its teachers said about a split, in the order of the sample index; on the CPU, the same on every rank.

    Labels are [N] in classification, [N, C] in multi-label and regression. In token classification labels and logits are those of the labelled words,
    [P] and [P, C], sample after sample, and `samples_P` says which sample each is of.
    """

    task: str
    classes: int
    index_N: Tensor
    labels_N: Tensor | None = None  # these three not in language modelling
    logits_NC: Tensor | None = None
    teacher_logits: dict[str, Tensor] = field(default_factory=dict)
    samples_P: Tensor | None = None  # token classification only
    sums: dict[str, float] = field(default_factory=dict)  # language modelling only: nll, tokens
    teacher_sums: dict[str, dict[str, float]] = field(default_factory=dict)  # nll, agreement, kl


@contextlib.contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has the mode it had, also one that was in eval mode inside a training model."""
    modules = list(modules)
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def predict(
    forward: Forward,
    batches: Iterable[Batch],
    task: str,
    device: torch.device | str,
    teachers: Mapping[str, Forward] | None = None,
    *,
    modules: Iterable[nn.Module] | None = None,
    samples: int | None = None,
) -> Predictions:
    """Predictions over all ranks' batches.

    Args:
        forward: batch on `device` -> logits: `[B, C]`; in token classification `[B, T, C]`; in language modelling the same, or `[B, T-1, C]` without the last position (told apart by
            shape), so that what a model gives and what a loss reads both do.
        batches: this rank's share, filler rows marked by `valid` False; every rank has equally many, since the forward may be collective.
        task: of the data.
        device: where batches are moved to.
        teachers: name -> the same as `forward`, with the student's classes in the student's order.
        modules: what is put in eval mode meanwhile; may be left out where `forward` is itself a module or a module's method.
        samples: size of the split, if all of it must have been seen.
    """
    if modules is None:
        owner = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
        assert isinstance(owner, nn.Module), "modules=[...] must say what is to be in eval mode"
        modules = [owner]
    collect = {"token_classification": _words, "causal_lm": _language}.get(task, functools.partial(_rows, task))
    moved = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
    # Not inference_mode: the tensors that ZeRO-3 gathers in it could not be trained on afterwards.
    with torch.no_grad(), evaluation_mode(modules):
        predictions = collect(forward, moved, dict(teachers or {}))
    assert len(predictions.index_N.unique()) == len(predictions.index_N), "a sample was predicted twice"
    assert samples is None or len(predictions.index_N) == samples, (
        f"{len(predictions.index_N)} of {samples} samples were predicted"
    )
    return predictions


def _rows(task: str, forward: Forward, batches: Iterable[Batch], teachers: dict[str, Forward]) -> Predictions:
    roles = {"": forward} | teachers
    seen: list[dict[str, Tensor]] = []
    for batch in batches:
        row = {name: role(batch).detach().float() for name, role in roles.items()}
        seen.append(
            {f"logits/{name}": logits for name, logits in row.items()}
            | {k: batch[k] for k in ("index", "labels", "valid")}
        )
    assert seen, "no batch to predict"
    mine = {name: torch.cat([part[name] for part in seen]).cpu() for name in seen[0]}
    kept = mine.pop("valid").bool() & (mine["index"] >= 0)
    parts = distributed.data_everyone({name: tensor[kept] for name, tensor in mine.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in mine}
    order = whole["index"].argsort()
    whole = {name: tensor[order] for name, tensor in whole.items()}
    return Predictions(
        task,
        whole["logits/"].shape[-1],
        whole["index"],
        whole["labels"],
        whole["logits/"],
        {name: whole[f"logits/{name}"] for name in teachers},
    )


def _words(forward: Forward, batches: Iterable[Batch], teachers: dict[str, Forward]) -> Predictions:
    """The labelled words alone are kept: padding, special tokens and the later pieces of words say nothing."""
    roles = {"": forward} | teachers
    index: list[Tensor] = []
    seen: list[dict[str, Tensor]] = []
    for batch in batches:
        valid_B = batch["valid"].bool()
        keep_BT = valid_B[:, None] & (batch["labels"] != IGNORE)
        index.append(batch["index"][valid_B].cpu())
        samples_BT = batch["index"][:, None].expand_as(keep_BT)
        found = {"labels": batch["labels"][keep_BT].cpu(), "samples": samples_BT[keep_BT].cpu()}
        seen.append(
            found | {f"logits/{name}": role(batch).detach()[keep_BT].float().cpu() for name, role in roles.items()}
        )
    assert seen, "no batch to predict"
    mine = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    parts = distributed.data_everyone(mine)
    whole = {name: torch.cat([part[name] for part in parts]) for name in mine}
    order = whole["samples"].argsort(stable=True)  # the words of a sample stay in their order
    whole = {name: tensor[order] for name, tensor in whole.items()}
    return Predictions(
        "token_classification",
        whole["logits/"].shape[-1],
        torch.cat(distributed.data_everyone(torch.cat(index))).sort().values,
        whole["labels"],
        whole["logits/"],
        {name: whole[f"logits/{name}"] for name in teachers},
        whole["samples"],
    )


def _language(forward: Forward, batches: Iterable[Batch], teachers: dict[str, Forward]) -> Predictions:
    total: Tensor | None = None
    index: list[Tensor] = []
    classes = 0
    for batch in batches:
        labels_BT = batch["labels"][:, 1:]
        valid_BT = batch["valid"].bool()[:, None] & (labels_BT != IGNORE)
        student_BTC = _shifted(forward(batch), batch)
        teachers_BTC = [_shifted(teacher(batch), batch) for teacher in teachers.values()]
        classes = student_BTC.shape[-1]
        sums = language_sums(student_BTC, teachers_BTC, labels_BT, valid_BT)
        total = sums if total is None else total + sums
        index.append(batch["index"][batch["valid"].bool()])
        del student_BTC, teachers_BTC  # before the next batch's are made
    assert total is not None, "no batch to predict"
    nll, tokens, *rest = distributed.sum_over_data_ranks(total).tolist()
    keys = ("nll", "agreement", "kl")
    teacher_sums = {name: dict(zip(keys, rest[3 * i : 3 * i + 3], strict=True)) for i, name in enumerate(teachers)}
    index_N = torch.cat(distributed.data_everyone(torch.cat(index).cpu())).sort().values
    return Predictions(
        "causal_lm", classes, index_N, sums={"nll": nll, "tokens": int(tokens)}, teacher_sums=teacher_sums
    )


def _shifted(logits_BTC: Tensor, batch: Batch) -> Tensor:
    """Position t speaks of token t + 1: the last one has nothing to speak of and is cut, unless it was cut already."""
    length = batch["labels"].shape[1]
    assert logits_BTC.shape[1] in (length, length - 1), (tuple(logits_BTC.shape), length)
    return logits_BTC[:, : length - 1]


def language_sums(student_BTC: Tensor, teachers_BTC: list[Tensor], labels_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """float64: nll, tokens of the student, then nll, agreement, KL of each teacher, over valid positions.

    Worked through in pieces, so that the float32 copies stay small beside the logits themselves.
    """
    batch_size, length, classes = student_BTC.shape
    sums = torch.zeros(2 + 3 * len(teachers_BTC), dtype=torch.float64, device=student_BTC.device)
    rows, columns = max(1, PIECE // max(1, length * classes)), max(1, min(length, PIECE // classes))
    for b in range(0, batch_size, rows):
        for t in range(0, length, columns):
            piece = (slice(b, b + rows), slice(t, t + columns))
            labels, valid, student = labels_BT[piece], valid_BT[piece], student_BTC[piece]
            figures = [*hard_label(student, labels, valid)]
            for teacher_BTC in teachers_BTC:
                teacher = teacher_BTC[piece]
                figures += [hard_label(teacher, labels, valid)[0], *agreement_sums(student, teacher, valid)]
            sums += torch.stack([figure.double() for figure in figures])
    return sums
