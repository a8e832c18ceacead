"""The graph of phases: which artifact goes where, and what can't be because of the order or the models."""

import difflib
import fnmatch
import re
from typing import Any

from distill_system.config.instantiate import instantiate
from distill_system.config.recipes import cuts_layers, data_node, outputs, phase_of, recipe_of, recipes_of, takes_whole
from distill_system.errors import Problem, nearest
from distill_system.evaluation.readers import model_problems
from distill_system.models.pretrained import Package, Pretrained
from distill_system.models.weights import Unsound, number_of_layers, weight_map
from distill_system.schema import signature_of_target
from distill_system.settings import Teacher


def references(phase: dict[str, Any]) -> dict[str, str]:
    """Phases (or members of phases) that a phase takes artifacts from, by the config key (below the phase) that says so."""
    found = {}
    for name, teacher in (phase.get("teachers") or {}).items():
        if teacher.get("phase"):
            found[f"teachers.{name}.phase"] = teacher["phase"]
    for place, node in recipes_of(phase).items():
        for key in ("phase", "tokenizer_phase"):
            if node.get(key):
                found[f"{place}.{key}"] = node[key]
    allocation = (phase.get("pruner") or {}).get("allocation")
    return found | ({"pruner.allocation": allocation} if allocation else {})


def check_order(config: dict[str, Any], name: str) -> list[Problem]:
    """Whether what a phase takes is made before it."""
    order = list(config["phases"])
    position = order.index(name)
    problems = []
    for key, wanted in references(config["phases"][name]).items():
        full = f"phases.{name}.{key}"
        known = outputs(config, before=name)
        maker = phase_of(config, wanted)
        if maker == name:
            fix = f"; name an earlier one ({', '.join(known)})" if known else ", and no phase comes before it"
            problems.append(Problem(full, f"is '{wanted}': a phase can't take its own result{fix}"))
        elif maker is None:
            fix = nearest(wanted, known) or " (no phase comes before this one)"
            problems.append(Problem(full, f"is '{wanted}', which no phase of this run produces{fix}"))
        elif order.index(maker) > position:
            heard = {phase_of(config, other) for other in references(config["phases"][maker]).values()}
            cycle = name in heard
            why = "and the two wait for each other (a cycle)" if cycle else "which comes later; put it first"
            problems.append(Problem(full, f"is '{wanted}', {why}"))
    return problems


def check_teachers(phase: dict[str, Any], name: str) -> list[Problem]:
    parameters = signature_of_target(phase["_target_"]).parameters
    if "teachers" not in parameters:
        return []
    teachers = phase.get("teachers") or {}
    problems = []
    for teacher_name, values in teachers.items():
        teacher, key = Teacher(**values), f"phases.{name}.teachers.{teacher_name}"
        if teacher.phase and teacher.model:
            text = f"has both phase '{teacher.phase}' and model '{teacher.model}'; keep one, set the other to null"
            problems.append(Problem(key, text))
        if not teacher.phase and not teacher.model:
            text = f"is not set: name an earlier phase, or a hub name or folder with {key}.model=..."
            problems.append(Problem(f"{key}.phase", text))
    key = f"phases.{name}.teachers"
    if not teachers and parameters["teachers"].required:
        problems.append(
            Problem(
                key, f"is empty, and a phase of kind {phase['kind']} needs at least one; add +{key}.main.phase=NAME"
            )
        )
    if teachers and not sum(Teacher(**values).weight for values in teachers.values()) > 0:
        problems.append(
            Problem(key, f"all have weight 0: nobody would teach; set {key}.{next(iter(teachers))}.weight=1")
        )
    return problems


def check_model(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """Each model's own problems, and its layers and patterns against the model that it is made from."""
    problems = []
    told = {problem.key for problem in check_order(config, name)}
    for place, node in recipes_of(config["phases"][name]).items():
        key, model = f"phases.{name}.{place}", instantiate(node)
        found = model.problems(key, task=task, artifacts_known=set(outputs(config, before=name)))
        problems += [problem for problem in found if problem.key not in told]
        problems += [] if found else model_problems(model, instantiate(data_node(config, name)), key)
        source = node.get("phase")
        count = layers_of(config, source) if source and hasattr(model, "range_problems") and not told else None
        problems += model.range_problems(key, count) if count else []
        problems += check_frozen(model, parameter_words(config, node), key)
    return problems


def layers_of(config: dict[str, Any], output: str, seen: tuple[str, ...] = ()) -> int | None:
    """Layers of the model of a phase, or of a member; None where it can't be known without the hub, or before the phase ran."""
    phase, node = phase_of(config, output), recipe_of(config, output)
    if phase is None or node is None or output in seen or cuts_layers(config["phases"][phase]):
        return None
    return layers_of_recipe(node, config, (*seen, output))


def layers_of_recipe(
    node: dict[str, Any], config: dict[str, Any] | None = None, seen: tuple[str, ...] = ()
) -> int | None:
    """Layers of a recipe's model; where it goes on with the model of a phase, `config` of the run has to tell."""
    if takes_whole(node):
        return layers_of(config, node["phase"], seen) if config and node.get("phase") else None
    recipe = instantiate(node)
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


def parameter_words(config: dict[str, Any], node: dict[str, Any], seen: tuple[str, ...] = ()) -> set[str]:
    """Parts of the names of the tensors that a recipe's model starts from; empty where their files aren't here."""
    if node.get("phase"):
        source = recipe_of(config, node["phase"]) if node["phase"] not in seen else None
        return parameter_words(config, source, (*seen, node["phase"])) if source is not None else set()
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
    limits = [
        (limit, name)
        for name, phase in config["phases"].items()
        for node in recipes_of(phase).values()
        if (limit := positions_of(config, node))
    ]
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


def positions_of(config: dict[str, Any], node: dict[str, Any], seen: tuple[str, ...] = ()) -> int | None:
    """Positions of a recipe's model, following `phase:` references; None where it can't be known without the hub."""
    output = node.get("phase")
    if output:
        source = recipe_of(config, output) if output not in seen else None
        return positions_of(config, source, (*seen, output)) if source is not None else None
    return instantiate(node).max_positions({})
