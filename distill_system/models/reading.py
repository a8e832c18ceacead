"""Models out of folders, in whichever form their weights lie there: plain, with layers smaller than the config says, sparse, or packed."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_system.models.common import quiet, seeded
from distill_system.models.input_steps import attach_steps
from distill_system.models.own import own_of, register
from distill_system.models.weights import PACKED, SPARSE


def folder_config(name: str | Path, **options: Any) -> Any:
    """The config of a folder or hub name. What a folder says to others about the code beside it isn't taken over where that code is here."""
    from transformers import AutoConfig

    register()
    config = AutoConfig.from_pretrained(str(name), trust_remote_code=False, **options)
    if getattr(config, "reshape", None) or own_of(config):
        vars(config).pop("auto_map", None)
    return config


def model_class(auto: Any, config: Any) -> Any:
    """What an auto class builds from a config; where the config has a `reshape`, the class that reads it."""
    import torch

    from distill_system.models.reshape import reshaped

    with quiet(), seeded(0), torch.device("meta"):
        cls: Any = type(auto.from_config(copy.deepcopy(config)))
    return reshaped(cls) if getattr(config, "reshape", None) else cls


def from_config(auto: Any, config: Any, **options: Any) -> Any:
    """A new model as `auto.from_config` makes it, with the sizes that `config.reshape` says."""
    if not getattr(config, "reshape", None):
        return auto.from_config(config, **options)
    return model_class(auto, config)._from_config(config, **options)


def is_sparse(name: str | Path) -> bool:
    return Path(name, SPARSE).is_file()


def is_packed(name: str | Path) -> bool:
    """Whether the weights lie in a folder as codes of a few bits: to compute with, not to train."""
    return Path(name, PACKED).is_file()


def from_folder(auto: Any, name: str | Path, config: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model with its weights, and the report of what was missing or didn't fit, as `from_pretrained` gives it; inputs are rounded where the config says so.

    Args:
        auto: an auto class of transformers, or a model's class.
        name: folder, or hub name.
        config: of `folder_config`.
        options: of `from_pretrained`.

    Raises:
        ValueError: `config.reshape` belongs to another model, or the sparse or packed file is damaged. Whatever else `from_pretrained` raises.
    """
    model, report = _read(auto, name, config, **options)
    round_inputs(model, config)
    return model, report


def round_inputs(model: Any, config: Any) -> None:
    """Lets the model round the inputs that it learned to round while it was quantized."""
    inputs = (getattr(config, "quantized", None) or {}).get("activations")
    if inputs:
        attach_steps(model, inputs["bits"], inputs["steps"])


def _read(auto: Any, name: str | Path, config: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    reads = "from_config" in dir(auto) and (getattr(config, "reshape", None) or is_sparse(name) or is_packed(name))
    cls = model_class(auto, config) if reads else auto
    options = {"output_loading_info": True, **options, "config": config}
    if not (is_sparse(name) or is_packed(name)):
        return cls.from_pretrained(str(name), trust_remote_code=False, **options)
    from transformers import GenerationConfig

    for ignored in ("use_safetensors", "local_files_only", "revision", "gguf_file", "weights_only"):
        options.pop(ignored, None)
    if is_packed(name):
        from distill_system.models.packed_model import load_packed

        model, report = load_packed(cls, name, **options)
    else:
        from distill_system.models.sparse_file import read_tensors

        model, report = cls.from_pretrained(None, state_dict=read_tensors(name), **options)
    if model.can_generate() and Path(name, "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(name), local_files_only=True)
    return model, report
