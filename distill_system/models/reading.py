"""Models out of folders, in whichever form their weights lie there: plain, with layers smaller than the config says, or sparse."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_system.models.common import quiet, seeded
from distill_system.models.weights import SPARSE


def folder_config(name: str | Path, **options: Any) -> Any:
    """The config of a folder or hub name. What a reshaped folder says to others about its own code isn't taken over: that code is here."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(name), trust_remote_code=False, **options)
    if getattr(config, "reshape", None):
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


def from_folder(auto: Any, name: str | Path, config: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model with its weights, and the report of what was missing or didn't fit, as `from_pretrained` gives it.

    Args:
        auto: an auto class of transformers, or a model's class.
        name: folder, or hub name.
        config: of `folder_config`.
        options: of `from_pretrained`.

    Raises:
        ValueError: `config.reshape` belongs to another model, or the sparse file is damaged. Whatever else `from_pretrained` raises.
    """
    reads = "from_config" in dir(auto) and (getattr(config, "reshape", None) or is_sparse(name))
    cls = model_class(auto, config) if reads else auto
    options = {"output_loading_info": True, **options, "config": config}
    if not is_sparse(name):
        return cls.from_pretrained(str(name), trust_remote_code=False, **options)
    from transformers import GenerationConfig

    from distill_system.models.sparse_file import read_tensors

    for ignored in ("use_safetensors", "local_files_only", "revision", "gguf_file", "weights_only"):
        options.pop(ignored, None)
    model, report = cls.from_pretrained(None, state_dict=read_tensors(name), **options)
    if model.can_generate() and Path(name, "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(name), local_files_only=True)
    return model, report
