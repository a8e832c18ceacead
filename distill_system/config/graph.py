"""The graph of phases: which artifact goes where, and what can't be because of the order or the models."""

import difflib
import fnmatch
import re
from typing import Any

from distill_system.config.instantiate import instantiate
from distill_system.errors import Problem, nearest
from distill_system.models.pretrained import Package, Pretrained
from distill_system.models.weights import Unsound, number_of_layers, weight_map
from distill_system.settings import Teacher


def references(phase: dict[str, Any]) -> dict[str, str]:
    """Phases that a phase takes artifacts from, by the config key (below the phase) that says so."""
    found = {}
    for name, teacher in (phase.get("teachers") or {}).items():
        if teacher.get("phase"):
            found[f"teachers.{name}.phase"] = teacher["phase"]
    for key in ("phase", "tokenizer_phase"):
        if (phase.get("model") or {}).get(key):
            found[f"model.{key}"] = phase["model"][key]
    return found


def check_order(config: dict[str, Any], name: str) -> list[Problem]:
    """Whether what a phase takes is made before it."""
    order = list(config["phases"])
    position = order.index(name)
    problems = []
    for key, wanted in references(config["phases"][name]).items():
        full = f"phases.{name}.{key}"
        if wanted == name:
            known = order[:position]
            fix = f"; name an earlier one ({', '.join(known)})" if known else ", and no phase comes before it"
            problems.append(Problem(full, f"is '{wanted}': a phase can't take its own result{fix}"))
        elif wanted not in order:
            fix = nearest(wanted, order[:position]) or " (no phase comes before this one)"
            problems.append(Problem(full, f"is '{wanted}', which no phase of this run produces{fix}"))
        elif order.index(wanted) > position:
            cycle = name in references(config["phases"][wanted]).values()
            why = "and the two wait for each other (a cycle)" if cycle else "which comes later; put it first"
            problems.append(Problem(full, f"is '{wanted}', {why}"))
    return problems


def check_teachers(phase: dict[str, Any], name: str) -> list[Problem]:
    teachers = phase.get("teachers")
    if teachers is None:
        return []
    problems = []
    for teacher_name, values in teachers.items():
        teacher, key = Teacher(**values), f"phases.{name}.teachers.{teacher_name}"
        if teacher.phase and teacher.model:
            text = f"has both phase '{teacher.phase}' and model '{teacher.model}'; keep one, set the other to null"
            problems.append(Problem(key, text))
        if not teacher.phase and not teacher.model:
            text = f"is not set: name an earlier phase, or a hub name or folder with {key}.model=..."
            problems.append(Problem(f"{key}.phase", text))
    if len(teachers) != 1:
        count = len(teachers) or "no"
        text = f"has {count} entries; a distill phase takes exactly one so far (teachers.main)"
        problems.append(Problem(f"phases.{name}.teachers", text))
    return problems


def check_model(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """The model's own problems, and its layers and patterns against the model that it is made from."""
    node, key = config["phases"][name]["model"], f"phases.{name}.model"
    order = list(config["phases"])
    model = instantiate(node)
    told = {problem.key for problem in check_order(config, name)}
    found = model.problems(key, task=task, artifacts_known=set(order[: order.index(name)]))
    problems = [problem for problem in found if problem.key not in told]
    source = node.get("phase")
    count = layers_of(config, source) if source and hasattr(model, "range_problems") and not told else None
    problems += model.range_problems(key, count) if count else []
    return problems + check_frozen(model, parameter_words(config, name), key)


def layers_of(config: dict[str, Any], phase: str, seen: tuple[str, ...] = ()) -> int | None:
    """Layers of a phase's model; None where it can't be known without the hub."""
    if phase not in config["phases"] or phase in seen:
        return None
    recipe = instantiate(config["phases"][phase]["model"])
    if hasattr(recipe, "range_problems"):  # it keeps some of another model's layers
        return recipe.num_layers if recipe.layers == "even" else len(recipe.layers)
    values = recipe.config() if hasattr(recipe, "config") else None
    return number_of_layers(values) if values else None


def check_frozen(model: Any, known: set[str], key: str) -> list[Problem]:
    """Patterns that freeze everything, and words in them that look like slips of the pen; the rest is found when the model is built."""
    patterns = list(getattr(model, "frozen", ()))
    problems = []
    for i, pattern in enumerate(patterns):
        if not pattern.strip("*"):
            text = f"is '{pattern}', which freezes every parameter: nothing is left to train"
            problems.append(Problem(f"{key}.frozen[{i}]", text))
    for i, pattern in enumerate(patterns if known else ()):
        for word in re.findall(r"[A-Za-z_]{4,}", pattern):
            if any(fnmatch.fnmatch(name, f"*{word}*") for name in known):
                continue
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
            if close:
                text = f"is '{pattern}', but no parameter's name holds '{word}' (did you mean '{close[0]}'?)"
                problems.append(Problem(f"{key}.frozen[{i}]", text))
    return problems


def parameter_words(config: dict[str, Any], phase: str, seen: tuple[str, ...] = ()) -> set[str]:
    """Parts of the names of the tensors that a phase's model starts from; empty where their files aren't here."""
    node = config["phases"][phase]["model"]
    if node.get("phase"):
        known = node["phase"] in config["phases"] and node["phase"] not in (*seen, phase)
        return parameter_words(config, node["phase"], (*seen, phase)) if known else set()
    model = instantiate(node.get("source") or node)
    if isinstance(model, Package):
        model = model.cached()
    folder = model.local_folder() if isinstance(model, Pretrained) else None
    if folder is None:
        return set()
    try:
        return {word for name in weight_map(folder) for word in name.split(".") if not word.isdigit()}
    except (OSError, Unsound):
        return set()


def check_lengths(config: dict[str, Any]) -> list[Problem]:
    """A sequence longer than a model has positions would fail deep inside it, or be silently wrong. The narrowest model speaks."""
    source = instantiate(config["data"])
    length = getattr(source, "max_length", None) or getattr(source, "block_size", None)
    key = "data.max_length" if hasattr(source, "max_length") else "data.block_size"
    limits = [(limit, name) for name in config["phases"] if (limit := positions_of(config, name))]
    limits += [
        (limit, f"{name}'s teacher")
        for name, phase in config["phases"].items()
        for teacher in (phase.get("teachers") or {}).values()
        if teacher.get("model") and (limit := Pretrained(name=teacher["model"]).max_positions({}))
    ]
    if not length or not limits or length <= min(limits)[0]:
        return []
    limit, name = min(limits, key=lambda pair: pair[0])
    return [
        Problem(key, f"is {length}, but the model of phase {name} has {limit} positions; set {key}={limit} or less")
    ]


def positions_of(config: dict[str, Any], phase: str, seen: tuple[str, ...] = ()) -> int | None:
    """Positions of a phase's model, following `phase:` references; None where it can't be known without the hub."""
    node = config["phases"][phase]["model"]
    source = node.get("phase")
    if source:
        known = source in config["phases"] and source not in seen
        return positions_of(config, source, (*seen, phase)) if known else None
    return instantiate(node).max_positions({})
