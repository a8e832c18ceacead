"""What the ranks of test_quantization.py do: every quantizer under several strategies, stopped, resumed and compared. Phases run whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_system import distributed, load
from distill_system.files import digest_value, read_json
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.models.from_config import FromConfig
from distill_system.models.grids_file import read_grids
from distill_system.phases.prune import Prune
from distill_system.phases.quantize import Quantize
from distill_system.pruning.scores.magnitude import Magnitude
from distill_system.pruning.weights import Weights
from distill_system.quantization.binary import BinaryConstants, DeterministicBinary
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.loss_aware import LossAware
from distill_system.quantization.ternary import BernoulliTernary, TernaryConnect
from distill_system.quantization.trained_ternary import TrainedTernary
from tests.distributed.resumes import straight_and_on_from_elsewhere, straight_and_stopped
from tests.distributed.strategies import STUDENT, Work

STEPS, STOP = 6, 4
# Sides that groups divide, and that don't divide by the ranks.
SIZES = STUDENT | {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 3}


def recipe(architecture: str = "bert") -> FromConfig:
    return FromConfig(architecture=architecture, tokenizer="bytes", dropout=0.0, **SIZES)


def kinds(folder: Path) -> dict[str, Callable[[], Any]]:
    """Phases by name, each made anew for every training."""
    teacher = {"main": {"model": str(folder / "teacher"), "placement": "zero3"}}

    def quantize(quantizer: Any, *, taught: bool = False, **more: Any) -> Quantize:
        return Quantize(
            "quantize",
            recipe(),  # type: ignore[arg-type]
            {"soft": SoftTarget(2.0)} if taught else {"hard": HardLabel()},
            quantizer,
            teachers=dict(teacher) if taught else None,  # type: ignore[arg-type]
            calibration={"samples": 24},  # type: ignore[arg-type]
            **more,
        )

    return {
        "deterministic_binary": lambda: quantize(DeterministicBinary()),
        "binary_constants": lambda: quantize(BinaryConstants(scale_lr=10.0)),
        "ternary_connect": lambda: quantize(TernaryConnect(), mixing={"begin": 0.2, "until": 0.6}),
        "bernoulli_ternary": lambda: quantize(BernoulliTernary()),
        "trained_ternary": lambda: quantize(TrainedTernary(), taught=True, embeddings={"bits": 4}),
        "kbit": lambda: quantize(Kbit(bits=2, schedule=[8, 4, 2]), activations={"bits": 8}),
        "loss_aware": lambda: quantize(LossAware("ternary")),
        "loss_aware_binary": lambda: quantize(LossAware("binary", granularity="tensor")),
        "grouped": lambda: quantize(
            Kbit(bits=3, symmetric=False, granularity="group", group_size=4),
            activations={"bits": 8, "range": "running"},
        ),
        "while_pruning": lambda: Prune(
            "prune",
            recipe(),  # type: ignore[arg-type]
            {"hard": HardLabel()},
            Weights(Magnitude()),
            schedule={"final_sparsity": 0.6, "begin": 0.2, "end": 0.7, "rounds": 2},  # type: ignore[arg-type]
            calibration={"samples": 24},  # type: ignore[arg-type]
            quantizer=TrainedTernary(),
        ),
    }


class Quantization(Work):
    def run(self, kind: str, folder: str, *, stop_at: int | None = None, **settings: Any) -> dict[str, Any]:
        """Runs a phase in `<folder>/<folder>`, on from where it is."""
        lines: list[dict[str, Any]] = []
        told: list[str] = []
        settings = {"max_steps": STEPS, "checkpoint_every": 2, **settings}
        context = replace(self.context(folder, kind, lines.extend, stop_at, settings), tell=told.append)
        result = kinds(self.folder)[kind]().run(context)
        found: dict[str, Any] = {
            "loss": {line["step"]: line["loss"] for line in lines if "loss" in line},
            "events": [line for line in lines if line.get("event") == "quantize"],
            "preempted": result.outcome.preempted,
            "digest": result.artifact.digest if result.artifact else None,
            "record": result.extra.get("quantization"),
            "told": told,
        }
        if result.artifact and distributed.is_main():
            found |= codes(result.artifact.folder)
            found["metrics"] = result.evaluation["metrics"]
        return found


def codes(folder: Path) -> dict[str, Any]:
    """Of the saved model's quantized matrices: digests of their codes, their scales, and how often packed and plain values differ."""
    plain, packed = load(folder), load(folder.with_name("packed"))
    values, digests, scales = dict(plain.state_dict()), {}, {}
    for name, grid in read_grids(folder).items():
        digests[name] = digest_value(grid.codes(values[name]).flatten().tolist())
        scales[name] = {own: tensor.flatten().tolist()[:50] for own, tensor in grid.grid.tensors().items()}
    different = {
        name: int((values[name] != weight).sum())
        for name in digests
        if (weight := packed.get_submodule(name.rpartition(".")[0]).weight) is not None
    }
    return {
        "codes": digests,
        "scales": scales,
        "different": different,
        "zeros": {name: float((values[name] == 0).float().mean()) for name in digests},
        "config": read_json(folder / "config.json")["quantized"],
    }


def first(folder: Path, chosen: list[str], every: bool) -> dict[str, Any]:
    return straight_and_stopped(Quantization, folder, chosen, every, STOP)


def again(folder: Path, chosen: list[str]) -> dict[str, Any]:
    return straight_and_on_from_elsewhere(Quantization, folder, chosen)
