"""The end of a phase: its artifacts written and proven by reloading them, their figures measured, their passports filled in."""

import functools
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.artifacts import Artifact, write_passport
from distill_system.data.collate import Batch, collate
from distill_system.evaluation.bits import bits
from distill_system.evaluation.evaluate import finite, phase_evaluation, prediction_rows
from distill_system.evaluation.latency import measure
from distill_system.evaluation.names import DEFAULT_METRIC, better
from distill_system.evaluation.predict import Predictions, predict
from distill_system.evaluation.size import size
from distill_system.export.dense import CODE, verify, write_model
from distill_system.export.sparse import write_sparse
from distill_system.files import folder_atomic, link_or_copy, read_json, write_json
from distill_system.manifest import Manifest
from distill_system.models.grids_file import write_grids
from distill_system.models.licences import licence_of
from distill_system.models.reading import is_sparse
from distill_system.phases.context import Context, Member, Result, Trained
from distill_system.pruning.masks import is_private
from distill_system.settings import ZERO_STRATEGIES

SPLITS = ("test", "validation", "train")  # the first that is there is what a phase is measured on
PROBE_ROWS = 8  # rows whose outputs must be the same after reloading
TOLERANCE = {
    "fp32": 1e-4,
    "bf16": 0.15,
    "fp16": 0.02,
}  # of logits; 16-bit runs are compared with the fp32 weights they hand on


@dataclass
class Taken:
    """What the live engine says of one role at its end: all that takes every rank."""

    role: str
    predictions: Predictions
    probe_logits: Tensor


def finish(context: Context, trained: Trained, *, keep: str = "all") -> Result:
    """Evaluates and writes what was trained, all ranks together; rank 0 holds the result.

    Args:
        context: of the phase.
        trained: its engine at the end.
        keep: "best" throws away the models of all members but the best.
    """
    if trained.outcome.preempted:
        return Result(None, trained.outcome)
    extra: dict[str, Any] = {"mapping": trained.script.mapping} if trained.script.mapping else {}
    if len(trained.engine.objective.role_names) == 1:
        (taken,) = take(context, trained)
        member = conclude(context, trained, taken)
        seconds = time.perf_counter() - trained.started
        return Result(member.artifact, trained.outcome, member.evaluation, seconds, extra=extra)
    members = finish_members(context, trained)
    best = best_member(members, trained.outcome.progress.best, monitor_of(context))
    if distributed.is_main():
        hand_on(context.folder, best)
        for name in members:
            if keep == "best" and name != best:
                shutil.rmtree(context.folder / name / "model", ignore_errors=True)
    distributed.barrier()
    seconds = time.perf_counter() - trained.started
    extra |= {"best_member": best}
    return Result(members[best].artifact, trained.outcome, members[best].evaluation, seconds, members, extra)


def finish_members(context: Context, trained: Trained) -> dict[str, Member]:
    """Every member in a folder of its own; known to all ranks."""
    taken = {one.role: one for one in take(context, trained)}
    roles = trained.engine.objective.role_names
    for role in (
        roles
    ):  # one after the other, also where they live apart: latency is measured on a machine that does nothing else
        if role in taken:
            conclude(context.of(role), trained, taken[role])
        distributed.barrier()
    return {role: read_member(context.of(role)) for role in roles}


def read_member(context: Context) -> Member:
    return Member(Artifact.read(context.folder / "model"), read_json(context.folder / "evaluation.json"))


def monitor_of(context: Context) -> str:
    return context.training.monitor or DEFAULT_METRIC[context.task]


def best_member(members: Mapping[str, Member], validation: Mapping[str, float], monitor: str) -> str:
    """The member with the best monitored metric on the validation rows; where there are none, on the rows it was measured on."""
    figures = {
        name: validation.get(name, member.evaluation["metrics"].get(monitor)) for name, member in members.items()
    }
    best = next(iter(figures))
    for name, value in figures.items():
        if better(monitor, value, figures[best]):
            best = name
    return best


def hand_on(folder: Path, member: str) -> None:
    """The phase's own artifact and figures are those of one member; files are linked, not copied, where the disk allows it."""
    with folder_atomic(folder / "model") as temporary:
        shutil.copytree(folder / member / "model", temporary, copy_function=link_or_copy, dirs_exist_ok=True)
    for name in ("evaluation.json", "predictions.json"):
        if (folder / member / name).is_file():
            write_json(folder / name, read_json(folder / member / name))


def take(context: Context, trained: Trained) -> list[Taken]:
    """Predictions and probe of every role that lives on this rank. Collective: a sharded teacher answers all ranks at once."""
    split = split_of(trained)
    found: list[Taken] = []
    for role in trained.engine.objective.roles:
        known = found[0].predictions if found else None
        # What teachers say of a row doesn't depend on the student; only where no logits are kept must they say it again.
        again = known is None or not known.teacher_logits
        predictions = predict(
            functools.partial(trained.engine.evaluate, role=role),
            trained.data.evaluation_batches(split),
            context.task,
            context.device,
            trained.teachers if again else {},
            modules=[trained.engine.objective, *(teacher.module for teacher in trained.teachers.values())],
            samples=len(trained.stores[split]),
        )
        if known is not None and not again:
            predictions = replace(predictions, teacher_logits=known.teacher_logits)
        found.append(Taken(role, predictions, probe_logits(context, trained, role)))
    return found


def conclude(context: Context, trained: Trained, taken: Taken) -> Member:
    """Writes one role's artifact and figures: all ranks that train it together, its lead rank writes."""
    folder = context.folder / "model"
    write_artifact(context, trained, taken, folder)
    member = Member(Artifact(folder, ""), {})
    if distributed.is_lead():
        evaluation = describe(context, trained, taken.predictions, folder)
        member = Member(record(context, trained, evaluation, folder), evaluation)
    if distributed.division() is None:
        distributed.barrier()
    return member


def split_of(trained: Trained) -> str:
    return next(name for name in SPLITS if name in trained.stores)


def probe(trained: Trained) -> Batch:
    """A few rows, the same on every rank."""
    store = trained.stores[split_of(trained)]
    return collate(store, list(range(min(PROBE_ROWS, len(store)))), trained.data.pad_id)


@torch.no_grad()
def probe_logits(context: Context, trained: Trained, role: str) -> Tensor:
    """What the live model says of the probe rows, whatever it is sharded over."""
    trained.engine.objective.eval()
    batch = {name: tensor.to(context.device) for name, tensor in probe(trained).items()}
    return trained.engine.evaluate(batch, role).float().cpu()


def write_artifact(context: Context, trained: Trained, taken: Taken, folder: Path) -> None:
    """Weights one by one from the live engine into safetensors; then plain `from_pretrained` must say what the live model said."""
    model = trained.engine.objective.roles[taken.role]
    weights = (pair for pair in trained.engine.whole_weights(taken.role) if not is_private(pair[0]))
    if not distributed.is_lead():
        for _ in weights:  # gathering takes every rank
            pass
        return
    if trained.conversion is not None:
        weights = trained.conversion(weights)
    batch = probe(trained)
    generation = getattr(model, "generation_config", None)
    forget_last_call(trained.tokenizer)
    with folder_atomic(folder) as temporary:
        sparse = getattr(model.config, "pruned", None) == "sparse"
        write = trained.write or (functools.partial(write_sparse, blocks={}) if sparse else write_model)
        write(
            temporary, tensors=weights, config=model.config, tokenizer=trained.tokenizer, generation_config=generation
        )
        if trained.conversion is not None:
            write_grids(temporary, trained.conversion.grids)
        tolerance = TOLERANCE[context.training.precision if context.training.strategy in ZERO_STRATEGIES else "fp32"]
        if context.training.precision != "fp32":
            tolerance = TOLERANCE[context.training.precision]
        verify(temporary, context.task, batch, taken.probe_logits, tolerance, tokenizer=trained.tokenizer)


def forget_last_call(tokenizer: Any) -> None:
    """Fast tokenizers keep the truncation of their last call and save it: an artifact's digest would hang on whether the token cache was warm."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def describe(context: Context, trained: Trained, predictions: Predictions, folder: Path) -> dict[str, Any]:
    """evaluation.json and predictions.json of a model."""
    split = split_of(trained)
    store = trained.stores[split]
    evaluation = phase_evaluation(
        predictions, split=split, label_names=context.label_names or (), num_bytes_N=store.num_bytes
    )
    rows = list(range(min(32, len(store))))
    evaluation |= measure(folder, context.task, collate(store, rows, trained.data.pad_id), device=context.device)
    evaluation["size"] = size(folder)
    write_json(context.folder / "evaluation.json", finite(evaluation))
    if predictions.logits_NC is not None:
        write_json(context.folder / "predictions.json", prediction_rows(predictions, store, context.label_names or ()))
    return finite(evaluation)


def record(context: Context, trained: Trained, evaluation: dict[str, Any], folder: Path) -> Artifact:
    """Passport and model card: the phase's own step after those of the models it came from."""
    manifest = Manifest.read(context.run_folder, context.run_name)
    phase = manifest.phases[context.name]
    lineage: list[dict[str, Any]] = []
    inputs = context.inputs or phase["inputs"]  # a step of a phase has its own
    for value in inputs.values():
        before = (
            Artifact.read(context.artifacts[value["phase"]]).lineage
            if "phase" in value
            else [{"model": value["model"]}]
        )
        lineage += [step for step in before if step not in lineage]
    step = {
        "phase": context.title,
        "kind": phase["kind"],
        "inputs": inputs,
        "steps": trained.outcome.progress.step,
    }
    settings = phase["settings"] | context.settings
    recipe = own_recipe(settings, context.member)
    bases = [name for name in (recipe.get("package"), recipe.get("name")) if name]
    inherited = [
        name for value in inputs.values() if "phase" in value for name in _bases(context.artifacts[value["phase"]])
    ]
    licences = [note for note in [licence_of(recipe)] if note]
    for value in inputs.values():
        note = (
            Artifact.read(context.artifacts[value["phase"]]).passport.get("license_note") if "phase" in value else None
        )
        licences += [part for part in (note or "").split(" | ") if part and part not in licences]
    return write_passport(
        folder,
        task=context.task,
        lineage=[*lineage, step],
        settings=settings,
        metrics=evaluation["metrics"] | {"split": evaluation["split"]},
        base_models=list(dict.fromkeys([*bases, *inherited])),
        license_note=" | ".join(licences) or None,
        title=f"{context.run_name}/{context.title}",
        tags=[phase["kind"]],
        command=manifest.command,
        extra={
            "format": form_of(folder),
            "size": evaluation["size"],
            "latency": evaluation["latency"],
            "teacher": evaluation["teacher"],
            "bits": bits(folder),
            "calibration": evaluation.get("calibration"),
        },
    )


def form_of(folder: Path) -> str:
    """How a model's folder is read: `dense` by plain `from_pretrained`; `cut` if its own code is trusted; `sparse` by `distill_system.load`."""
    return "sparse" if is_sparse(folder) else "cut" if (folder / CODE).is_file() else "dense"


def own_recipe(settings: Mapping[str, Any], member: str | None) -> Mapping[str, Any]:
    """The recipe that a model was made from: the phase's, or that of one of its students or members."""
    for group in ("students", "members"):
        if member in (settings.get(group) or {}):
            return settings[group][member]
    return settings.get("model") or {}


def _bases(folder: Path) -> list[str]:
    return Artifact.read(folder).passport.get("base_models", [])
