"""What all recipes do to a model, whatever it comes from: labels, dropout, padding, frozen parameters, seeds. Imports torch inside functions only."""

import contextlib
import fnmatch
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distill_system.errors import Problem, nearest, refuse
from distill_system.models.weights import OFFSET_POSITIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Built = tuple[PreTrainedModel, PreTrainedTokenizerBase]

log = logging.getLogger("distill_system.models")
PROBLEM_TYPES = {  # how transformers calls them in config.json
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
DROPOUT = re.compile(r"dropout|pdrop$")
RANDOM_DEPTH = ("layerdrop", "drop_path_rate", "encoder_layerdrop", "decoder_layerdrop")


class Recipe(Protocol):
    """How a model comes into being; a config names one by `_target_`. `problems` and the rest need no torch, only `build` does."""

    def problems(self, key: str, *, task: str, artifacts_known: set[str]) -> list[Problem]:
        """What can be told to be wrong before anything is started: fast, without torch, without a download."""

    def fingerprint(self) -> dict[str, Any]:
        """Settings, and digests of local files: two recipes with equal fingerprints build the same model."""

    def depends_on(self) -> list[str]:
        """Names of the phases whose artifacts `build` needs."""

    def max_positions(self, artifacts: dict[str, Path]) -> int | None:
        """The longest sequence the model takes; None where it is not limited, or not known without a download."""

    def load_tokenizer(self, artifacts: dict[str, Path], key: str = "model") -> "PreTrainedTokenizerBase":
        """The tokenizer alone, as `build` returns it."""

    def build(
        self,
        *,
        task: str,
        label_names: Sequence[str] | None = None,
        num_labels: int | None = None,
        artifacts: dict[str, Path] | None = None,
        seed: int = 0,
        key: str = "model",
    ) -> "Built":
        """The model in fp32 on the CPU, in eval mode, and its tokenizer."""


def resolve_labels(task: str, label_names: Sequence[str] | None, num_labels: int | None) -> list[str] | None:
    """The labels by name (LABEL_0, ... where only their number is known); None in language modelling, and where none are asked for.

    Regression has no names, and one output: `label_names=[]` asks for it.
    """
    if task == "regression" and label_names is not None and not label_names:
        num_labels = num_labels or 1
    if task == "causal_lm" or not (label_names or num_labels):
        return None
    names = [str(name) for name in label_names] if label_names else [f"LABEL_{i}" for i in range(num_labels or 0)]
    assert num_labels in (None, len(names)), (num_labels, names)
    return names


def set_labels(config: Any, labels: Sequence[str] | None, task: str = "classification") -> None:
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
        config.problem_type = PROBLEM_TYPES.get(task)


def set_dropout(config: Any, dropout: float | None) -> None:
    """Sets every dropout probability of a config; at 0, skipped layers are switched off as well. None leaves all as they are."""
    if dropout is None:
        return
    for name, value in list(config.to_dict().items()):
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
            continue
        if DROPOUT.search(name) and name not in RANDOM_DEPTH:
            setattr(config, name, float(dropout))
        elif name in RANDOM_DEPTH and dropout == 0:
            setattr(config, name, 0.0)


def fit_tokenizer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", key: str) -> None:
    """Tells the model how the tokenizer pads; refuses a tokenizer with more tokens than the model has embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise refuse(
            f"{key}.tokenizer",
            f"has {len(tokenizer)} tokens, the model has embeddings for {rows}; take the model's own tokenizer",
        )
    config = model.config
    if config.pad_token_id is None or config.model_type not in OFFSET_POSITIONS:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


def freeze(model: "PreTrainedModel", patterns: Sequence[str], key: str) -> list[str]:
    """Switches gradients off for the parameters whose names match one of the patterns (as in file names: `*embeddings*`).

    Raises:
        Refusal: a pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen: list[str] = []
    for i, pattern in enumerate(patterns):
        matched = fnmatch.filter(parameters, pattern)
        if not matched:
            modules = {".".join(name.split(".")[:n]) for name in parameters for n in range(1, name.count(".") + 2)}
            hint = nearest(pattern.replace("*", ""), modules | {part for name in modules for part in name.split(".")})
            hint = hint if "did you mean" in hint else f"; parameters are named like {next(iter(parameters))!r}"
            raise refuse(
                f"{key}.frozen[{i}]",
                f"is {pattern!r}, which matches no parameter{hint}; a pattern looks like '*embeddings*'",
            )
        frozen += matched
    for name in frozen:
        parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise refuse(f"{key}.frozen", f"is {list(patterns)}, which freezes every parameter: nothing is left to train")
    return frozen


def finish(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", frozen: Sequence[str], key: str) -> "Built":
    """The last steps of every recipe. A model that takes pictures has an image processor in place of a tokenizer, or None."""
    if hasattr(tokenizer, "get_vocab"):
        fit_tokenizer(model, tokenizer, key)
    freeze(model, frozen, key)
    model.config.architectures = [type(model).__name__]
    return model.float().eval(), tokenizer


def auto_class(task: str, config: Any = None) -> Any:
    """The auto class of transformers for a task; `config` (of the model, or the content of config.json) tells whether it takes pictures."""
    import transformers

    from distill_system.artifacts import AUTO_CLASSES, IMAGE_AUTO_CLASS
    from distill_system.models.images import sees_pictures
    from distill_system.models.own import register

    register()
    pictures = task == "classification" and config is not None and sees_pictures(config)
    return getattr(transformers, IMAGE_AUTO_CLASS if pictures else AUTO_CLASSES[task])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights made inside depend on `seed` alone, and the random state outside isn't touched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters in them is checked and said by the recipes."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
