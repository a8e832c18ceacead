"""Whether equal members of a cohort run as one batched model: where that is possible, and where it was measured to pay."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.data.collate import collate
from distill_system.data.tokens import Stores
from distill_system.files import read_json, write_json
from distill_system.phases.base import Batch
from distill_system.phases.context import Context
from distill_system.phases.terms import Script
from distill_system.settings import ZERO_STRATEGIES, Cohort
from distill_system.training.batched import Batched
from distill_system.training.emit import LOGITS, emit
from distill_system.training.folded import CantBatch
from distill_system.training.objective import Objective

ROUNDS = 5  # of each way, one after the other
GAIN = 0.95  # share of the loop's time below which the batched way is taken


def batch_members(
    cohort: Cohort, context: Context, members: Mapping[str, nn.Module], script: Script, stores: Stores, pad_id: int
) -> Batched | None:
    """One model of all members, or None where they run one after the other; the reason is noted unless nobody asked.

    What was decided is kept beside the checkpoints, so that a resumed run computes in the same order.
    """
    if cohort.batched == "never":
        return None
    try:
        reason = hindrance(context, members, script)
        if reason:
            raise CantBatch(reason)
        for model in members.values():
            model.to(context.device)
        batched = Batched(members, context.task, compiled=cohort.compile)
        batch = micro_batch(context, stores, pad_id)
        check(batched, members, batch, context.task)
        check_losses(batched, members, script, batch, context.task)
    except CantBatch as error:
        context.note(f"cohort.batched: members run one after the other, because {error}")
        return None
    if cohort.batched == "always":
        return batched
    path = context.folder / "batched.json"
    if not distributed.from_main(path.is_file()):
        times = distributed.from_main(measure(batched, members, batch, context.task))
        if distributed.is_main():
            write_json(path, times | {"batched": times["batched_ms"] < GAIN * times["loop_ms"]})
        distributed.barrier()
    found = read_json(path)
    how = "as one batched model" if found["batched"] else "one after the other"
    told = f"a step took {found['batched_ms']:.1f} ms batched, {found['loop_ms']:.1f} ms in a loop"
    context.note(f"cohort.batched: members run {how}: {told}")
    return batched if found["batched"] else None


def hindrance(context: Context, members: Mapping[str, nn.Module], script: Script) -> str | None:
    """What beside their structure keeps members from running as one."""
    if distributed.division() is not None:
        return "they live on ranks of their own"
    if context.training.strategy in ZERO_STRATEGIES:
        return f"{context.training.strategy} shards each parameter by itself"
    if context.training.activation_checkpointing:
        return "activations are recomputed"
    inside = sorted({field for role in members for field in script.needs(role)} - LOGITS)
    return f"a loss reads their {inside[0]}" if inside else None


def micro_batch(context: Context, stores: Stores, pad_id: int) -> Batch:
    training = context.training
    rows = max(1, training.batch_size // (distributed.world() * training.accumulation))
    batch = collate(stores["train"], list(range(min(rows, len(stores["train"])))), pad_id)
    return {name: tensor.to(context.device) for name, tensor in batch.items()}


def check(batched: Batched, members: Mapping[str, nn.Module], batch: Batch, task: str) -> None:
    """Some operations have no batched form, or a wrong one: what comes out must be what the members say one by one.

    Raises:
        CantBatch: it fails, or says something else.
    """
    try:
        together = batched(batch)
    except Exception as error:
        raise CantBatch(f"one of its operations can't be batched ({str(error).splitlines()[0][:120]})") from error
    for name, model in members.items():
        training = model.training
        alone = emit(model.train(), batch, task).logits
        model.train(training)
        gap = float((together[name] - alone).detach().abs().max())
        if not gap <= 1e-4 * max(1.0, float(alone.detach().abs().max())):
            raise CantBatch(f"batched, {name} says something else (logits differ by {gap:.1e})")


def check_losses(batched: Batched, members: Mapping[str, nn.Module], script: Script, batch: Batch, task: str) -> None:
    """A loss of somebody's own may do what can't be done for several members at once.

    Raises:
        CantBatch: it fails, or finds something else.
    """
    heard = set(members) | {None}
    terms = [term for term in script.terms if term.source in heard]  # those that are computed at once
    ways = [Objective(members, script.losses, task=task, terms=terms, batched=one) for one in (None, batched)]
    scale_L = torch.ones(len(terms), device=batch["valid"].device)
    with torch.no_grad():
        (_, alone_L), (_, together_L) = (_sums(way, batch, scale_L) for way in ways)
    if not torch.allclose(alone_L, together_L, rtol=1e-4, atol=1e-5 * len(batch["valid"]), equal_nan=True):
        raise CantBatch("a loss of several members at once says something else than one by one")


def _sums(objective: Objective, batch: Batch, scale_L: Tensor) -> Any:
    try:
        return objective.train()(batch, None, scale_L)
    except Exception as error:
        raise CantBatch(
            f"a loss can't be computed for several members at once ({str(error).splitlines()[0][:120]})"
        ) from error


def measure(batched: Batched, members: Mapping[str, nn.Module], batch: Batch, task: str) -> dict[str, float]:
    """Median CPU milliseconds of a forward and backward of all members, each way."""

    def loop(batch: Batch) -> dict[str, Tensor]:
        return {name: emit(model, batch, task).logits for name, model in members.items()}

    def clocked(ways: Callable[[Batch], Mapping[str, Tensor]]) -> float:
        start = time.process_time()
        total: Any = sum(logits.square().mean() for logits in ways(batch).values())
        total.backward()
        for model in members.values():
            model.zero_grad(set_to_none=True)
        return 1000 * (time.process_time() - start)

    for model in members.values():
        model.train()
    times: dict[str, list[float]] = {"loop_ms": [], "batched_ms": []}
    for _ in range(ROUNDS + 1):
        times["loop_ms"].append(clocked(loop))
        times["batched_ms"].append(clocked(batched))
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first of each warms up
