"""The graph of phases: which artifact goes where, and what can't be because of the order or the models."""

from typing import Any

from distill_system.config.instantiate import instantiate
from distill_system.errors import Problem, nearest
from distill_system.settings import Teacher


def references(phase: dict[str, Any]) -> dict[str, str]:
    """Phases that a phase takes artifacts from, by the config key (below the phase) that says so."""
    found = {}
    for name, teacher in (phase.get("teachers") or {}).items():
        if teacher.get("phase"):
            found[f"teachers.{name}.phase"] = teacher["phase"]
    for key in ("phase", "tokenizer_phase"):
        if phase["model"].get(key):
            found[f"model.{key}"] = phase["model"][key]
    return found


def check_graph(config: dict[str, Any]) -> list[Problem]:
    """Unknown and later phases, cycles, teachers that are given twice or not at all, models that don't fit the data."""
    phases = config["phases"]
    problems = []
    order = list(phases)
    source = instantiate(config["data"])
    for position, (name, phase) in enumerate(phases.items()):
        for key, wanted in references(phase).items():
            full = f"phases.{name}.{key}"
            if wanted == name:
                problems.append(Problem(full, f"is '{wanted}': a phase can't take its own result"))
            elif wanted not in phases:
                problems.append(
                    Problem(
                        full, f"is '{wanted}', which no phase of this run produces{nearest(wanted, order[:position])}"
                    )
                )
            elif order.index(wanted) > position:
                cycle = name in references(phases[wanted]).values()
                why = "and the two wait for each other (a cycle)" if cycle else "which comes later; put it first"
                problems.append(Problem(full, f"is '{wanted}', {why}"))
        problems += _check_teachers(phase, name)
        model = instantiate(phase["model"])
        problems += model.problems(f"phases.{name}.model", task=source.task, artifacts_known=set(order[:position]))
    if not problems:
        problems = _check_lengths(config, source)
    return problems


def _check_teachers(phase: dict[str, Any], name: str) -> list[Problem]:
    teachers = phase.get("teachers")
    if teachers is None:
        return []
    problems = []
    for teacher_name, values in teachers.items():
        teacher, key = Teacher(**values), f"phases.{name}.teachers.{teacher_name}"
        if teacher.phase and teacher.model:
            problems.append(
                Problem(
                    key,
                    f"has both phase '{teacher.phase}' and model '{teacher.model}'; keep one, set the other to null",
                )
            )
        if not teacher.phase and not teacher.model:
            problems.append(
                Problem(
                    f"{key}.phase", f"is not set: name an earlier phase, or a hub name or folder with {key}.model=..."
                )
            )
    if len(teachers) != 1:
        problems.append(
            Problem(f"phases.{name}.teachers", f"has {len(teachers)} entries; a distill phase takes exactly one so far")
        )
    return problems


def _check_lengths(config: dict[str, Any], source: Any) -> list[Problem]:
    """A sequence longer than a model has positions would fail deep inside it, or be silently wrong."""
    length = getattr(source, "max_length", None) or getattr(source, "block_size", None)
    key = "data.max_length" if hasattr(source, "max_length") else "data.block_size"
    problems = []
    for name in config["phases"]:
        limit = positions_of(config, name)
        if length and limit and length > limit:
            problems.append(
                Problem(
                    key, f"is {length}, but the model of phase {name} has {limit} positions; set {key}={limit} or less"
                )
            )
    return problems


def positions_of(config: dict[str, Any], phase: str, seen: tuple[str, ...] = ()) -> int | None:
    """Positions of a phase's model, following `phase:` references; None where it can't be known without the hub."""
    node = config["phases"][phase]["model"]
    source = node.get("phase")
    if source and source in config["phases"] and source not in seen:
        return positions_of(config, source, (*seen, phase))
    return instantiate(node).max_positions({})
