"""What `distill doctor` looks at in a run, without training: one small batch through every phase's student, teacher and losses."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.commands.doctor import Line
from distill_system.config.instantiate import instantiate, training_of
from distill_system.config.plan import run_folder
from distill_system.config.recipes import GROUPS, data_node, members_of
from distill_system.data.collate import Batch, collate
from distill_system.errors import Refusal
from distill_system.manifest import Manifest
from distill_system.models.common import quiet
from distill_system.phases.base import build_members, build_student, load_data, pad_id_of
from distill_system.phases.context import Context
from distill_system.phases.teachers import load_teacher
from distill_system.phases.terms import known_classes, rehearse, write_script
from distill_system.scheduling.rank import quiet_libraries
from distill_system.settings import Ensemble, Teacher
from distill_system.signals import Signals, Targets
from distill_system.training.engine import PlainEngine
from distill_system.training.ensemble import Faculty
from distill_system.training.objective import STUDENT, Objective

Heard = Callable[[Batch], Mapping[str, Signals]] | None
ROWS = 6
CLOSE = 1e-3  # of logits in float32, with another padding


def examine(config: dict[str, Any]) -> Iterator[Line]:
    """Findings of every phase; a phase that isn't trained yet stands in with the weights its recipe starts from."""
    quiet_libraries()
    device = torch.device("cpu")
    distributed.start(device)
    manifest = Manifest.read(run_folder(config), config["run"]["name"])
    with tempfile.TemporaryDirectory() as scratch, quiet():  # bars of libraries would tear the lines apart
        artifacts: dict[str, Path] = {}
        for name in config["phases"]:
            yield from examine_phase(name, config, manifest, artifacts, Path(scratch), device)
    distributed.stop()


def examine_phase(
    name: str,
    config: dict[str, Any],
    manifest: Manifest,
    artifacts: dict[str, Path],
    scratch: Path,
    device: torch.device,
) -> Iterator[Line]:
    phase = instantiate(config["phases"][name])
    context = Context(
        run_folder=scratch,
        run_name=manifest.run,
        name=name,
        identity="",
        source=instantiate(data_node(config, name)),
        training=training_of(config, name),
        seed=config["seed"],
        device=device,
        artifacts=artifacts,
        write=lambda lines: None,
        rewind=lambda step: None,
        announce=lambda steps: None,
        stop_asked=lambda: False,
    )
    try:
        group = next((group for group in GROUPS if getattr(phase, group, None)), None)
        if group:
            models, tokenizer = build_members(getattr(phase, group), context, group=group)
        else:
            student, tokenizer = build_student(phase.model, context)
            models = {STUDENT: student}
        stores = load_data(context, tokenizer)
        pad_id = pad_id_of(tokenizer)
        batch = collate(stores["train"], list(range(min(ROWS, len(stores["train"])))), pad_id)
        size = sum(p.numel() for model in models.values() for p in model.parameters())
        yield Line(f"{name}: model and data", f"{size:,} parameters, {len(stores['train']):,} training rows")
        teachers = {}
        for teacher_name, values in (config["phases"][name].get("teachers") or {}).items():
            settings = Teacher(**{**values, "placement": "replicated"})
            first = next(iter(models.values()))
            teachers[teacher_name] = load_teacher(teacher_name, settings, context, first, tokenizer)
            yield Line(f"{name}: teacher {teacher_name}", "labels aligned by name, tokens and pictures read alike")
        objective, heard = cast_of(phase, models, teachers, batch, context)
    except Refusal as refusal:
        yield Line(name, "is refused", "; ".join(map(str, refusal.problems)))
        return
    for teacher in teachers.values():
        yield from check_teacher(name, teacher, objective, context)
    if "input_ids" in batch:
        yield check_padding(name, objective, batch, pad_id)
    yield check_filler(name, objective, batch, heard)
    yield from check_temperature(name, phase.losses)
    yield check_gradients(name, objective, batch, heard)
    if manifest.finished(name):
        artifacts |= {key: path for key, path in manifest.models().items() if key.partition(".")[0] == name}
        return
    for role, model in models.items():
        folder = scratch / "models" / name / role
        model.zero_grad(set_to_none=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        artifacts[f"{name}.{role}"] = artifacts[name] = folder
    for step in members_of(config["phases"][name]):  # assistants aren't built: the student stands in for them
        artifacts.setdefault(f"{name}.{step}", artifacts[name])


def cast_of(
    phase: Any, models: dict[str, nn.Module], teachers: dict[str, Any], batch: Batch, context: Context
) -> tuple[Objective, Heard]:
    """The phase's objective, and what its teachers say of a batch (None where nobody asks)."""
    settings = getattr(phase, "ensemble", None) or Ensemble()
    weights = {name: one.weight for name, one in getattr(phase, "teachers", {}).items()}
    script = write_script(
        list(models), phase.losses, teachers=weights, ensemble=settings, peer_losses=getattr(phase, "peer_losses", None)
    )
    rehearse(script, models, teachers, batch, task=context.task, seed=context.phase_seed, phase=context.name)
    known = known_classes(teachers)
    objective = Objective(models, script.losses, task=context.task, terms=script.terms, known=known)
    heard = Faculty(teachers, settings, weights, script.sources, context.task) if script.sources else None
    return objective, heard


def check_teacher(name: str, teacher: Any, objective: Objective, context: Context) -> Iterator[Line]:
    if teacher is None:
        return
    training = [module for module in teacher.module.modules() if module.training]
    yield Line(
        f"{name}: teacher in eval mode",
        "yes" if not training else "no",
        "" if not training else "dropout would blur what it teaches",
    )
    engine = PlainEngine(objective, context.training, context.device)
    trained = {id(p) for p in engine.parameters}
    shared = [n for n, p in teacher.module.named_parameters() if id(p) in trained or p.requires_grad]
    yield Line(
        f"{name}: teacher out of the optimizer",
        "yes" if not shared else shared[0],
        "" if not shared else "it would be trained",
    )


@torch.no_grad()
def check_padding(name: str, objective: Objective, batch: Batch, pad_id: int) -> Line:
    """The same rows with more padding must give the same logits where they are real."""
    objective.eval()
    extra = 5
    wider = dict(batch)
    for key, fill in (("input_ids", pad_id), ("attention_mask", 0), ("token_type_ids", 0)):
        if key in batch:
            wider[key] = nn.functional.pad(batch[key], (0, extra), value=fill)
    if batch["labels"].dim() == 2:
        wider["labels"] = nn.functional.pad(batch["labels"], (0, extra), value=-100)
    narrow_logits, wide_logits = objective(batch), objective(wider)
    if objective.task == "causal_lm":
        wide_logits = wide_logits[:, : narrow_logits.shape[1]]
    worst = (narrow_logits - wide_logits).abs()[_real(batch, objective.task)].max().item()
    advice = (
        ""
        if worst < CLOSE
        else "padding changes what the model says: is its attention mask used, and its pad token the tokenizer's?"
    )
    return Line(f"{name}: padding is masked", f"largest change of a logit {worst:.1e}", advice)


def _real(batch: Batch, task: str) -> Tensor:
    return batch["labels"][:, 1:] != -100 if task == "causal_lm" else batch["valid"]


def check_filler(name: str, objective: Objective, batch: Batch, heard: Heard) -> Line:
    """A filler row must change neither a sum nor a count."""
    filled = {key: torch.cat([value, value[-1:]]) for key, value in batch.items()}
    filled["valid"][-1] = False
    filled["labels"][-1] = -100
    worst = 0.0
    for one, other in zip(_sums(objective, batch, heard), _sums(objective, filled, heard), strict=True):
        worst = max(worst, float((one - other).abs().max()))
    return Line(
        f"{name}: filler rows don't count",
        f"largest change of a loss {worst:.1e}",
        "" if worst < CLOSE else "a loss doesn't respect `valid`",
    )


@torch.no_grad()
def _sums(objective: Objective, batch: Batch, heard: Heard) -> tuple[Tensor, Tensor]:
    objective.eval()
    scale = torch.ones(len(objective.terms))
    return objective(batch, heard(batch) if heard else None, scale)[1], objective.count(batch)


def check_temperature(name: str, losses: dict[str, Any]) -> Iterator[Line]:
    """With the factor T^2 gradients keep their size when the temperature grows (Hinton et al. 2015, section 2.1)."""
    generator = torch.Generator().manual_seed(0)
    student_NC, teacher_NC = torch.randn(64, 5, generator=generator), torch.randn(64, 5, generator=generator)
    targets = Targets(torch.zeros(64, dtype=torch.long), torch.ones(64, dtype=torch.bool))
    for loss_name, loss in losses.items():
        if not hasattr(loss, "temperature"):
            continue
        norms = []
        before = loss.temperature
        for temperature in (50.0, 100.0):
            loss.temperature = temperature
            logits = student_NC.clone().requires_grad_()
            loss(Signals(logits), Signals(teacher_NC), targets)[0].backward()
            assert logits.grad is not None
            norms.append(logits.grad.norm().item())
        loss.temperature = before
        ratio = norms[1] / norms[0]
        advice = (
            ""
            if abs(ratio - 1) < 0.1
            else "the factor T^2 is missing or doubled: the weight of this loss would change with the temperature"
        )
        yield Line(
            f"{name}: T^2 scaling of losses.{loss_name}", f"gradient at T=100 is {ratio:.2f} of that at T=50", advice
        )


def check_gradients(name: str, objective: Objective, batch: Batch, heard: Heard) -> Line:
    """Every trainable tensor must feel the losses."""
    objective.train()
    count_L = objective.count(batch).clamp(min=1)
    loss, _ = objective(batch, heard(batch) if heard else None, torch.tensor(objective.weights(0.0)) / count_L)
    loss.backward()
    trainable = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    without = [n for n, p in trainable if p.grad is None]
    if not torch.isfinite(loss):
        return Line(f"{name}: gradients", f"the first loss is {loss.item()}", "look at the data and the learning rate")
    advice = (
        ""
        if not without
        else f"no gradient reaches {without[0]}{f' and {len(without) - 1} more' if len(without) > 1 else ''}; freeze it with model.frozen"
    )
    return Line(
        f"{name}: gradients", f"reach {len(trainable) - len(without)} of {len(trainable)} trainable tensors", advice
    )
