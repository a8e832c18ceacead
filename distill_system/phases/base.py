"""Steps that recipes of phases are made of, as plain functions: data, engine, teachers, training, and the artifact at the end."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from distill_system import distributed
from distill_system.data.collate import collate
from distill_system.data.datamodule import DataModule
from distill_system.data.tokens import Stores, tokenise
from distill_system.errors import Refusal, refuse
from distill_system.evaluation.evaluate import phase_evaluation
from distill_system.evaluation.names import DEFAULT_METRIC, better
from distill_system.evaluation.predict import predict
from distill_system.evaluation.readers import reader_for
from distill_system.files import digest_value, remove_leftovers
from distill_system.losses.base import Loss
from distill_system.models.alignment import check_tokenizers
from distill_system.models.parts import matrices
from distill_system.phases.context import Context, Trained
from distill_system.phases.terms import Script, in_words, known_classes, rehearse, write_script
from distill_system.pruning.masks import keep_zeros
from distill_system.settings import Ensemble
from distill_system.training.checkpoint import Loading
from distill_system.training.engine import Engine
from distill_system.training.ensemble import Faculty
from distill_system.training.exchange import exchange_logits
from distill_system.training.fit import Fit, steps_of
from distill_system.training.modifier import Modifier
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.strategy import autocast_of, make_engine
from distill_system.training.teachers import Teacher

Batch = Mapping[str, Tensor]
PROBE_ROWS = 2  # rows that losses are fitted to their models with


def build_student(
    recipe: Any, context: Context, *, key: str = "model", seed: int | None = None
) -> tuple[nn.Module, Any]:
    """Model and tokenizer of a phase, the same on every rank. All ranks build at once: caches below are locked while one fetches."""
    where = f"phases.{context.name}.{key}"
    model, reader = recipe.build(
        task=context.task,
        label_names=context.label_names,
        artifacts=context.artifacts,
        seed=context.phase_seed if seed is None else seed,
        key=where,
    )
    reader, warnings = reader_for(context.source, reader, model.config, where)
    context.warnings += warnings
    if getattr(model.config, "pruned", None):
        kept = keep_zeros(model, [name for name, *_ in matrices(model)])
        context.note(f"{where}: {kept:,} weights that were pruned before stay zero")
    return model, reader


def build_members(
    recipes: Mapping[str, Any], context: Context, *, group: str, seeds: Mapping[str, int | None] | None = None
) -> tuple[dict[str, nn.Module], Any]:
    """Several models that see the same batches, and the tokenizer that they share.

    Args:
        recipes: by the members' names.
        context: of the phase.
        group: key of the recipes below the phase.
        seeds: of fresh weights; a member without one takes it from its name.

    Raises:
        Refusal: their tokenizers differ.
    """
    models, first = {}, None
    for name, recipe in recipes.items():
        own = (seeds or {}).get(name)
        seed = int(digest_value([context.phase_seed, name])[:8], 16) if own is None else own
        models[name], tokenizer = build_student(recipe, context, key=f"{group}.{name}", seed=seed)
        if first is None:
            first = tokenizer
        else:
            problems = check_tokenizers(first, tokenizer, key=f"phases.{context.name}.{group}.{name}")
            if problems:
                raise Refusal(problems)
    return models, first


def load_data(context: Context, tokenizer: Any) -> Stores:
    """Tokenised splits; whichever rank comes first makes them, the others find them in the cache. Their warnings go into the report."""
    stores = tokenise(context.source, tokenizer)
    context.warnings += stores.summary["warnings"]
    return stores


def train(
    context: Context,
    students: nn.Module | Mapping[str, nn.Module],
    tokenizer: Any,
    losses: Mapping[str, Loss],
    *,
    stores: Stores,
    teachers: dict[str, Teacher],
    started: float,
    weights: Mapping[str, float] | None = None,
    ensemble: Ensemble | None = None,
    peer_losses: Mapping[str, Loss] | None = None,
    roles: list[str] | None = None,
    batch_members: Callable[[Mapping[str, nn.Module], Script, Stores, int], Any] | None = None,
    modifier: Callable[[int], Modifier] | None = None,
    continued: bool = False,
    loading: Loading | None = None,
) -> Trained:
    """Trains students on their losses from their last checkpoint to their last step, or to a signal.

    Args:
        context: of the phase.
        students: one, or those by name that live on this rank.
        tokenizer: of all.
        losses: as the config has them.
        stores: tokenised splits.
        teachers: by name.
        started: when the phase began.
        weights: of the teachers; None: equal.
        ensemble: how several teachers teach together.
        peer_losses: between members.
        roles: names of all members, where some live on other ranks.
        batch_members: makes one model of all members, or None where that doesn't pay.
        modifier: makes what changes the model while it trains, given the phase's steps.
        continued: this process goes on with a phase that it halted itself.
        loading: how the newest checkpoint is read where the model has another shape than it.
    """
    training = context.training
    models = {STUDENT: students} if isinstance(students, nn.Module) else dict(students)
    if training.activation_checkpointing:
        for model in models.values():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ensemble = ensemble or Ensemble()
    weights = dict(weights or dict.fromkeys(teachers, 1.0))
    script = write_script(roles or list(models), losses, teachers=weights, ensemble=ensemble, peer_losses=peer_losses)
    rehearse(
        script,
        models,
        teachers,
        probe_batch(context, stores, tokenizer),
        task=context.task,
        seed=context.phase_seed,
        phase=context.name,
    )
    for note in script.notes:
        context.note(note)
    for sentence in in_words(script):
        context.tell(sentence)  # the report has it from the mapping
    objective = Objective(
        models,
        script.losses,
        task=context.task,
        terms=script.terms,
        autocast=autocast_of(training, context.device),
        known=known_classes(teachers),
        exchange=exchange_logits(roles) if roles and distributed.division() else None,
        batched=batch_members(models, script, stores, pad_id_of(tokenizer)) if batch_members else None,
    )
    check_trainable(objective, context.name, "members" if peer_losses else "students")
    engine = make_engine(objective, training, context.device)
    data = data_module(context, stores, tokenizer, start_step=0, total_steps=0)
    total_steps = steps_of(training, data.steps_per_epoch)
    monitor = training.monitor or DEFAULT_METRIC[context.task]
    checkpoints = context.folder / "checkpoints"
    if distributed.is_main():
        remove_leftovers(checkpoints)
    faculty = Faculty(teachers, ensemble, weights, script.sources, context.task) if script.sources else None
    fit = Fit(
        engine,
        teachers=faculty,
        training=training,
        folder=checkpoints,
        phase=context.title,
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
        modifier=modifier(total_steps) if modifier else None,
        continued=continued,
        loading=loading,
    )
    outcome = fit.run(context.device)
    context.warnings += outcome.warnings
    return Trained(engine, outcome, data, stores, teachers, tokenizer, started, script)


def pad_id_of(tokenizer: Any) -> int:
    """The token that fills short rows (masked out anyway); pictures have none."""
    return getattr(tokenizer, "pad_token_id", None) or 0


def probe_batch(context: Context, stores: Stores, tokenizer: Any) -> Batch:
    store = stores["train"]
    batch = collate(store, list(range(min(PROBE_ROWS, len(store)))), pad_id_of(tokenizer))
    return {name: tensor.to(context.device) for name, tensor in batch.items()}


def data_module(context: Context, stores: Stores, tokenizer: Any, *, start_step: int, total_steps: int) -> DataModule:
    return DataModule(
        stores,
        pad_id=pad_id_of(tokenizer),
        batch_size=context.training.batch_size,
        accumulation=context.training.accumulation,
        eval_batch_size=context.training.eval_batch_size,
        seed=context.phase_seed,
        rank=distributed.data_rank(),
        world=distributed.data_world(),
        start_step=start_step,
        total_steps=total_steps,
    )


def check_trainable(objective: Objective, phase: str, group: str) -> None:
    for role, model in objective.roles.items():
        if not any(parameter.requires_grad for parameter in model.parameters()):
            place = "model" if len(objective.role_names) == 1 else f"{group}.{role}"
            raise refuse(f"phases.{phase}.{place}.frozen", "freezes every parameter: there is nothing to train")


def validate(context: Context, engine: Engine, data: DataModule) -> dict[str, dict[str, float]]:
    """Metrics of each role on the validation split, over all ranks."""
    found = {}
    for role in engine.objective.roles:
        predictions = predict(
            functools.partial(engine.evaluate, role=role),
            data.evaluation_batches("validation"),
            context.task,
            context.device,
            modules=[engine.objective],
            samples=len(data.stores["validation"]),
        )
        figures = phase_evaluation(
            predictions,
            split="validation",
            label_names=context.label_names or (),
            num_bytes_N=data.stores["validation"].num_bytes,
        )
        found[role] = figures["metrics"]
    if distributed.division() is None:
        return found
    everyone = {role: figures for own in distributed.everyone(found) for role, figures in own.items()}
    return {role: everyone[role] for role in engine.objective.role_names}
