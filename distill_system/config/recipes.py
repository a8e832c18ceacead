"""The models of a phase: one recipe, or one for each of its members; and the names by which later phases take what became of them."""

from typing import Any

from distill_system.phases.steps import has_student_s_recipe, is_chain, step_names

GROUPS = ("students", "members")  # of a phase: recipes by name, in place of `model`
ASSISTANTS = "assistants"  # recipes by name, beside it


def recipes_of(phase: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Recipes of a phase by their key below it: `model`, or `students.small`, ..."""
    found: dict[str, Any] = {}
    for group in (*GROUPS, ASSISTANTS):
        nodes = phase.get(group)
        found |= {f"{group}.{name}": node for name, node in nodes.items()} if isinstance(nodes, dict) else {}
    model = phase.get("model")
    if isinstance(model, dict) and (model or not found):
        found = {"model": model} | found
    return {key: node for key, node in found.items() if isinstance(node, dict)}


def members_of(phase: dict[str, Any]) -> list[str]:
    """Names of the members (or steps) that a phase leaves; empty where it leaves one model only."""
    if is_chain(phase):
        return step_names(phase)
    if (phase.get("cohort") or {}).get("artifact") == "best":  # the others' models are thrown away
        return []
    return [key.partition(".")[2] for key in recipes_of(phase) if "." in key]


def outputs(config: dict[str, Any], before: str | None = None) -> list[str]:
    """What can be taken from the phases of a run (those before one of them): `teacher`, `cohort`, `cohort.a`, ..."""
    found = []
    for name, phase in config["phases"].items():
        if name == before:
            break
        found += [name, *(f"{name}.{member}" for member in members_of(phase))]
    return found


def phase_of(config: dict[str, Any], output: str) -> str | None:
    """The phase that leaves an output; None if none does."""
    if output in config["phases"]:
        return output
    name, _, member = output.rpartition(".")
    return name if name in config["phases"] and member in members_of(config["phases"][name]) else None


def recipe_of(config: dict[str, Any], output: str) -> dict[str, Any] | None:
    """The recipe of an output; None where it isn't one recipe (the best of several members), is planned later, or nothing leaves it."""
    phase = phase_of(config, output)
    if phase is None:
        return None
    recipes = recipes_of(config["phases"][phase])
    member = output.rpartition(".")[2]
    if phase == output or has_student_s_recipe(config["phases"][phase], member):
        return recipes.get("model")
    return next((node for key, node in recipes.items() if key.partition(".")[2] == member), None)


def takes_whole(node: dict[str, Any]) -> bool:
    """Whether a recipe goes on with the whole model of an earlier phase."""
    return node.get("_target_") == "distill_system.models.from_phase.FromPhase"


def cuts_layers(phase: dict[str, Any]) -> bool:
    """Whether a phase takes layers out of its model: how many it leaves isn't known before it ran."""
    target = (phase.get("pruner") or {}).get("_target_", "")
    return phase.get("kind") == "prune" and target.rpartition(".")[2] == "Layers"


def data_node(config: dict[str, Any], phase: str | None = None) -> dict[str, Any]:
    """The data of a phase: the run's, with what the phase says over it."""
    own = (config["phases"].get(phase) or {}).get("data") if phase else None
    return merged(config["data"], own or {})


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, groups within groups."""
    found = dict(base)
    for key, value in over.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found
