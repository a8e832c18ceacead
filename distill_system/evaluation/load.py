"""A saved model, in whatever form it was saved, or a sentence that says why it can't be evaluated on a task."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill_system.errors import refuse
from distill_system.models.common import PROBLEM_TYPES, auto_class, quiet
from distill_system.models.reading import folder_config, from_folder
from distill_system.models.tokenizers import first_sentence
from distill_system.models.weights import read_config

HEADS = {
    "classification": "a classification head",
    "multi_label": "a classification head",
    "regression": "a regression head",
    "token_classification": "a head for the tags of words",
    "causal_lm": "a language model's head",
}


def load_model(folder: Path | str, task: str, key: str = "path") -> nn.Module:
    """The model in `folder`, in float32 on the CPU, in eval mode.

    Raises:
        Refusal: it isn't a folder with a model, its files are damaged, or it was saved without the head that `task` needs, which
            `from_pretrained` would quietly fill with random numbers.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        inside = folder / "model" / "config.json"
        hint = (
            f"; did you mean '{folder / 'model'}'?"
            if inside.is_file()
            else "; name the `model` folder of a finished phase"
        )
        raise refuse(
            key,
            f"is '{folder}', a folder without a config.json{hint}"
            if folder.is_dir()
            else f"is '{folder}', which is not a folder",
        )
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "dtype": torch.float32,
    }
    try:
        with quiet():  # its report of missing weights is said below, in one sentence
            config = folder_config(folder, local_files_only=True)
            model, info = from_folder(auto_class(task, read_config(folder)), folder, config, **options)
    except Exception as error:  # transformers raises whatever the file's parser raises
        raise refuse(key, f"is '{folder}', which can't be loaded for {task} ({first_sentence(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise refuse(
            key,
            f"is '{folder}', which has no weights for {missing[0]}: it was saved without {HEADS[task]} that data of task {task} needs",
        )
    kind = getattr(model.config, "problem_type", None)
    if task != "causal_lm" and kind not in (None, PROBLEM_TYPES.get(task)):
        raise refuse(key, f"is '{folder}', a model for {kind}, which data of task {task} can't measure")
    return model.eval()
