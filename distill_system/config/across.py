"""What spans several settings of one phase: batch and ranks, gates, the monitored metric, losses and the teachers they need."""

from typing import Any

from distill_system.errors import Problem, nearest
from distill_system.evaluation.names import DEFAULT_METRIC, METRICS
from distill_system.hardware import visible_gpus
from distill_system.schedules import schedule_of
from distill_system.schema import signature_of_target
from distill_system.settings import Gate, Training


def training_key(phase: dict[str, Any], name: str, setting: str) -> str:
    """The key that says what `setting` is in this phase: its own, or the one that all phases share."""
    return f"phases.{name}.training.{setting}" if setting in (phase.get("training") or {}) else f"training.{setting}"


def check_training(phase: dict[str, Any], name: str, training: Training, shared: dict[str, Any]) -> list[Problem]:
    """Batch against ranks and accumulation, strategy against ranks, precision and devices against this machine."""
    found: list[tuple[str, str]] = []
    ranks = training.devices * training.nodes
    for fixed in ("devices", "nodes", "accelerator"):
        if getattr(training, fixed) != shared.get(fixed, getattr(Training, fixed)):
            message = f"is {getattr(training, fixed)}, but all phases of a run share their ranks; set training.{fixed}"
            found.append((fixed, message))
    if training.strategy == "single" and ranks != 1:
        found.append(
            ("strategy", f"is single, which runs on one rank, with {ranks} ranks; add training.devices=1, or take ddp")
        )
    share = ranks * training.accumulation
    if training.batch_size % share:
        lower, upper = training.batch_size // share * share, -(-training.batch_size // share) * share
        nearby = f"{lower} or {upper}" if lower else f"{upper}"
        of = f"ranks x accumulation = {ranks} x {training.accumulation}"
        found.append(("batch_size", f"is {training.batch_size}, must divide by {of}; nearest: {nearby}"))
    if training.max_steps is None and training.max_epochs is None:
        found.append(("max_steps", "and max_epochs are both null: the phase would never end; set one"))
    gpus = visible_gpus()
    if training.accelerator == "gpu" and gpus == 0:
        found.append(("accelerator", "is gpu, but this machine shows none; use training.accelerator=cpu"))
    if training.accelerator != "cpu" and 0 < gpus < training.devices and training.nodes == 1:
        found.append(("devices", f"is {training.devices}, but this machine has {gpus} GPUs"))
    if training.precision == "fp16" and (training.accelerator == "cpu" or gpus == 0):
        found.append(("precision", "is fp16, which needs a GPU; use fp32 (or bf16, slow on most CPUs)"))
    return [Problem(training_key(phase, name, setting), message) for setting, message in found]


def check_gate(phase: dict[str, Any], name: str, task: str) -> list[Problem]:
    gate = Gate(**(phase.get("gate") or {}))
    key = f"phases.{name}.gate"
    if gate.metric is None:
        bounds = [bound for bound in ("at_least", "at_most") if getattr(gate, bound) is not None]
        if not bounds:
            return []
        listed = ", ".join(METRICS[task])
        return [Problem(f"{key}.metric", f"is null, but {key}.{bounds[0]} is set; choose one of {listed}")]
    if gate.metric not in METRICS[task]:
        fix = nearest(gate.metric, METRICS[task])
        return [Problem(f"{key}.metric", f"is '{gate.metric}', which a {task} task doesn't have{fix}")]
    if gate.at_least is None and gate.at_most is None:
        return [Problem(f"{key}.at_least", f"is null: the gate on {gate.metric} has no bound; set at_least or at_most")]
    if gate.at_least is not None and gate.at_most is not None and gate.at_least > gate.at_most:
        return [Problem(f"{key}.at_least", f"is {gate.at_least}, above at_most {gate.at_most}: nothing can pass")]
    return []


def check_monitor(phase: dict[str, Any], name: str, training: Training, task: str) -> list[Problem]:
    if training.monitor is None or training.monitor in METRICS[task]:
        return []
    fix = nearest(training.monitor, METRICS[task])
    text = f"is '{training.monitor}', which a {task} task doesn't have{fix}; null: {DEFAULT_METRIC[task]}"
    return [Problem(training_key(phase, name, "monitor"), text)]


def weighs(weight: Any) -> bool:
    """Whether a weight, a number or a schedule, is ever above 0."""
    schedule = schedule_of(weight)
    return (
        bool(weight) if schedule is None else schedule.start > 0 or (schedule.shape != "constant" and schedule.end > 0)
    )


def check_losses(phase: dict[str, Any], name: str, task: str) -> list[Problem]:
    """Losses that need a teacher in a kind of phase without one, that have no meaning for the task, or that all weigh nothing."""
    problems = []
    parameters = signature_of_target(phase["_target_"]).parameters
    required = "teachers" in parameters and parameters["teachers"].required  # then they are checked by name
    takes_teachers = required or bool(phase.get("teachers"))
    for loss_name, loss in phase["losses"].items():
        key, kind = f"phases.{name}.losses.{loss_name}", loss["_target_"].rpartition(".")[2]
        attributes = signature_of_target(loss["_target_"]).attributes
        if attributes.get("needs_teacher") and not takes_teachers:
            text = f"is {kind}, which needs a teacher, and "
            if "teachers" in parameters:
                text += f"phases.{name}.teachers is empty; add +phases.{name}.teachers.main.phase=NAME, or remove it with ~{key}"
            else:
                text += f"a {phase.get('kind')} phase has none; remove it with ~{key}, or make it a distill phase"
            problems.append(Problem(key, text))
        tasks = attributes.get("tasks")
        if tasks and task not in tasks:
            text = f"is {kind}, which has no meaning for a {task} task, only for {', '.join(tasks)}"
            fix = (
                f"; take losses@{key}=logit_regression"
                if attributes.get("needs_teacher") and task == "regression"
                else ""
            )
            problems.append(Problem(key, text + fix))
    if not any(weighs(loss.get("weight", 1.0)) for loss in phase["losses"].values()):
        problems.append(Problem(f"phases.{name}.losses", "all have weight 0: nothing would be learned"))
    return problems
