"""What the ranks of test_methods.py do: every way to distil under several strategies, stopped, resumed and compared. Phases run whole, with their artifacts."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill_system import distributed
from distill_system.losses.attention import AttentionTransfer
from distill_system.losses.decoupled import Decoupled
from distill_system.losses.divergences import JensenShannon
from distill_system.losses.hint import Hint
from distill_system.losses.logits import SoftTarget
from distill_system.losses.relation import Relation
from distill_system.losses.relational import Relational
from distill_system.losses.task import HardLabel
from distill_system.models.from_config import FromConfig
from distill_system.phases import finish
from distill_system.phases.assistants import Assistants
from distill_system.phases.distill import Distill
from distill_system.phases.mutual import Mutual
from tests.distributed.strategies import STUDENT, Work

STEPS, STOP = 5, 3
SMALL = {"num_hidden_layers": 1, "hidden_size": 24}


def recipe(**settings: Any) -> FromConfig:
    return FromConfig(architecture="bert", tokenizer="bytes", dropout=0.0, **(STUDENT | settings))


def methods(folder: Path) -> dict[str, Callable[[], Any]]:
    """Phases by name, each made anew for every training."""
    main = {"model": str(folder / "teacher"), "placement": "zero3"}
    narrow = {"model": str(folder / "narrow"), "placement": "replicated", "weight": 0.5}
    both = {"main": main, "narrow": narrow}

    def mutual(placement: str, **more: Any) -> Any:
        members = {"a": recipe(), "b": recipe(**SMALL)}
        losses = {"hard": HardLabel()} | more.pop("losses", {})
        cohort = {"placement": placement, "artifact": "ensemble"}
        return Mutual("mutual", members, losses, {"peer": SoftTarget(1.0)}, cohort=cohort, **more)

    inside = {
        "hint": Hint(layers="auto"),
        "attention": AttentionTransfer(),
        "relation": Relation(relation_heads=2),
        "relational": Relational(),
        "hard": HardLabel(),
    }
    logits = {
        "decoupled": Decoupled(),
        "jensen_shannon": JensenShannon(weight={"start": 1.0, "end": 0.2, "shape": "cosine"}),  # type: ignore[arg-type]
    }
    trusted = {"combine": "losses", "weighting": "confidence"}
    return {
        "students": lambda: Distill(
            "distill",
            {"main": main},
            {"soft": SoftTarget(2.0), "hard": HardLabel()},
            students={"a": recipe(), "b": recipe(**SMALL)},
        ),
        "inside": lambda: Distill("distill", {"main": main}, dict(inside), model=recipe()),
        "logits": lambda: Distill("distill", {"main": main}, dict(logits), model=recipe()),
        "teachers": lambda: Distill("distill", dict(both), {"soft": SoftTarget(2.0)}, model=recipe()),
        "trusted": lambda: Distill(
            "distill", dict(both), {"soft": SoftTarget(2.0), "hint": Hint()}, model=recipe(), ensemble=trusted
        ),
        "chain": lambda: Assistants(
            "assistants",
            recipe(**SMALL),
            {"main": main},
            {"soft": SoftTarget(2.0), "hard": HardLabel()},
            assistants={"middle": recipe()},
            densely_guided=True,
        ),
        "together": lambda: mutual("together"),
        "spread": lambda: mutual("spread"),
        "taught": lambda: mutual("spread", teachers={"main": main}, losses={"soft": SoftTarget(2.0)}),
    }


class Methods(Work):
    def prepare(self) -> None:
        super().prepare()
        teacher, tokenizer = recipe(num_hidden_layers=1).build(
            task="classification", label_names=["blue", "green", "red"], artifacts={}, seed=6
        )
        with torch.no_grad():
            teacher.classifier.weight *= 20
        teacher.save_pretrained(self.folder / "narrow")
        tokenizer.save_pretrained(self.folder / "narrow")

    def run(
        self, method: str, folder: str, *, stop_at: int | None = None, identity: str | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Runs a phase in `<folder>/<folder>`, on from where it is."""
        lines: list[dict[str, Any]] = []
        context = self.context(folder, identity or method, lines.extend, stop_at, {"max_steps": STEPS, **settings})
        result = methods(self.folder)[method]().run(context)
        loss = {
            f"{line['phase'].removeprefix('phase').lstrip('.')}{line['step']}": {
                k: v for k, v in line.items() if k.startswith(("loss", "grad_norm", "weight"))
            }
            for line in lines
            if "loss" in line
        }
        return {
            "loss": loss,
            "preempted": result.outcome.preempted,
            "digests": {name: member.artifact.digest for name, member in result.members.items()},
            "digest": result.artifact.digest if result.artifact else None,
            "extra": result.extra,
            "notes": context.notes,
        }


def quick_latency() -> None:
    """Latency is measured elsewhere; here it would be most of the time."""
    finish.measure = functools.partial(finish.measure, budget_s=0.02)


def first(folder: Path) -> dict[str, Any]:
    """Two ranks: each method straight, and stopped and resumed in place and by another strategy or placement."""
    quick_latency()
    work = Methods(folder)
    if distributed.is_main():
        work.prepare()
    distributed.barrier()
    found: dict[str, Any] = {"straight": {}, "resumed": {}, "elsewhere": {}}
    for method in methods(folder):
        for strategy in ("ddp", "zero2", "zero3"):
            found["straight"][f"{method}-{strategy}"] = work.run(method, f"{method}-{strategy}", strategy=strategy)
    for number, method in enumerate(methods(folder)):
        strategy = ("zero3", "zero2", "ddp")[number % 3]
        name = f"stopped-{method}"
        stopped = work.run(method, name, stop_at=STOP, strategy=strategy)
        if distributed.is_main():
            shutil.copytree(folder / name, folder / f"{name}-elsewhere")
        distributed.barrier()
        found["resumed"][method] = [strategy, stopped, work.run(method, name, strategy=strategy)]
    # A cohort's checkpoint doesn't care where its members live, nor under which strategy.
    for source, target, strategy in (("together", "spread", "zero3"), ("spread", "together", "zero2")):
        name = f"stopped-{source}-elsewhere"
        found["elsewhere"][f"{source}>{target}"] = work.run(target, name, identity=source, strategy=strategy)
    return found


def again(folder: Path, chosen: list[str]) -> dict[str, Any]:
    """Another number of ranks: a part of them."""
    quick_latency()
    work = Methods(folder)
    world = distributed.world()
    strategy = {1: "zero2", 4: "zero3"}[world]
    return {method: work.run(method, f"{method}-{strategy}-{world}", strategy=strategy) for method in chosen}
