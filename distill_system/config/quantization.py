"""What can't be quantized as a config wants it, and what may not follow a quantized model: found before anything runs.

Only where a config has a phase that quantizes; then torch is imported here.
"""

import importlib.util
from pathlib import Path
from typing import Any

from distill_system.config.instantiate import instantiate
from distill_system.config.pruning import MODEL_ERRORS, model_of_recipe
from distill_system.config.recipes import phase_of, recipe_of, recipes_of
from distill_system.errors import Problem, Refusal
from distill_system.models.weights import PACKED
from distill_system.schema import signature_of_target
from distill_system.settings import Embeddings, Export, Mixing

KIND = "quantize"
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torchao": ("torchao",)}  # packages of a form
KEEPS_ZEROS = "ternary_connect, bernoulli_ternary, trained_ternary or kbit"


def check_quantization(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """All that speaks against a phase that quantizes, or against one that would train what another has quantized."""
    phase, key = config["phases"][name], f"phases.{name}"
    problems = check_inputs(config, name)
    if not quantizes(phase):
        return problems
    problems += check_settings(phase, key) + check_masks(config, name)
    if phase.get("kind") == "prune":
        problems += check_beside_pruning(phase, key)
    return problems or check_model(config, name, task)


def quantizes(phase: dict[str, Any]) -> bool:
    """Whether a phase leaves a quantized model."""
    return phase.get("kind") == KIND or bool(phase.get("quantizer"))


def check_beside_pruning(phase: dict[str, Any], key: str) -> list[Problem]:
    """A pruner that may run while weights are quantized: one that masks single weights, by scores that don't learn."""
    kind = signature_of_target(phase["pruner"]["_target_"]).attributes.get("kind")
    if kind not in ("weights", "blocks"):
        text = f"is set, but {kind} are cut out, and grids would be left for rows that are gone; quantize in a phase after this one"
        return [Problem(f"{key}.quantizer", text)]
    if (phase["pruner"].get("score") or {}).get("mode") == "learned":
        text = "is learned, whose gradients a quantized weight doesn't have; take accumulated"
        return [Problem(f"{key}.pruner.score.mode", text)]
    if not has_zero(phase["quantizer"]):
        what = phase["quantizer"]["_target_"].rpartition(".")[2]
        text = f"is {what}, which has no level for 0, but pruned {kind} must stay zero; take {KEEPS_ZEROS}"
        return [Problem(f"{key}.quantizer", text)]
    return []


def check_inputs(config: dict[str, Any], name: str) -> list[Problem]:
    """A phase that trains a quantized model would move its weights off their grids; one that cuts it would leave grids for rows that are gone."""
    phase, problems = config["phases"][name], []
    for place, recipe in recipes_of(config["phases"][name]).items():
        key, source = f"phases.{name}.{place}", recipe.get("phase")
        folder = recipe.get("name")
        if isinstance(folder, str) and Path(folder, PACKED).is_file():
            text = f"is '{folder}', a packed model, whose few bits can't be trained; take the model it was packed from"
            problems.append(Problem(f"{key}.name", text))
        other = phase_of(config, source) if source else None
        if other is None or quantizes(phase) or not quantizes(config["phases"][other]):
            continue
        what = (
            "cuts its matrices, and grids would be left for rows that are gone" if phase.get("kind") == "prune" else ""
        )
        why = what or "trains it, and its weights would leave their grids"
        text = f"is '{source}', a quantized model, but a {phase.get('kind')} phase {why}; put it before '{other}'"
        problems.append(Problem(f"{key}.phase", text))
    return problems


def check_export(config: dict[str, Any]) -> list[Problem]:
    """A packed or torchao file needs a model that was quantized, and some forms need packages."""
    form = Export(**config.get("export") or {}).format
    phases = config.get("phases") or {}
    missing = [name for name in NEEDS.get(form or "", ()) if importlib.util.find_spec(name) is None]
    if missing:
        text = f"is {form}, which needs {' and '.join(missing)}; install distill_system with the extra: pip install '.[{form}]'"
        return [Problem("export.format", text)]
    if form not in ("packed", "torchao") or not phases:
        return []
    last = next(reversed(phases))
    if quantizes(phases[last]):
        return []
    text = f"is {form}, but the last phase, '{last}', leaves no quantized model; add +phases@phases.quantize=quantize, or take export=none"
    return [Problem("export.format", text)]


def check_settings(phase: dict[str, Any], key: str) -> list[Problem]:
    problems = []
    mixing, embeddings = Mixing(**(phase.get("mixing") or {})), Embeddings(**(phase.get("embeddings") or {}))
    if mixing.begin > mixing.until or (mixing.begin == mixing.until and mixing.begin > 0):
        text = f"is {mixing.begin:g}, not below until={mixing.until:g}; nothing would go over from one to the other"
        problems.append(Problem(f"{key}.mixing.begin", f"{text}; nearest: 0"))
    if mixing.until > 0.95:
        text = f"is {mixing.until:g}, which leaves hardly a step in which all is quantized; nearest: 0.95"
        problems.append(Problem(f"{key}.mixing.until", text))
    if embeddings.bits is None and embeddings.group_size is not None:
        text = f"is {embeddings.group_size}, but {key}.embeddings.bits is null: embeddings stay as they are; set bits=4"
        problems.append(Problem(f"{key}.embeddings.group_size", text))
    node = phase["quantizer"]
    if node.get("schedule") is not None:
        from distill_system.quantization.kbit import schedule_problem

        clause = schedule_problem(node["bits"], node["schedule"])
        if clause:
            problems.append(Problem(f"{key}.quantizer.schedule", clause))
    if node.get("granularity") != "group" and "group_size" in node and node["group_size"] != 64:
        text = f"is {node['group_size']}, but granularity is {node.get('granularity')}; set granularity=group beside it"
        problems.append(Problem(f"{key}.quantizer.group_size", text))
    return problems


def check_masks(config: dict[str, Any], name: str) -> list[Problem]:
    """Weights that an earlier phase pruned stay zero: the quantizer needs a level for it."""
    phase = config["phases"][name]
    if has_zero(phase["quantizer"]):
        return []
    pruned = pruned_by(config, name)
    if pruned is None:
        return []
    kind = signature_of_target(config["phases"][pruned]["pruner"]["_target_"]).attributes.get("kind")
    what = phase["quantizer"]["_target_"].rpartition(".")[2]
    text = f"is {what}, which has no level for 0, but phase '{pruned}' pruned single {kind} that must stay zero"
    return [Problem(f"phases.{name}.quantizer", f"{text}; take {KEEPS_ZEROS}")]


def has_zero(node: dict[str, Any]) -> bool:
    known = signature_of_target(node["_target_"]).attributes.get("has_zero")
    return bool(instantiate(node).has_zero) if known is None else bool(known)


def pruned_by(config: dict[str, Any], name: str) -> str | None:
    """The phase that left masks in what a phase takes in, however many phases ago."""
    seen: set[str] = set()
    recipe: Any = next(iter(recipes_of(config["phases"][name]).values()), {})
    while recipe and recipe.get("phase"):
        other = phase_of(config, recipe["phase"])
        if other is None or other in seen:
            return None
        seen.add(other)
        node = config["phases"][other]
        if node.get("kind") == "prune":
            kind = signature_of_target(node["pruner"]["_target_"]).attributes.get("kind")
            if kind in ("weights", "blocks"):
                return other
        recipe = recipe_of(config, recipe["phase"])
    return None


def check_model(config: dict[str, Any], name: str, task: str) -> list[Problem]:
    """What is quantized of the phase's model, as far as that can be known without the hub."""
    from distill_system.phases.quantized import Settings
    from distill_system.settings import Inputs

    phase, key = config["phases"][name], f"phases.{name}"
    nodes = recipes_of(phase)
    model = model_of_recipe(config, nodes["model"], task) if "model" in nodes else None
    if model is None:
        return []
    settings = Settings(
        instantiate(phase["quantizer"]),
        Embeddings(**(phase.get("embeddings") or {})),
        Inputs(**(phase.get("activations") or {})),
        Mixing(),
        phase.get("include") or [],
        phase.get("exclude") or [],
    )
    try:
        settings.targets(model, key)
    except Refusal as refusal:
        return refusal.problems
    except MODEL_ERRORS as error:
        return [Problem(f"{key}.quantizer", f"can't be applied: the model {error}")]
    return []
