"""What the ranks of test_pruning.py do: every kind of pruning under several strategies, stopped, resumed and compared. Phases run whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_system import distributed, load
from distill_system.export.dense import named_tensors
from distill_system.files import digest_value, read_json
from distill_system.losses.hint import Hint
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.models.from_config import FromConfig
from distill_system.phases.prune import Prune
from distill_system.pruning.blocks import Blocks
from distill_system.pruning.heads import Heads
from distill_system.pruning.layers import Layers
from distill_system.pruning.neurons import Neurons
from distill_system.pruning.scores.activation import Activation
from distill_system.pruning.scores.entropy import Entropy
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.scores.mean_activation import MeanActivation
from distill_system.pruning.scores.movement import Movement
from distill_system.pruning.scores.random_score import Random
from distill_system.pruning.scores.taylor import Taylor
from distill_system.pruning.weights import Weights
from tests.distributed.resumes import straight_and_on_from_elsewhere, straight_and_stopped
from tests.distributed.strategies import STUDENT, Work

STEPS, STOP = 8, 5
# Sides that blocks and patterns divide, and that don't divide by the ranks.
SIZES = STUDENT | {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3}


def recipe() -> FromConfig:
    return FromConfig(architecture="bert", tokenizer="bytes", dropout=0.0, **SIZES)


def kinds(folder: Path) -> dict[str, Callable[[], Prune]]:
    """Phases by name, each made anew for every training."""
    teacher = {"main": {"model": str(folder / "teacher"), "placement": "zero3"}}

    def prune(pruner: Any, *, taught: bool = False, losses: Any = None, **more: Any) -> Prune:
        schedule = {"final_sparsity": 0.6, "begin": 0.25, "end": 0.75, "rounds": 3} | more.pop("schedule", {})
        chosen = losses or ({"soft": SoftTarget(2.0)} if taught else {"hard": HardLabel()})
        return Prune(
            "prune",
            recipe(),  # type: ignore[arg-type]
            chosen,
            pruner,
            schedule=schedule,  # type: ignore[arg-type]
            teachers=dict(teacher) if taught else None,  # type: ignore[arg-type]
            calibration={"samples": 24},  # type: ignore[arg-type]
            **more,
        )

    shrinking = {"begin": 0.25, "end": 0.6, "rounds": 2, "final_sparsity": 0.67}
    return {
        "weights": lambda: prune(Weights(Magnitude()), taught=True),
        "layerwise": lambda: prune(Weights(Activation(), scope="layer")),
        "pattern": lambda: prune(Weights(Magnitude(), pattern=[2, 4]), schedule={"final_sparsity": 0.5}),
        "movement": lambda: prune(Weights(Movement())),
        "learned": lambda: prune(Weights(Movement(mode="learned", lr_scale=10.0))),
        "soft": lambda: prune(
            Weights(Movement(mode="learned", threshold="soft", cutoff=0.45, lr_scale=3000.0, penalty=0.3))
        ),
        "taylor": lambda: prune(Weights(Taylor())),
        "random": lambda: prune(Weights(Random()), schedule={"shape": "one_shot"}),
        "blocks": lambda: prune(Blocks(Magnitude(), block=[4, 2])),
        "neurons": lambda: prune(Neurons(MeanActivation()), taught=True),
        "entropy": lambda: prune(Neurons(Entropy(), uniform=False)),
        "taylor_neurons": lambda: prune(Neurons(Taylor())),
        "heads": lambda: prune(Heads(Magnitude()), schedule={"final_sparsity": 0.34}),
        "layers": lambda: prune(Layers(), taught=True, losses={"hint": Hint(projector="always")}, schedule=shrinking),
        "rule": lambda: prune(Layers(by="rule", rule="last"), schedule=shrinking),
        "rewind": lambda: prune(Weights(Magnitude()), schedule={"rewind": "weights"}),
        "gate": lambda: prune(Weights(Random()), gate={"metric": "nll", "at_most": 1.1}),
        "gate_neurons": lambda: prune(Neurons(Random()), gate={"metric": "nll", "at_most": 1.1}),
    }


class Pruning(Work):
    def run(self, kind: str, folder: str, *, stop_at: int | None = None, **settings: Any) -> dict[str, Any]:
        """Runs a phase in `<folder>/<folder>`, on from where it is."""
        lines: list[dict[str, Any]] = []
        told: list[str] = []
        settings = {"max_steps": STEPS, "checkpoint_every": 3, **settings}
        context = replace(self.context(folder, kind, lines.extend, stop_at, settings), tell=told.append)
        result = kinds(self.folder)[kind]().run(context)
        found: dict[str, Any] = {
            "loss": {line["step"]: line["loss"] for line in lines if "loss" in line},
            "events": [line for line in lines if line.get("event") in ("prune", "rollback")],
            "preempted": result.outcome.preempted,
            "digest": result.artifact.digest if result.artifact else None,
            "pruning": result.extra.get("pruning"),
            "told": told,
        }
        if result.artifact and distributed.is_main():
            found["zeros"] = zeros(result.artifact.folder)
            found["files"] = sorted(path.name for path in result.artifact.folder.iterdir())
            found["config"] = read_json(result.artifact.folder / "config.json")
        return found


def zeros(folder: Path) -> dict[str, Any]:
    """Of the saved model's matrices in the layers: digests of where zeros are, counts, and shapes."""
    model = load(folder)
    where, shapes = {}, {}
    for name, tensor in named_tensors(model):
        if ".layer." in name and tensor.dim() == 2:
            where[name] = [digest_value((tensor == 0).flatten().nonzero().flatten().tolist()), int((tensor == 0).sum())]
            shapes[name] = list(tensor.shape)
    return {"where": where, "shapes": shapes}


def first(folder: Path, chosen: list[str], every: bool) -> dict[str, Any]:
    return straight_and_stopped(Pruning, folder, chosen, every, STOP)


def again(folder: Path, chosen: list[str]) -> dict[str, Any]:
    return straight_and_on_from_elsewhere(Pruning, folder, chosen)
