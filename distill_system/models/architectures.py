"""What transformers' own source says about an architecture: its settings, their types, its tasks. Read by `ast`, so that no torch is imported.

Where the source looks different than expected (another version, an architecture from a plug-in), the answer is None and the check waits until
the model is built.
"""

import ast
import functools
import importlib.util
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_system.errors import Problem, nearest
from distill_system.models.own import OWN
from distill_system.schema import check

TASK_MAPPINGS = {
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "multi_label": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "regression": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}
IMAGE_MAPPING = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"  # of classification too, where the data is pictures
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "intermediate_size",
    "hidden_dim",
    "vocab_size",
    "image_size",
    "patch_size",
    "num_channels",
    "embedding_size",
)
DERIVED = (
    "architectures",
    "transformers_version",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "is_encoder_decoder",
)
ANNOTATION_NAMES = {"Any": Any, "Literal": typing.Literal, "Optional": typing.Optional, "Union": typing.Union}


@dataclass(frozen=True)
class Setting:
    """One setting of a config class: how its source annotates it, and its default (None where it is no constant)."""

    annotation: Any
    default: Any


@functools.cache
def _tree(name: str) -> ast.Module | None:
    spec = importlib.util.find_spec("transformers")  # finds, doesn't import
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    return ast.parse(path.read_text(encoding="utf-8")) if path and path.is_file() else None


@functools.cache
def _pairs(file: str, variable: str) -> dict[str, Any]:
    """The literal `OrderedDict([(key, value), ...])` that a module of transformers' auto classes assigns to `variable`."""
    tree = _tree(f"models/auto/{file}")
    for statement in tree.body if tree else []:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            try:
                return dict(ast.literal_eval(statement.value.args[0]))  # type: ignore[attr-defined]
            except (AttributeError, IndexError, ValueError, TypeError):
                return {}
    return {}


def config_classes() -> dict[str, str]:
    """Every architecture that transformers knows by name, or that is ours, and its config class; empty where the source can't be read."""
    theirs = _pairs("auto_mappings.py", "CONFIG_MAPPING_NAMES")
    theirs = theirs or _pairs("configuration_auto.py", "CONFIG_MAPPING_NAMES")
    return theirs | {name: own.config for name, own in OWN.items()} if theirs else {}


def known_for(mapping: str) -> dict[str, Any]:
    """Architectures that have a model in one of transformers' mappings, or ours for the task; empty where the source can't be read."""
    theirs = _pairs("modeling_auto.py", mapping)
    ours = {name: own.config for name, own in OWN.items()} if mapping == TASK_MAPPINGS["classification"] else {}
    return theirs | ours if theirs else {}


def architecture_problem(architecture: str, task: str) -> str | None:
    """Why `architecture` can't be used for `task`, as a clause; None if it can, or if it can't be told from the source."""
    known = config_classes()
    if known and architecture not in known:
        return f"is {architecture!r}, which transformers doesn't know{nearest(architecture, known) if len(known) < 30 else _close(architecture, known)}"
    capable = known_for(TASK_MAPPINGS[task])
    if (
        capable
        and architecture not in capable
        and not (task == "classification" and architecture in known_for(IMAGE_MAPPING))
    ):
        common = [name for name in ("bert", "roberta", "distilbert", "gpt2", "llama") if name in capable]
        return f"is {architecture!r}, which has no model for {task} in transformers ({', '.join(common)} and others have one)"
    return None


def future_problem(config: dict[str, Any], task: str) -> str | None:
    """Why a config can't learn to predict the next word: an encoder whose attention isn't causal sees that word. A clause, or None."""
    architecture = str(config.get("model_type"))
    flag = (settings_of(architecture) or {}).get("is_decoder")
    if task != "causal_lm" or flag is None or flag.default is not False or config.get("is_encoder_decoder"):
        return None
    return (
        None
        if config.get("is_decoder")
        else f"has is_decoder false: a {architecture} would see the words that it should predict"
    )


def _close(word: str, choices: Any) -> str:
    suggestion = nearest(word, choices)
    return (
        suggestion
        if "did you mean" in suggestion
        else " (known ones are bert, roberta, distilbert, gpt2, llama and many more)"
    )


@functools.cache
def settings_of(architecture: str) -> dict[str, Setting] | None:
    """The settings of an architecture's config by name, the standard names of its `attribute_map` included; None if they can't be read."""
    class_name = config_classes().get(architecture)
    if architecture in OWN:
        return _read_class(str(OWN[architecture].source), OWN[architecture].config)
    special = _pairs("auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    module = special.get(architecture, architecture.replace("-", "_"))
    return _read_class(f"models/{module}/configuration_{module}.py", class_name) if class_name else None


def _read_class(file: str, class_name: str) -> dict[str, Setting] | None:
    tree = _tree(file)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None) if tree else None
    if (
        tree is None
        or node is None
        or any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in node.body)
    ):
        return None
    settings: dict[str, Setting] = {}
    aliases: dict[str, str] = {}
    for base in node.bases:
        inherited = _read_base(file, tree, ast.unparse(base))
        if inherited is None:
            return None
        settings |= inherited
    for statement in node.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and "ClassVar" not in ast.unparse(statement.annotation)
        ):
            settings[statement.target.id] = Setting(_annotation(statement.annotation), _default(statement.value))
        elif isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "attribute_map" for t in statement.targets
        ):
            aliases = _literal(statement.value) or {}
    return settings | {standard: settings[own] for standard, own in aliases.items() if own in settings}


def _read_base(file: str, tree: ast.Module, name: str) -> dict[str, Setting] | None:
    if name in ("PreTrainedConfig", "PretrainedConfig"):
        return _read_general()
    if name.endswith("Mixin"):
        return {}
    if any(isinstance(n, ast.ClassDef) and n.name == name for n in tree.body):
        return _read_class(file, name)
    for statement in tree.body:
        if (
            isinstance(statement, ast.ImportFrom)
            and statement.level == 2
            and any(alias.name == name for alias in statement.names)
        ):
            return _read_class(f"models/{(statement.module or '').replace('.', '/')}.py", name)
    return None


@functools.cache
def _read_general() -> dict[str, Setting]:
    tree = _tree("configuration_utils.py")
    node = (
        next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "PreTrainedConfig"), None)
        if tree
        else None
    )
    fields = [s for s in (node.body if node else []) if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    plain = [s for s in fields if "ClassVar" not in ast.unparse(s.annotation)]
    return {
        s.target.id: Setting(_annotation(s.annotation), _default(s.value))
        for s in plain
        if isinstance(s.target, ast.Name)
    }


def _annotation(node: ast.expr) -> Any:
    names = ANNOTATION_NAMES | {t.__name__: t for t in (int, float, str, bool, list, dict)}
    try:
        return eval(ast.unparse(node), {"__builtins__": {}}, names)
    except Exception:
        return Any


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError):
        return None


def _default(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Call):  # a validated field: interval(min=0.0, max=1.0)(default=0.02)
        return next((_literal(keyword.value) for keyword in node.keywords if keyword.arg == "default"), None)
    return _literal(node)


def settings_problems(architecture: str, values: dict[str, Any], key: str) -> list[Problem]:
    """Unknown settings (with the nearest right one) and values of a wrong type or size."""
    settings = settings_of(architecture)
    if settings is None:
        return []
    own = {name: setting for name, setting in settings.items() if name not in DERIVED}
    problems = []
    for name, value in values.items():
        if name in own:
            found = check(value, own[name].annotation, f"{key}.{name}")
            if not found and name in SIZES and isinstance(value, int) and value < 1:
                found = [Problem(f"{key}.{name}", f"is {value}, must be >= 1")]
            problems += found
        elif name in DERIVED:
            problems.append(Problem(f"{key}.{name}", "can't be set here: it follows from the task and the data"))
        else:
            suggestion = nearest(name, own)
            few = (
                suggestion
                if "did you mean" in suggestion
                else f"; the config of {architecture} has {', '.join(sorted(own))}"
            )
            problems.append(Problem(f"{key}.{name}", f"is not a setting of {architecture}{few}"))
    return problems


def with_defaults(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """`values` over the architecture's own defaults, as far as they are constants in the source."""
    settings = settings_of(architecture) or {}
    merged = (
        {"model_type": architecture}
        | {name: s.default for name, s in settings.items() if s.default is not None}
        | values
    )
    for name, value in values.items():  # `n_embd` is `hidden_size` under another name
        merged |= {other: value for other, s in settings.items() if name in settings and s is settings[name]}
    return merged
