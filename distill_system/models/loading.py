"""Loads weights into a model for a task: safetensors first, nothing silently left random, a classification head in the data's order of labels."""

import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_system.errors import Refusal, refuse
from distill_system.models.alignment import align_labels
from distill_system.models.architectures import future_problem
from distill_system.models.common import PROBLEM_TYPES, auto_class, log, quiet, seeded, set_dropout, set_labels
from distill_system.models.images import sees_pictures
from distill_system.models.reading import folder_config, from_folder, is_packed
from distill_system.models.tokenizers import first_sentence

HEAD_NAMES = dict.fromkeys(("classification", "multi_label", "regression"), "SequenceClassification")
HEAD_NAMES["token_classification"] = "TokenClassification"
HEADS = dict.fromkeys(("classification", "multi_label"), "classification head")
HEADS |= {"regression": "regression head", "token_classification": "head for tags"}

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_config(source: Mapping[str, Any], key: str) -> Any:
    """The config of a folder or hub name; `source` holds `name` and, optionally, `revision` and `gguf_file`."""
    options = {name: source[name] for name in ("revision", "gguf_file") if source.get(name)}
    try:
        return folder_config(source["name"], **options)
    except Exception as error:
        raise explain(error, source["name"], key) from error


def load_model(
    source: Mapping[str, Any],
    *,
    task: str,
    labels: Sequence[str] | None,
    dropout: float | None,
    seed: int,
    key: str,
    allow_pickle: bool = False,
    config: Any = None,
) -> "PreTrainedModel":
    """A pretrained model in fp32.

    The source's own head is kept if it is one for the task and its labels are the data's, whatever their order; otherwise a new head is made from the seed.

    Args:
        source: `name` (folder or hub name), `revision`, `gguf_file`.
        task: which kind of model.
        labels: the data's labels, in order; None: the source's own, which then must have a classification head (a teacher).
        dropout: for every dropout of the model; None: as the source has it.
        seed: for weights that the source doesn't have.
        key: of the recipe, for messages.
        allow_pickle: whether `.bin` weights are taken where there are no safetensors.
        config: the source's config, if it is loaded already.

    Raises:
        Refusal: the source can't be loaded, or lacks weights of the body.
    """
    import torch

    config = load_config(source, key) if config is None else config
    if getattr(config, "quantization_config", None) is not None and not source.get("gguf_file"):
        raise refuse(
            f"{key}.name",
            f"is {source['name']!r}, a quantized model, whose weights can't be trained; take the one it was made from",
        )
    if is_packed(source["name"]):
        raise refuse(
            f"{key}.name",
            f"is {source['name']!r}, a packed model, whose few bits can't be trained; take the model it was packed from",
        )
    if clause := future_problem(config.to_dict(), task):
        raise refuse(f"{key}.name", f"is {source['name']!r}, whose config {clause}")
    order, head_is_new = _plan_head(config, task, labels, source["name"], key)
    set_labels(config, labels, task)
    set_dropout(config, dropout)
    options = {name: source[name] for name in ("revision", "gguf_file") if source.get(name)}
    if "gguf_file" not in options:
        options["use_safetensors"] = None if allow_pickle else True
    try:
        with quiet(), seeded(seed):
            model, report = from_folder(
                auto_class(task, config),
                source["name"],
                config,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except Exception as error:
        raise explain(error, source["name"], key) from error
    if options.get("gguf_file"):
        _forget_quantizer(model)
    _check_report(model, report, source["name"], key)
    if head_is_new:
        with seeded(seed):
            _renew_head(model, len(labels or []))
    elif order is not None:
        permute_head(model, order)
    return model


def _forget_quantizer(model: "PreTrainedModel") -> None:
    """The weights of a GGUF file are plain fp32 by now: the model must neither call itself quantized nor be saved as such."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    for name in ("quantization_config", "_is_quantized", "_model_name_or_path"):
        model.config.__dict__.pop(name, None)


def _plan_head(
    config: Any, task: str, labels: Sequence[str] | None, name: str, key: str
) -> tuple[list[int] | None, bool]:
    """The order of the source's classes that makes them the data's (None: as they are), and whether the head has to be made anew."""
    if task == "causal_lm":
        return None, False
    head = "ImageClassification" if sees_pictures(config) else HEAD_NAMES[task]
    trained = any(head in name for name in config.architectures or [])
    other = getattr(config, "problem_type", None)
    if labels is None:
        if not trained:
            raise refuse(
                f"{key}.name", f"is {name!r}, which has no {HEADS[task]}: it knows no labels; fine-tune it first"
            )
        if other not in (None, PROBLEM_TYPES.get(task)):
            raise refuse(f"{key}.name", f"is {name!r}, a model for {other}, which can't teach {task}")
        return None, False
    if not trained:
        return None, False  # a source without such a head gets a new one from `from_pretrained`
    if other not in (None, PROBLEM_TYPES.get(task)):
        log.warning(
            "the source is a model for %s, the data's task is %s: its head is replaced by a new one", other, task
        )
        return None, True
    if task == "regression":
        return None, len(config.id2label) != len(labels)
    found = align_labels(config.id2label, labels)
    if found.problems:
        log.warning(
            "the source's labels %s are not the data's: its head is replaced by a new one",
            list(config.id2label.values()),
        )
        return None, True
    for warning in found.warnings:
        log.warning(warning)
    return (None if found.is_identity else found.order), False


def _output_layer(model: "PreTrainedModel", classes: int) -> Any:
    """The last linear layer of a classification head."""
    from torch import nn

    body = f"{model.base_model_prefix}."
    found = [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.out_features == classes and not name.startswith(body)
    ]
    assert found, f"{type(model).__name__} has no output layer for {classes} classes"
    return found[-1]


def permute_head(model: "PreTrainedModel", order: Sequence[int]) -> None:
    """Puts the classes of the output layer in another order: class i becomes what class `order[i]` was."""
    import torch

    layer = _output_layer(model, len(order))
    with torch.no_grad():
        layer.weight.copy_(layer.weight[list(order)].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[list(order)].clone())


def _renew_head(model: "PreTrainedModel", classes: int) -> None:
    import torch

    layer = _output_layer(model, classes)
    with torch.no_grad():
        layer.weight.normal_(mean=0.0, std=getattr(model.config, "initializer_range", 0.02))
        if layer.bias is not None:
            layer.bias.zero_()


def _check_report(model: "PreTrainedModel", report: Any, name: str, key: str) -> None:
    """Refuses a source that leaves weights of the body random, or has them in another shape (poolers and heads may be new)."""
    body = f"{model.base_model_prefix}."
    lacking = [
        parameter
        for parameter in sorted(report["missing_keys"])
        if parameter.startswith(body) and "pooler" not in parameter
    ]
    shapes = [entry[0] if isinstance(entry, tuple | list) else entry for entry in report["mismatched_keys"]]
    misshapen = [parameter for parameter in shapes if parameter.startswith(body)]
    if lacking:
        text = f"is {name!r}, which lacks {len(lacking)} weights of a {model.config.model_type}, {lacking[0]} first"
        raise refuse(f"{key}.name", f"{text}; its config.json and its weights don't belong together")
    if misshapen:
        raise refuse(f"{key}.name", f"is {name!r}, whose {misshapen[0]} has another shape than its config.json says")
    if report.get("error_msgs"):
        raise refuse(
            f"{key}.name",
            f"is {name!r}, which can't be loaded ({first_sentence(ValueError(str(report['error_msgs'])))})",
        )


def explain(error: Exception, name: str, key: str) -> Exception:
    """An error of the model library as a refusal; a full disk and a lack of memory stay what they are."""
    if isinstance(error, Refusal | MemoryError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        return error
    text = str(error)
    if "safetensors" in text and ("not appear to have" in text or "no file named" in text):
        return refuse(
            f"{key}.allow_pickle",
            f"is false, and {name!r} has no safetensors; add {key}.allow_pickle=true if you trust its .bin files",
        )
    if "offline" in text.lower() or "couldn't connect" in text.lower() or "LocalEntryNotFound" in type(error).__name__:
        return refuse(
            f"{key}.name",
            f"is {name!r}, which is no local folder, not in the hub's cache, and the hub can't be reached",
        )
    return refuse(f"{key}.name", f"is {name!r}, which can't be loaded ({first_sentence(error)})")
