"""Every problem of a config, found from its values alone: before torch is imported, a process started or a file written."""

import dataclasses
import re
from typing import Any

from distill_system.config.compose import MISSING
from distill_system.config.graph import check_graph
from distill_system.config.instantiate import instantiate, training_of
from distill_system.errors import Problem, Refusal, nearest
from distill_system.evaluation.names import DEFAULT_METRIC, METRICS
from distill_system.hardware import visible_gpus
from distill_system.schema import Parameter, Signature, check_parameters, signature_of_dataclass, signature_of_target
from distill_system.settings import Config, Gate, Run, Training

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")
ROOT = Signature({key: Parameter() for key in ("run", "seed", "config", "phases", "training", "data", "tracking")}, {})


def check(config: dict[str, Any]) -> list[Problem]:
    """All problems. Values are checked first; what spans several fields only where the fields themselves are right."""
    problems = _missing_values(config, "")
    problems += check_parameters(config, ROOT, "")
    allowed = ["distill_system", *config.get("config", {}).get("allowed_targets", [])]
    for key, settings in (("run", Run), ("training", Training), ("config", Config)):
        problems += check_parameters(config.get(key, {}), signature_of_dataclass(settings), key)
    if not isinstance(config.get("seed"), int) or config["seed"] < 0:
        problems.append(Problem("seed", f"is {config.get('seed')!r}, must be a whole number >= 0"))
    problems += _check_names(config)
    for key in ("data", "tracking"):
        problems += check_node(config.get(key), key, allowed)
    phases = config.get("phases") or {}
    if not phases:
        problems.append(Problem("phases", "is empty: nothing to run; choose one with experiment=demo_quick"))
    for name, phase in phases.items():
        problems += _check_phase(phase, f"phases.{name}", allowed)
    if problems:
        return _unique(problems)
    problems = check_graph(config)
    for name in phases:
        problems += check_training(training_of(config, name), config["training"], name)
    source = instantiate(config["data"])
    problems += source.problems("data")
    for name, phase in phases.items():
        problems += _check_gate(phase, name, source.task)
        problems += _check_monitor(training_of(config, name), name, source.task)
        problems += _check_losses(phase, name, source.task)
    return _unique(problems)


def check_node(node: Any, key: str, allowed: list[str]) -> list[Problem]:
    """A node with a `_target_`, and every node below it, against the signatures of their targets."""
    if not isinstance(node, dict):
        return [Problem(key, f"is {node!r}, must be a group of settings")]
    problems = []
    if "_target_" in node:
        target = str(node["_target_"])
        if not any(target == package or target.startswith(f"{package}.") for package in allowed):
            fix = f"add config.allowed_targets=[{target.split('.')[0]}] if you trust it"
            return [Problem(f"{key}._target_", f"is '{target}', which lies outside {', '.join(allowed)}; {fix}")]
        try:
            problems += check_parameters(node, signature_of_target(target), key)
        except LookupError as error:
            return [Problem(f"{key}._target_", f"is '{target}', but {error.args[0]}")]
    for name, value in node.items():
        if isinstance(value, dict):
            problems += check_node(value, f"{key}.{name}", allowed)
    return problems


def _check_phase(phase: Any, key: str, allowed: list[str]) -> list[Problem]:
    if not isinstance(phase, dict) or "_target_" not in phase:
        return [Problem(key, "is no phase: add one with +phases@" + key + "=finetune or distill")]
    problems = check_node(phase, key, allowed)
    if not isinstance(phase.get("model"), dict) or "_target_" not in phase["model"]:
        problems.append(
            Problem(f"{key}.model", f"is not chosen; add +models@{key}.model=hub (or another choice of conf/models)")
        )
    training = phase.get("training")
    if training is not None:
        partial = dataclasses.replace(signature_of_dataclass(Training))
        problems += check_parameters(training, partial, f"{key}.training") if isinstance(training, dict) else []
    problems += check_parameters(phase.get("gate") or {}, signature_of_dataclass(Gate), f"{key}.gate")
    losses = phase.get("losses")
    if not isinstance(losses, dict) or not losses:
        problems.append(Problem(f"{key}.losses", "is empty, a phase needs at least one loss"))
        return problems
    for name, loss in losses.items():
        if not isinstance(loss, dict) or "_target_" not in loss:
            problems.append(
                Problem(f"{key}.losses.{name}", f"is no loss; add one with +losses@{key}.losses.{name}=hard_label")
            )
    return problems


def check_training(training: Training, shared: dict[str, Any], phase: str) -> list[Problem]:
    """What spans several of a phase's training settings."""
    problems = []
    key = "training"
    ranks = training.devices * training.nodes
    for fixed in ("devices", "nodes", "accelerator"):
        if getattr(training, fixed) != shared.get(fixed, getattr(Training, fixed)):
            message = f"is {getattr(training, fixed)}, but all phases of a run share their ranks; set training.{fixed}"
            problems.append(Problem(f"phases.{phase}.training.{fixed}", message))
    if training.strategy == "single" and ranks != 1:
        problems.append(
            Problem(f"{key}.strategy", f"is single, which runs on one rank, with {ranks} ranks; add training.devices=1")
        )
    share = ranks * training.accumulation
    if training.batch_size % share:
        lower, upper = training.batch_size // share * share, -(-training.batch_size // share) * share
        fix = f"{lower} or {upper}" if lower else f"{upper}"
        message = f"is {training.batch_size}, must divide by ranks x accumulation = {ranks} x {training.accumulation}; nearest: {fix}"
        problems.append(Problem(f"{key}.batch_size", message))
    if training.max_steps is None and training.max_epochs is None:
        problems.append(Problem(f"{key}.max_steps", "and training.max_epochs are both null: the phase would never end"))
    gpus = visible_gpus()
    if training.accelerator == "gpu" and gpus == 0:
        problems.append(
            Problem(f"{key}.accelerator", "is gpu, but this machine shows none; use training.accelerator=cpu")
        )
    if training.accelerator != "cpu" and 0 < gpus < training.devices and training.nodes == 1:
        problems.append(Problem(f"{key}.devices", f"is {training.devices}, but this machine has {gpus} GPUs"))
    if training.precision == "fp16" and (training.accelerator == "cpu" or gpus == 0):
        problems.append(
            Problem(f"{key}.precision", "is fp16, which needs a GPU; use fp32 (or bf16, slow on most CPUs)")
        )
    return problems


def _check_gate(phase: dict[str, Any], name: str, task: str) -> list[Problem]:
    gate = Gate(**(phase.get("gate") or {}))
    key = f"phases.{name}.gate"
    if gate.metric is None:
        bound = "at_least" if gate.at_least is not None else "at_most" if gate.at_most is not None else None
        return (
            [Problem(f"{key}.metric", f"is null, but {key}.{bound} is set; choose one of {', '.join(METRICS[task])}")]
            if bound
            else []
        )
    if gate.metric not in METRICS[task]:
        return [
            Problem(
                f"{key}.metric",
                f"is '{gate.metric}', which a {task} task doesn't have{nearest(gate.metric, METRICS[task])}",
            )
        ]
    if gate.at_least is None and gate.at_most is None:
        return [Problem(f"{key}.at_least", f"is null: the gate on {gate.metric} has no bound; set at_least or at_most")]
    return []


def _check_monitor(training: Training, name: str, task: str) -> list[Problem]:
    if training.monitor is None or training.monitor in METRICS[task]:
        return []
    fix = nearest(training.monitor, METRICS[task])
    return [
        Problem(
            "training.monitor",
            f"is '{training.monitor}' in phase {name}, which a {task} task doesn't have{fix}; null: {DEFAULT_METRIC[task]}",
        )
    ]


def _check_losses(phase: dict[str, Any], name: str, task: str) -> list[Problem]:
    problems = []
    teachers = [t for t in (phase.get("teachers") or {}).values() if t.get("phase") or t.get("model")]
    weights = []
    for loss_name, loss in phase["losses"].items():
        key = f"phases.{name}.losses.{loss_name}"
        attributes = signature_of_target(loss["_target_"]).attributes
        weights.append(loss.get("weight", 1.0))
        if attributes.get("needs_teacher") and not teachers:
            fix = f"set phases.{name}.teachers.main.phase" if "teachers" in phase else f"remove it with ~{key}"
            problems.append(
                Problem(
                    key, f"({loss['_target_'].rpartition('.')[2]}) needs a teacher and phase {name} has none; {fix}"
                )
            )
        tasks = attributes.get("tasks")
        if tasks and task not in tasks:
            problems.append(
                Problem(
                    key,
                    f"({loss['_target_'].rpartition('.')[2]}) has no meaning for a {task} task, only for {', '.join(tasks)}",
                )
            )
    if not any(weights):
        problems.append(Problem(f"phases.{name}.losses", "have weights that sum to 0: nothing would be learned"))
    return problems


def _check_names(config: dict[str, Any]) -> list[Problem]:
    problems = []
    names = {"run.name": config.get("run", {}).get("name")} | {
        f"phases.{name}": name for name in config.get("phases") or {}
    }
    for key, name in names.items():
        if name is None:
            problems.append(Problem(key, "is null and no experiment gives it; add run.name=NAME"))
        elif not NAME.fullmatch(str(name)) or len(str(name)) > 150:
            problems.append(
                Problem(
                    key, f"is {name!r}, must be a plain name (letters, digits, '_', '-', '.'), as it names a folder"
                )
            )
    for name in config.get("phases") or {}:
        if name in ("report", "wandb", "checkpoints"):
            problems.append(Problem(f"phases.{name}", "is a folder of the run itself; choose another name"))
    return problems


def _missing_values(value: Any, key: str) -> list[Problem]:
    if isinstance(value, dict):
        return [p for name, item in value.items() for p in _missing_values(item, f"{key}.{name}" if key else str(name))]
    return [Problem(key, "must be given and has no default")] if value == MISSING else []


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def refuse_if_any(problems: list[Problem]) -> None:
    if problems:
        raise Refusal(problems)
