"""What can't be pruned as a config wants it: found before anything runs, on models without memory that go through the same cuts.

Only where a config has a phase that prunes or measures; then torch is imported here.
"""

from typing import TYPE_CHECKING, Any

from distill_system.config.across import training_key
from distill_system.config.instantiate import instantiate, training_of
from distill_system.config.recipes import phase_of, recipe_of, recipes_of
from distill_system.errors import Problem, Refusal
from distill_system.schema import signature_of_target
from distill_system.settings import Pruning, Training

if TYPE_CHECKING:
    from torch import nn

KINDS = ("prune", "sensitivity")
MODEL_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    AttributeError,
    RuntimeError,
)  # what building from a config raises


def check_pruning(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """All that speaks against a phase that prunes."""
    phase = config["phases"][name]
    if phase.get("kind") not in KINDS:
        return []
    key, training = f"phases.{name}", training_of(config, name)
    problems = check_score(phase, key) + check_allocation(config, name)
    if phase["kind"] == "prune":
        problems += check_schedule(phase, name, training)
    else:
        problems += check_levels(phase, key)
    return problems or check_model(config, name, task)


def check_schedule(phase: dict[str, Any], name: str, training: Training) -> list[Problem]:
    settings, key = Pruning(**(phase.get("schedule") or {})), f"phases.{name}.schedule"
    from distill_system.pruning.schedules import first_step, problems_of

    steps = training.max_steps if training.max_epochs is None else None  # else the data may give fewer
    problems = [Problem(f"{key}.{setting}", message) for setting, message in problems_of(settings, steps)]
    pruner = phase["pruner"]
    kind = signature_of_target(pruner["_target_"]).attributes.get("kind")
    if settings.rewind == "weights" and kind == "layers":
        text = "is weights, but layers that were taken away have none to go back to; set it to learning_rate or none"
        problems.append(Problem(f"{key}.rewind", text))
    score = pruner.get("score") or {}
    watches = signature_of_target(score["_target_"]).attributes.get("watches") if score else ""
    if watches == "gradients" and (settings.begin == 0 or (steps is not None and first_step(settings, steps) == 0)):
        what = score["_target_"].rpartition(".")[2]
        text = f"is {settings.begin:g}, but {what} looks at the gradients of the steps before the first round, and there would be none"
        problems.append(Problem(f"{key}.begin", f"{text}; set it to 0.1"))
    if score.get("threshold") == "soft" and kind != "weights":
        text = f"is soft, which single weights have; {kind} need threshold=hard"
        problems.append(Problem(f"phases.{name}.pruner.score.threshold", text))
    if score.get("threshold") == "soft" and training.precision == "fp16":
        text = "is fp16, whose loss scale a soft threshold's penalty doesn't know; take bf16 or fp32"
        problems.append(Problem(training_key(phase, name, "precision"), text))
    if score.get("threshold") == "soft" and score.get("mode") != "learned":
        text = (
            "is soft, which needs scores that a penalty can drive down; set mode=learned beside it, or threshold=hard"
        )
        problems.append(Problem(f"phases.{name}.pruner.score.threshold", text))
    pattern = pruner.get("pattern")
    if pattern is not None:
        problems += check_pattern(pattern, settings, f"phases.{name}")
    return problems


def check_pattern(pattern: list[int], settings: Pruning, key: str) -> list[Problem]:
    """n of m, and the sparsity that it gives."""
    if len(pattern) != 2 or not 0 < pattern[0] < pattern[1]:
        text = f"is {pattern}, must be [n, m] with 0 < n < m: of each m consecutive inputs n stay, such as [2,4]"
        return [Problem(f"{key}.pruner.pattern", text)]
    wanted = 1 - pattern[0] / pattern[1]
    if abs(settings.final_sparsity - wanted) > 1e-6:
        text = (
            f"is {settings.final_sparsity:g}, but {pattern[0]} of {pattern[1]} leaves {wanted:g}; set it to {wanted:g}"
        )
        return [Problem(f"{key}.schedule.final_sparsity", text)]
    return []


def check_levels(phase: dict[str, Any], key: str) -> list[Problem]:
    levels, target = phase.get("levels") or [0.25, 0.5, 0.75, 0.9], phase.get("target", 0.5)
    problems = []
    if list(levels) != sorted(set(levels)) or levels[0] <= 0:
        text = f"is {levels}, must be ascending shares above 0, each once, such as [0.25,0.5,0.75]"
        problems.append(Problem(f"{key}.levels", text))
    elif not 0 < target <= levels[-1]:
        text = f"is {target:g}, must be above 0 and at most the highest level, {levels[-1]:g}: beyond it nothing is measured"
        problems.append(Problem(f"{key}.target", text))
    kind = signature_of_target(phase["pruner"]["_target_"]).attributes.get("kind")
    if kind == "layers":
        text = "is layers, but a layer can't be taken away by degrees; take weights, blocks, neurons or heads"
        problems.append(Problem(f"{key}.pruner", text))
    score = phase["pruner"].get("score") or {}
    if score and signature_of_target(score["_target_"]).attributes.get("watches") == "gradients":
        what = score["_target_"].rpartition(".")[2]
        text = f"is {what}, which looks at gradients, but nothing is trained here; take magnitude or activation"
        problems.append(Problem(f"{key}.pruner.score", text))
    return problems


def check_score(phase: dict[str, Any], key: str) -> list[Problem]:
    """A score that can't value this kind of unit."""
    score = phase["pruner"].get("score")
    if not score:
        return []
    kind = signature_of_target(phase["pruner"]["_target_"]).attributes.get("kind")
    suits = signature_of_target(score["_target_"]).attributes.get("suits")
    if not suits or kind in suits:
        return []
    what = score["_target_"].rpartition(".")[2]
    text = f"is {what}, which values {' and '.join(suits)}, not {kind}"
    return [Problem(f"{key}.pruner.score", f"{text}; take scores@{key}.pruner.score=magnitude")]


def check_allocation(config: dict[str, Any], name: str) -> list[Problem]:
    """An allocation comes from an earlier phase that measured the same kind of units."""
    pruner = config["phases"][name]["pruner"]
    source, key = pruner.get("allocation"), f"phases.{name}.pruner.allocation"
    if source is None:
        return []
    other = config["phases"].get(source)
    if other is None:
        return []  # the order of phases says it
    if other.get("kind") != "sensitivity":
        measured = [phase for phase, node in config["phases"].items() if node.get("kind") == "sensitivity"]
        fix = f"name {measured[0]}" if measured else "add a phase of kind sensitivity before"
        return [Problem(key, f"is '{source}', a phase of kind {other.get('kind')}, which suggests nothing; {fix}")]
    kinds = [signature_of_target(node["_target_"]).attributes.get("kind") for node in (pruner, other["pruner"])]
    if kinds[0] != kinds[1]:
        return [
            Problem(key, f"is '{source}', which measures {kinds[1]}, but {kinds[0]} are pruned here; measure those")
        ]
    if pruner.get("uniform"):
        text = "is true, but an allocation gives every layer a share of its own; set it to false"
        return [Problem(f"phases.{name}.pruner.uniform", text)]
    return []


def check_model(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """The phase's units on its model, as far as that can be known without the hub."""
    key = f"phases.{name}.pruner"
    nodes = recipes_of(config["phases"][name])
    model = model_of_recipe(config, nodes["model"], task) if "model" in nodes else None
    if model is None:
        return []
    try:
        operate(model, config["phases"][name], key)
    except Refusal as refusal:
        return refusal.problems
    except MODEL_ERRORS as error:
        return [Problem(key, f"is {instantiate(config['phases'][name]['pruner']).kind}, but the model {error}")]
    return []


def model_of_recipe(
    config: dict[str, Any], node: dict[str, Any], task: str, seen: tuple[str, ...] = ()
) -> "nn.Module | None":
    """A recipe's model on the meta device, with all cuts of the phases that it comes from; None where it can't be known."""
    import torch

    from distill_system.models.common import auto_class, quiet
    from distill_system.models.own import register
    from distill_system.models.reading import from_config
    from distill_system.pruning.base import Surgery
    from distill_system.pruning.cut import cut

    recipe = instantiate(node)
    source = node.get("phase")
    try:
        if source is None:
            values = recipe.config() if hasattr(recipe, "config") else None
            if values is None:
                return None
            from transformers import AutoConfig

            register()
            own = AutoConfig.for_model(**values)
            with quiet(), torch.device("meta"):
                model = from_config(auto_class(task, own), own)
        else:
            found = None if source in seen else model_of_output(config, source, task, (*seen, source))
            if found is None:
                return None
            model = found
        if hasattr(recipe, "_choose"):  # some of its layers
            from distill_system.models.anatomy import find_anatomy

            count = find_anatomy(model).count
            keep = recipe._choose(count, "model")
            if len(keep) < count and list(keep) == sorted(keep):
                cut(model, Surgery("layers", {"layers": list(keep)}))
    except (Refusal, *MODEL_ERRORS):  # told by the checks of models
        return None
    return model


def model_of_output(config: dict[str, Any], output: str, task: str, seen: tuple[str, ...]) -> "nn.Module | None":
    """The model that a phase leaves."""
    name = phase_of(config, output)
    node = recipe_of(config, output) if name is not None else None
    if name is None or node is None:
        return None
    model = model_of_recipe(config, node, task, seen)
    phase = config["phases"][name]
    if model is not None and phase.get("kind") == "prune":
        operate(model, phase, f"phases.{name}.pruner")
    return model


def operate(model: "nn.Module", phase: dict[str, Any], key: str) -> None:
    """Does to a model without memory what the phase will have done at its end: which units go doesn't matter, how many does.

    Raises:
        Refusal: it can't.
    """
    from distill_system.errors import refuse
    from distill_system.models.anatomy import find_anatomy
    from distill_system.pruning.base import Surgery
    from distill_system.pruning.cut import cut
    from distill_system.pruning.layers import count_removed
    from distill_system.training.masking import removed

    pruner = instantiate(phase["pruner"])
    sparsity = Pruning(**phase["schedule"]).final_sparsity if phase["kind"] == "prune" else 0.0
    setting = f"{key.rpartition('.')[0]}.schedule.final_sparsity"
    if pruner.kind == "layers":
        count = find_anatomy(model).count
        if round(sparsity * count) >= count:
            text = f"is {sparsity:g}, which leaves none of {count} layers; nearest: {(count - 1) / count:.4g}"
            raise refuse(setting, text)
        gone = count_removed(sparsity, count)
        if gone == 0:
            raise refuse(setting, f"is {sparsity:g}, too little for one of {count} layers; nearest: {1 / count:.4g}")
        cut(model, Surgery("layers", {"layers": list(range(count - gone))}))
        return
    groups = pruner.groups(model, key)
    if pruner.kind in ("weights", "blocks"):
        check_sides(groups, getattr(pruner, "pattern", None), key)
        return
    if phase["kind"] != "prune":
        return
    for group in groups:
        check_units(model, group, pruner.kind, sparsity, setting)
    step = pruner.multiple_of
    keep = {group.name: list(range(group.units - removed(group.units, sparsity, step))) for group in groups}
    if all(len(stay) == group.units for stay, group in zip(keep.values(), groups, strict=True)):
        units = groups[0].units
        text = f"is {sparsity:g}, too little to take one of {units} {pruner.kind} out; nearest: {1 / units:.4g}"
        raise refuse(setting, text)
    cut(model, Surgery(pruner.kind, keep))


def check_sides(groups: list[Any], pattern: list[int] | None, key: str) -> None:
    from distill_system.errors import refuse

    for group in groups if pattern else []:
        (part,) = group.slices
        inputs = part.shape[part.input_axis]
        if pattern and inputs % pattern[1]:
            text = f"is {pattern}, but {part.name} has {inputs} inputs, which {pattern[1]} doesn't divide"
            raise refuse(f"{key}.pattern", f"{text}; take another, or exclude this matrix")


def check_units(model: "nn.Module", group: Any, kind: str, sparsity: float, setting: str) -> None:
    """At least one stays, and heads that share keys and values go together."""
    from distill_system.errors import refuse

    if sparsity * group.units > group.units - 0.5:
        nearest = (group.units - 1) / group.units
        raise refuse(
            setting,
            f"is {sparsity:g}, which leaves none of {group.units} {kind} in {group.name}; nearest: {nearest:.4g}",
        )
    if kind != "heads":
        return
    own: Any = model.config
    heads, shared = getattr(own, "num_attention_heads", group.units), group.units
    gone = sparsity * heads
    if heads != shared and abs(gone - round(gone)) < 0.25 and round(gone) % (heads // shared):
        size = heads // shared
        nearest = max(1, round(gone / size)) * size / heads
        text = f"is {sparsity:g}, {round(gone)} of {heads} heads, but {size} share each of the {shared} key-value heads and go together"
        raise refuse(setting, f"{text}; nearest: {min(nearest, (heads - size) / heads):.4g}")
