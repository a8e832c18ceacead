"""What several students, members and hints cost in a step; part of `python -m benchmarks.step`.

A step is a forward of all that takes part, their losses and the backward, by one thread's CPU time, median of interleaved rounds; without the optimizer, which
costs the same either way. Tiny steps are taken twenty in a row: alone after a collection of garbage, they would measure cold caches.

shared_teacher        N = 4 students on one teacher in one objective; peer: four objectives of one student, each with its own teacher forward. floor: the
                      computed (T + N S) / (N (T + S)) of the measured teacher T and student S. Goal: <= floor + 0.03.
cohort_tiny           a cohort of 4 tiny members (d = 32, 2 layers) as one batched model; peer: member by member. Goal: <= 0.70.
cohort_tiny_compiled  the same through torch.compile. Goal: <= 0.40.
cohort_large          4 members of d = 256, 4 layers, each way chosen as `cohort.batched=auto` chooses; peer: member by member. Goal: <= 1.02.
hint                  soft targets and hints of all layers; peer: soft targets alone. What the hints cost; no goal.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.common import Figures, figure, interleaved
from distill_system.losses.hint import Hint
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.phases.batching import GAIN
from distill_system.phases.batching import measure as measure_ways
from distill_system.phases.terms import rehearse, write_script
from distill_system.settings import Ensemble
from distill_system.training.batched import Batched
from distill_system.training.emit import Batch
from distill_system.training.ensemble import Faculty
from distill_system.training.objective import Objective
from distill_system.training.teachers import Teacher

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
LARGE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
BIG = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
CLASSES, WORDS, MEMBERS = 10, 1000, 4
Step = Callable[[], float]


def bert(seed: int, sizes: Mapping[str, int]) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes
    )
    return BertForSequenceClassification(config).train()


def batch(rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (rows, length), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, CLASSES, (rows,), generator=generator),
        "valid": torch.ones(rows, dtype=torch.bool),
        "index": torch.arange(rows),
    }


def step_of(objective: Objective, given: Batch, heard: Callable[[Batch], Any] | None = None) -> Step:
    """CPU seconds of one step."""
    scale_L = torch.tensor(objective.weights(0.0)) / objective.count(given).clamp(min=1)

    def step() -> float:
        start = time.thread_time()
        loss, _ = objective(given, heard(given) if heard else None, scale_L)
        loss.backward()
        took = time.thread_time() - start
        objective.zero_grad(set_to_none=True)
        return took

    return step


def mutual(members: dict[str, nn.Module], batched: Batched | None) -> Objective:
    script = write_script(list(members), {"hard": HardLabel()}, peer_losses={"peer": SoftTarget(1.0)})
    return Objective(members, script.losses, task="classification", terms=script.terms, batched=batched)


def taught(students: dict[str, nn.Module], teacher: nn.Module, losses: dict[str, Any], given: Batch) -> Step:
    frozen = {"main": Teacher(teacher.eval().requires_grad_(False), task="classification")}
    script = write_script(list(students), losses, teachers={"main": 1.0})
    rehearse(script, students, frozen, given, task="classification", seed=0, phase="benchmark")
    objective = Objective(students, script.losses, task="classification", terms=script.terms)
    return step_of(objective, given, Faculty(frozen, Ensemble(), {"main": 1.0}, script.sources, "classification"))


def ratio(ours: Step, peer: Step, rounds: int, floor: float | None = None, *, row: int = 1) -> dict[str, Any]:
    for step in (ours, peer):  # caches, compilation
        for _ in range(2):
            step()
    arms = {
        name: (lambda s=step: sum(s() for _ in range(row)) / row) for name, step in {"ours": ours, "peer": peer}.items()
    }
    found = interleaved(arms, rounds)
    one, other = (1000 * statistics.median(found[name]) for name in ("ours", "peer"))
    return figure(one, other, floor, "ms of CPU a step")


def shared_teacher(rounds: int) -> dict[str, Any]:
    given, teacher = batch(16, 32), bert(0, BIG)
    students = {f"s{i}": bert(i, SMALL) for i in range(1, MEMBERS + 1)}
    losses = {"soft": SoftTarget(2.0), "hard": HardLabel()}
    apart = [taught({name: student}, teacher, losses, given) for name, student in students.items()]
    alone = step_of(Objective(students["s1"], {"hard": HardLabel()}, task="classification"), given)

    def teach() -> float:
        start = time.thread_time()
        Teacher(teacher, task="classification")(given)
        return time.thread_time() - start

    found = interleaved({"t": teach, "s": alone}, rounds + 1)
    t, s = (statistics.median(found[name][1:]) for name in ("t", "s"))
    floor = (t + MEMBERS * s) / (MEMBERS * (t + s))
    return ratio(taught(students, teacher, losses, given), lambda: sum(step() for step in apart), rounds, floor)


def cohort(sizes: Mapping[str, int], given: Batch, rounds: int, way: str) -> dict[str, Any]:
    members = {f"m{i}": bert(i, sizes) for i in range(MEMBERS)}
    batched = Batched(members, "classification", compiled=way == "compiled")
    chosen: Batched | None = batched
    if way == "auto":
        times = measure_ways(batched, members, given, "classification")
        chosen = batched if times["batched_ms"] < GAIN * times["loop_ms"] else None
    row = 20 if sizes is TINY else 1
    return ratio(step_of(mutual(members, chosen), given), step_of(mutual(members, None), given), rounds, row=row)


def hint(rounds: int) -> dict[str, Any]:
    given, teacher = batch(16, 32), bert(0, BIG)
    soft: dict[str, Any] = {"soft": SoftTarget(2.0)}
    with_hints = taught({"student": bert(1, SMALL)}, teacher, soft | {"hint": Hint()}, given)
    return ratio(with_hints, taught({"student": bert(1, SMALL)}, teacher, soft, given), rounds)


def measure(rounds: int, *, compiled: bool = True) -> Figures:
    """All figures; without the compiled one, which takes a minute, if asked."""
    tiny = batch(8, 8)
    found = {
        "shared_teacher": shared_teacher(rounds),
        "cohort_tiny": cohort(TINY, tiny, rounds, "batched"),
        "cohort_large": cohort(LARGE, batch(4, 64), max(2, rounds // 2), "auto"),
        "hint": hint(rounds),
    }
    if compiled:
        found["cohort_tiny_compiled"] = cohort(TINY, tiny, rounds, "compiled")
    return found
