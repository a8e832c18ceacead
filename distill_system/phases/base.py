"""Steps that recipes of phases are made of, as plain functions: data, engine, teachers, training, and the artifact at the end."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.artifacts import Artifact
from distill_system.data.datamodule import DataModule
from distill_system.data.tokens import Stores, tokenise
from distill_system.errors import refuse
from distill_system.evaluation.evaluate import phase_evaluation
from distill_system.evaluation.names import DEFAULT_METRIC, better
from distill_system.evaluation.predict import predict
from distill_system.files import digest_value, remove_leftovers
from distill_system.settings import Training
from distill_system.training.engine import Engine
from distill_system.training.fit import Fit, Outcome, steps_of
from distill_system.training.objective import Objective
from distill_system.training.strategy import autocast_of, make_engine
from distill_system.training.teachers import Teacher

Batch = Mapping[str, Tensor]


@dataclass
class Context:
    """What the pipeline hands to a phase."""

    run_folder: Path
    run_name: str
    name: str  # of the phase
    identity: str  # digest of all that determines the result
    source: Any  # data
    training: Training
    seed: int
    device: torch.device
    artifacts: dict[str, Path]  # models of the finished phases
    write: Callable[[list[dict[str, Any]]], None]  # takes journal lines, on rank 0
    rewind: Callable[[int], None]  # drops the phase's journal lines after a step, on rank 0
    announce: Callable[[int], None]  # told the total number of steps, on rank 0
    stop_asked: Callable[[], bool]
    warnings: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.run_folder / self.name

    @property
    def task(self) -> str:
        return self.source.task

    @functools.cached_property
    def phase_seed(self) -> int:
        """Differs between phases, and doesn't change when another phase is added before."""
        return int(digest_value([self.seed, self.name])[:8], 16)

    @property
    def label_names(self) -> list[str] | None:
        return self.source.label_names() if self.task == "classification" else None


@dataclass
class Result:
    """What a phase hands back; `artifact` is None when it was told to leave before its end."""

    artifact: Artifact | None
    outcome: Outcome
    evaluation: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Trained:
    """An engine at the end of its training, with what evaluation and export need."""

    engine: Engine
    outcome: Outcome
    data: DataModule
    stores: Stores
    teachers: dict[str, Teacher]
    tokenizer: Any
    started: float


def build_student(recipe: Any, context: Context) -> tuple[nn.Module, Any]:
    """Model and tokenizer of a phase, the same on every rank. All ranks build at once: caches below are locked while one fetches."""
    return recipe.build(
        task=context.task,
        label_names=context.label_names,
        artifacts=context.artifacts,
        seed=context.phase_seed,
        key=f"phases.{context.name}.model",
    )


def load_data(context: Context, tokenizer: Any) -> Stores:
    """Tokenised splits; whichever rank comes first makes them, the others find them in the cache. Their warnings go into the report."""
    stores = tokenise(context.source, tokenizer)
    context.warnings += stores.summary["warnings"]
    return stores


def train(
    context: Context,
    student: nn.Module,
    tokenizer: Any,
    losses: Mapping[str, nn.Module],
    *,
    stores: Stores,
    teachers: dict[str, Teacher],
    started: float,
) -> Trained:
    """Trains the student on its losses from its last checkpoint to its last step, or to a signal."""
    training = context.training
    if training.activation_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(student, losses, task=context.task, autocast=autocast_of(training, context.device))
    check_trainable(objective, context.name)
    engine = make_engine(objective, training, context.device)
    data = data_module(context, stores, tokenizer, start_step=0, total_steps=0)
    total_steps = steps_of(training, data.steps_per_epoch)
    monitor = training.monitor or DEFAULT_METRIC[context.task]
    checkpoints = context.folder / "checkpoints"
    if distributed.is_main():
        remove_leftovers(checkpoints)
    fit = Fit(
        engine,
        teacher=next(iter(teachers.values()), None),
        training=training,
        folder=checkpoints,
        phase=context.name,
        identity=context.identity,
        seed=context.phase_seed,
        total_steps=total_steps,
        steps_per_epoch=data.steps_per_epoch,
        loader=lambda first: data_module(
            context, stores, tokenizer, start_step=first, total_steps=total_steps
        ).train_dataloader(),
        validate=functools.partial(validate, context, engine, data) if "validation" in stores else None,
        better=functools.partial(better, monitor),
        monitor=monitor,
        write=context.write,
        rewind=context.rewind,
        stop_asked=context.stop_asked,
        announce=context.announce,
    )
    outcome = fit.run(context.device)
    context.warnings += outcome.warnings
    return Trained(engine, outcome, data, stores, teachers, tokenizer, started)


def data_module(context: Context, stores: Stores, tokenizer: Any, *, start_step: int, total_steps: int) -> DataModule:
    pad_id = tokenizer.pad_token_id
    return DataModule(
        stores,
        pad_id=0 if pad_id is None else pad_id,  # masked out anyway
        batch_size=context.training.batch_size,
        accumulation=context.training.accumulation,
        eval_batch_size=context.training.eval_batch_size,
        seed=context.phase_seed,
        rank=distributed.rank(),
        world=distributed.world(),
        start_step=start_step,
        total_steps=total_steps,
    )


def check_trainable(objective: Objective, phase: str) -> None:
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise refuse(f"phases.{phase}.model.frozen", "freezes every parameter: there is nothing to train")


def validate(context: Context, engine: Engine, data: DataModule) -> dict[str, float]:
    """Metrics on the validation split, over all ranks."""
    predictions = predict(
        engine.evaluate,
        data.evaluation_batches("validation"),
        context.task,
        context.device,
        modules=[engine.objective],
        samples=len(data.stores["validation"]),
    )
    store = data.stores["validation"]
    figures = phase_evaluation(
        predictions, split="validation", label_names=context.label_names or (), num_bytes_N=store.num_bytes
    )
    return figures["metrics"]
