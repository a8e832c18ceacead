"""The end of a phase: its artifact written and proven by reloading it, its figures measured, its passport filled in."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.artifacts import Artifact, write_passport
from distill_system.data.collate import Batch, collate
from distill_system.evaluation.evaluate import finite, phase_evaluation, prediction_rows
from distill_system.evaluation.latency import measure
from distill_system.evaluation.predict import Predictions, predict
from distill_system.evaluation.size import size
from distill_system.export.dense import verify, write_model
from distill_system.files import folder_atomic, write_json
from distill_system.manifest import Manifest
from distill_system.phases.base import Context, Result, Trained
from distill_system.settings import ZERO_STRATEGIES

PROBE_ROWS = 8  # rows whose outputs must be the same after reloading
TOLERANCE = {
    "fp32": 1e-4,
    "bf16": 0.15,
    "fp16": 0.02,
}  # of logits; 16-bit runs are compared with the fp32 weights they hand on


def finish(context: Context, trained: Trained) -> Result:
    """Evaluates and writes what was trained, all ranks together; rank 0 holds the result."""
    if trained.outcome.preempted:
        return Result(None, trained.outcome)
    split = next(name for name in ("test", "validation", "train") if name in trained.stores)
    predictions = predict(
        trained.engine.evaluate,
        trained.data.evaluation_batches(split),
        context.task,
        context.device,
        trained.teachers,
        modules=[trained.engine.objective, *(teacher.module for teacher in trained.teachers.values())],
        samples=len(trained.stores[split]),
    )
    folder = context.folder / "model"
    write_artifact(context, trained, folder, probe_logits(context, trained, split))
    evaluation: dict[str, Any] = {}
    artifact = Artifact(folder, "")
    if distributed.is_main():
        evaluation = describe(context, trained, predictions, split, folder)
        artifact = record(context, trained, evaluation, folder)
    distributed.barrier()
    return Result(artifact, trained.outcome, evaluation, time.perf_counter() - trained.started)


def probe(trained: Trained, split: str) -> Batch:
    """A few rows, the same on every rank."""
    store = trained.stores[split]
    pad_id = trained.data.pad_id
    return collate(store, list(range(min(PROBE_ROWS, len(store)))), pad_id)


@torch.no_grad()
def probe_logits(context: Context, trained: Trained, split: str) -> Tensor:
    """What the live model says of the probe rows, whatever it is sharded over."""
    trained.engine.objective.eval()
    batch = {name: tensor.to(context.device) for name, tensor in probe(trained, split).items()}
    return trained.engine.evaluate(batch).float().cpu()


def write_artifact(context: Context, trained: Trained, folder: Path, logits: Tensor) -> None:
    """Weights one by one from the live engine into safetensors; then plain `from_pretrained` must say what the live model said."""
    config = trained.engine.objective.student.config
    weights = trained.engine.whole_weights()
    if not distributed.is_main():
        for _ in weights:  # gathering takes every rank
            pass
        return
    batch = probe(trained, next(name for name in ("test", "validation", "train") if name in trained.stores))
    generation = getattr(trained.engine.objective.student, "generation_config", None)
    forget_last_call(trained.tokenizer)
    with folder_atomic(folder) as temporary:
        write_model(temporary, weights, config, trained.tokenizer, generation_config=generation)
        tolerance = TOLERANCE[context.training.precision if context.training.strategy in ZERO_STRATEGIES else "fp32"]
        if context.training.precision != "fp32":
            tolerance = TOLERANCE[context.training.precision]
        verify(temporary, context.task, batch, logits, tolerance, tokenizer=trained.tokenizer)


def forget_last_call(tokenizer: Any) -> None:
    """Fast tokenizers keep the truncation of their last call and save it: an artifact's digest would hang on whether the token cache was warm."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def describe(context: Context, trained: Trained, predictions: Predictions, split: str, folder: Path) -> dict[str, Any]:
    """evaluation.json and predictions.json of the phase."""
    store = trained.stores[split]
    evaluation = phase_evaluation(
        predictions, split=split, label_names=context.label_names or (), num_bytes_N=store.num_bytes
    )
    rows = list(range(min(32, len(store))))
    evaluation |= measure(folder, context.task, collate(store, rows, trained.data.pad_id), device=context.device)
    evaluation["size"] = size(folder)
    write_json(context.folder / "evaluation.json", finite(evaluation))
    if context.task == "classification":
        write_json(context.folder / "predictions.json", prediction_rows(predictions, store, context.label_names or ()))
    return finite(evaluation)


def record(context: Context, trained: Trained, evaluation: dict[str, Any], folder: Path) -> Artifact:
    """Passport and model card: the phase's own step after those of the models it came from."""
    manifest = Manifest.read(context.run_folder, context.run_name)
    phase = manifest.phases[context.name]
    lineage: list[dict[str, Any]] = []
    for value in phase["inputs"].values():
        before = (
            Artifact.read(context.artifacts[value["phase"]]).lineage
            if "phase" in value
            else [{"model": value["model"]}]
        )
        lineage += [step for step in before if step not in lineage]
    step = {
        "phase": context.name,
        "kind": phase["kind"],
        "inputs": phase["inputs"],
        "steps": trained.outcome.progress.step,
    }
    recipe = phase["settings"]["model"]
    bases = [name for name in (recipe.get("package"), recipe.get("name")) if name]
    inherited = [
        name
        for value in phase["inputs"].values()
        if "phase" in value
        for name in _bases(context.artifacts[value["phase"]])
    ]
    return write_passport(
        folder,
        task=context.task,
        lineage=[*lineage, step],
        settings=phase["settings"],
        metrics=evaluation["metrics"] | {"split": evaluation["split"]},
        base_models=list(dict.fromkeys([*bases, *inherited])),
        title=f"{context.run_name}/{context.name}",
        tags=[phase["kind"]],
        command=manifest.command,
        extra={"size": evaluation["size"], "latency": evaluation["latency"], "teacher": evaluation["teacher"]},
    )


def _bases(folder: Path) -> list[str]:
    return Artifact.read(folder).passport.get("base_models", [])
