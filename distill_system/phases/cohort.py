"""What a cohort of members needs beside training: where they live, that they differ, and what they say together.

Shapes: B samples, T tokens, C classes, K members.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.errors import refuse
from distill_system.evaluation.evaluate import finite, phase_evaluation
from distill_system.evaluation.predict import predict
from distill_system.files import read_json, write_json
from distill_system.phases.base import Batch
from distill_system.phases.context import Context, Trained
from distill_system.phases.finish import split_of
from distill_system.settings import ZERO_STRATEGIES, Cohort, Training
from distill_system.signals import Signals
from distill_system.training.ensemble import together

STATE_BYTES = 16  # a trained fp32 parameter: weight, gradient, two moments
ROOM = 0.5  # share of the free memory that a rank's members may take together


def check_members(members: Mapping[str, nn.Module], context: Context) -> None:
    """Members that start from the same weights would say the same for ever: they have nothing to learn from each other.

    Raises:
        Refusal: two members of one architecture have equal weights, or they don't speak of the same classes or words.
    """
    names = list(members)
    widths = {name: output_width(model) for name, model in members.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise refuse(
            f"phases.{context.name}.members", f"differ in the number of classes or words they speak of ({told})"
        )
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if same_weights(members[one], members[other]):
                key = f"phases.{context.name}.members.{other}"
                raise refuse(
                    key,
                    f"starts from the same weights as {one}; give it another recipe, or other fresh weights with phases.{context.name}.seeds.{other}=NUMBER",
                )


def output_width(model: nn.Module) -> int:
    config = model.config
    return int(getattr(config, "vocab_size", 0) if hasattr(model, "lm_head") else getattr(config, "num_labels", 0))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    shapes = {name: p.shape for name, p in mine.items()} == {name: p.shape for name, p in theirs.items()}
    return shapes and all(torch.equal(p, theirs[name]) for name, p in mine.items())


def place(cohort: Cohort, members: Mapping[str, nn.Module], training: Training, kept: Path) -> tuple[bool, str | None]:
    """Whether members live on ranks of their own, and for `auto` a sentence that says why.

    Args:
        cohort: the settings.
        members: by name.
        training: of the phase.
        kept: file with what `auto` has chosen once: the memory that is free differs from start to start, a resumed run doesn't.
    """
    ranks, count = distributed.world(), len(members)
    if cohort.placement != "auto":
        return cohort.placement == "spread", None
    if ranks % count or ranks < count:
        return False, f"cohort.placement is together: {ranks} ranks can't be dealt to {count} members"
    if not distributed.from_main(kept.is_file()):
        spread, words = by_memory(members, training)
        distributed.main_only(lambda: write_json(kept, {"spread": spread, "why": words}))
    chosen = read_json(kept)
    return chosen["spread"], chosen["why"]


def by_memory(members: Mapping[str, nn.Module], training: Training) -> tuple[bool, str]:
    """Together as long as that leaves enough memory: then nothing has to be sent."""
    ranks, count = distributed.world(), len(members)
    parameters = [sum(p.numel() for p in model.parameters()) for model in members.values()]
    sharded = ranks if training.strategy in ZERO_STRATEGIES else 1
    needed = STATE_BYTES * sum(parameters) / sharded
    free = min(distributed.everyone(free_memory()))
    words = f"training state of all {count} members takes {needed / 2**30:.2f} GiB of a rank, {free / 2**30:.1f} GiB are free"
    if needed > ROOM * free:
        return True, f"cohort.placement is spread: {words}"
    return False, f"cohort.placement is together: {words}, and nothing has to be sent"


def free_memory() -> float:
    """Bytes that this rank may still take."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world()))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / max(1, local)


def ensemble_evaluation(context: Context, trained: Trained) -> dict[str, Any]:
    """Figures of the members' mean probabilities, on the rows that the members are measured on; all ranks together."""
    roles = trained.engine.objective.role_names

    def forward(batch: Batch) -> Tensor:
        own = [trained.engine.evaluate(batch, role) for role in trained.engine.objective.roles]
        logits_K = distributed.gather_peers(own[0]) if distributed.division() else own
        share = {role: torch.full(logits_K[0].shape[:-1], 1 / len(roles), device=logits_K[0].device) for role in roles}
        said = {role: Signals(logits) for role, logits in zip(roles, logits_K, strict=True)}
        return together(said, share, "probabilities", context.task)

    split = split_of(trained)
    store = trained.stores[split]
    predictions = predict(
        forward,
        trained.data.evaluation_batches(split),
        context.task,
        context.device,
        modules=[trained.engine.objective],
        samples=len(store),
    )
    figures = finite(
        phase_evaluation(predictions, split=split, label_names=context.label_names or (), num_bytes_N=store.num_bytes)
    )
    if distributed.is_main():
        write_json(context.folder / "ensemble.json", figures)
    return dict(figures["metrics"])
