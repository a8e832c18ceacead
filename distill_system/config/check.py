"""Every problem of a config, found from its values alone: before torch is imported, a process started or a file written."""

import copy
import re
from collections.abc import Callable
from typing import Any

from distill_system.config.across import check_gate, check_losses, check_monitor, check_training
from distill_system.config.cast import check_cohort, check_hints, check_labels, check_members, check_peer_losses
from distill_system.config.compose import MISSING
from distill_system.config.graph import check_lengths, check_model, check_order, check_teachers
from distill_system.config.instantiate import instantiate, training_of
from distill_system.config.kinship import check_kinship
from distill_system.config.pruning import check_pruning
from distill_system.config.quantization import check_export, check_quantization
from distill_system.config.recipes import data_node, merged, recipes_of
from distill_system.config.steps import check_sizes, check_steps
from distill_system.errors import Problem, Refusal, nearest
from distill_system.schema import (
    Parameter,
    Signature,
    check_parameters,
    in_words,
    signature_of_dataclass,
    signature_of_target,
)
from distill_system.settings import Calibration, Config, Export, Gate, Pruning, Run, Training

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")
OWN_FOLDERS = ("report", "wandb", "checkpoints")
ROOT = Signature(
    {key: Parameter() for key in ("run", "seed", "config", "phases", "training", "data", "tracking", "export")}, {}
)


def check(config: dict[str, Any]) -> list[Problem]:
    """All problems: each value first, then what spans several, where a wrong value stands aside for its default."""
    problems = check_values(config)
    wrong = {problem.key for problem in problems}
    sound = without(config, wrong) if problems else config
    found = check_across(sound, tolerant=bool(problems))
    return unique(problems + [p for p in found if not any(related(p.key, key) for key in wrong)])


def check_values(config: dict[str, Any]) -> list[Problem]:
    """Each value against the signature or dataclass that it belongs to."""
    missing = _missing_values(config, "")
    problems = check_parameters(config, ROOT, "")
    own = config.get("config")
    trusted = own.get("allowed_targets") if isinstance(own, dict) else None
    allowed = ["distill_system", *(trusted if isinstance(trusted, list) else [])]
    for key, settings in (("run", Run), ("training", Training), ("config", Config), ("export", Export)):
        problems += check_group(config.get(key, {}), settings, key)
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(Problem("seed", f"is {in_words(seed)}, must be a whole number >= 0"))
    problems += _check_names(config)
    for key in ("data", "tracking"):
        problems += check_node(config.get(key), key, allowed)
    phases = config.get("phases")
    if not isinstance(phases, dict) or not phases:
        problems.append(Problem("phases", "is empty: nothing to run; choose one with experiment=demo_quick"))
    elif isinstance(phases, dict):
        for name in phases:
            problems += _check_phase(name, phases, allowed, config.get("data"))
    absent = {problem.key for problem in missing}
    return missing + [problem for problem in problems if problem.key not in absent]


def check_across(config: dict[str, Any], *, tolerant: bool) -> list[Problem]:
    """What spans several fields. Once there is a problem (`tolerant`: before), a check that is thereby left without its values says nothing."""
    problems: list[Problem] = []

    def tell(check: Callable[..., list[Problem]], *values: Any) -> None:
        try:
            problems.extend(check(*values))
        except Exception:
            if not tolerant and not problems:
                raise

    phases = config.get("phases")
    if not isinstance(phases, dict) or not phases:
        return []
    for name, phase in phases.items():
        tell(check_order, config, name)
        tell(check_teachers, phase, name)
        tell(lambda n=name, p=phase: check_training(p, n, training_of(config, n), config["training"]))
    for name, phase in phases.items():
        tell(check_members, phase, name)
        tell(check_steps, phase, name)
        tell(check_sizes, config, name)
        tell(lambda n=name: check_cohort(config, n, training_of(config, n)))
        tell(lambda n=name: check_model(config, n, task_of(config)))
        tell(lambda n=name, p=phase: check_gate(p, n, task_of(config)))
        tell(lambda n=name, p=phase: check_monitor(p, n, training_of(config, n), task_of(config)))
        tell(lambda n=name, p=phase: check_losses(p, n, task_of(config)))
        tell(lambda n=name, p=phase: check_peer_losses(p, n, task_of(config)))
        tell(check_hints, config, name)
        tell(lambda n=name: check_pruning(config, n, task_of(config)))
        tell(lambda n=name: check_quantization(config, n, task_of(config)))
    tell(lambda: instantiate(config["data"]).problems("data"))
    for name, phase in phases.items():
        if phase.get("data"):
            tell(lambda n=name: instantiate(data_node(config, n)).problems(f"phases.{n}.data"))
        tell(check_labels, config, name)
    tell(check_lengths, config)
    tell(check_kinship, config)
    tell(check_export, config)
    return unique(problems)


def task_of(config: dict[str, Any]) -> str:
    return str(instantiate(config["data"]).task)


def check_group(values: Any, settings: type, key: str) -> list[Problem]:
    signature = signature_of_dataclass(settings)
    if not isinstance(values, dict):
        known = ", ".join(signature.parameters)
        return [Problem(key, f"is {in_words(values)}, must be a group of settings ({known})")]
    return check_parameters(values, signature, key)


def check_node(node: Any, key: str, allowed: list[str]) -> list[Problem]:
    """A node with a `_target_`, and every node below it, against the signatures of their targets."""
    if not isinstance(node, dict):
        return [Problem(key, f"is {in_words(node)}, must be a group of settings")]
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
        parts = [(f"{key}.{name}", value)]
        if isinstance(value, list):  # a node may hide in a list
            parts = [(f"{key}.{name}[{i}]", item) for i, item in enumerate(value)]
        for place, part in parts:
            problems += check_node(part, place, allowed) if isinstance(part, dict) else []
    return problems


def _check_phase(name: str, phases: dict[str, Any], allowed: list[str], data: Any) -> list[Problem]:
    phase, key = phases[name], f"phases.{name}"
    if not isinstance(phase, dict) or "_target_" not in phase:
        real = [other for other, node in phases.items() if isinstance(node, dict) and "_target_" in node]
        return [Problem(key, f"is no phase{nearest(name, real)}; a new one is added with +phases@{key}=finetune")]
    problems = check_node(phase, key, allowed)
    known = {problem.key for problem in problems}
    recipes = recipes_of(phase) or {"members" if "members" in phase else "model": {}}
    for place, recipe in recipes.items():
        if f"{key}.{place}" not in known and "_target_" not in recipe:
            slot = f"{place}.a" if place == "members" else place
            text = f"is not chosen; add +models@{key}.{slot}=hub (or another choice of conf/models)"
            problems.append(Problem(f"{key}.{place}", text))
    problems += _check_data(phase, key, data, allowed, known)
    if isinstance(phase.get("training"), dict):
        problems += check_group(phase["training"], Training, f"{key}.training")
    problems += check_group(phase["gate"], Gate, f"{key}.gate") if phase.get("gate") is not None else []
    for own, settings in (("schedule", Pruning), ("calibration", Calibration)):
        if isinstance(phase.get(own), dict):
            problems += check_group(phase[own], settings, f"{key}.{own}")
    for group in ("losses", "peer_losses"):
        problems += _check_losses(phase, key, group) if f"{key}.{group}" not in known else []
    return problems


def _check_losses(phase: dict[str, Any], key: str, group: str) -> list[Problem]:
    if group != "losses" and group not in phase:
        return []
    losses = phase.get(group)
    if not losses:
        return [Problem(f"{key}.{group}", "is empty, a phase needs at least one loss")]
    real = [loss for loss, node in losses.items() if isinstance(node, dict) and "_target_" in node]
    problems = []
    for loss in losses:
        if loss not in real:
            place = f"{key}.{group}.{loss}"
            text = f"is no loss{nearest(loss, real)}; a new one is added with +losses@{place}=hard_label"
            problems.append(Problem(place, text))
    return problems


def _check_data(phase: dict[str, Any], key: str, data: Any, allowed: list[str], known: set[str]) -> list[Problem]:
    """What a phase says over the run's data, against the same signature; the run's own faults are told once, under `data`."""
    own = phase.get("data")
    if not own or f"{key}.data" in known or not isinstance(data, dict):
        return []
    if "_target_" in own:
        return [Problem(f"{key}.data._target_", "can't be another source than the run's; set single keys of data here")]
    before = {(p.key.removeprefix("data"), p.message) for p in check_node(data, "data", allowed)}
    found = check_node(merged(data, own), f"{key}.data", allowed)
    return [p for p in found if (p.key.removeprefix(f"{key}.data"), p.message) not in before]


def _check_names(config: dict[str, Any]) -> list[Problem]:
    """Names that become names of folders."""
    problems = []
    phases, run = config.get("phases"), config.get("run")
    names = {"run.name": run.get("name")} if isinstance(run, dict) else {}
    names |= {f"phases.{name}": name for name in phases} if isinstance(phases, dict) else {}
    for key, name in names.items():
        if name is None:
            if phases:
                problems.append(Problem(key, "is null and no experiment gives it; add run.name=NAME"))
        elif not NAME.fullmatch(str(name)) or len(str(name)) > 150:
            text = f"is {name!r}, must be a plain name (letters, digits, '_', '-', '.'), as it names a folder"
            problems.append(Problem(key, text))
        elif key != "run.name" and name in OWN_FOLDERS:
            problems.append(Problem(key, "is a folder of the run itself; choose another name"))
    return problems


def _missing_values(value: Any, key: str) -> list[Problem]:
    if isinstance(value, dict):
        return [p for name, item in value.items() for p in _missing_values(item, f"{key}.{name}" if key else str(name))]
    return [Problem(key, f"must be given and has no default; add {key}=VALUE")] if value == MISSING else []


def without(config: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """The config without the leaves of these keys (`training.lr`, `data.files[2]`); a node whose `_target_` is refused goes whole, with what is in it."""
    kept = copy.deepcopy(config)
    for key in keys:
        node: Any = kept
        *path, last = key.partition("[")[0].removesuffix("._target_").split(".")
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return kept


def related(key: str, other: str) -> bool:
    """Whether one key is the other, or lies below it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def refuse_if_any(problems: list[Problem]) -> None:
    if problems:
        raise Refusal(problems)
