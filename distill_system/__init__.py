"""Distributed distillation training: teachers, students, pruning and quantization from one command."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__version__ = "0.1.0"


def load(folder: str | PathLike[str], task: str | None = None) -> "PreTrainedModel":
    """A model that a phase left, in eval mode, in whatever form its weights are stored: plain, cut, sparse or packed.

    Args:
        folder: the phase's `model` folder, or `packed`.
        task: such as `classification`; None: whatever the model was saved for.

    Raises:
        ValueError: the folder holds no model, or its files are damaged.
        RuntimeError: weights are missing, or have other sizes than the config says.
    """
    from pathlib import Path

    from distill_system.export.dense import load as load_folder

    return load_folder(Path(folder), task)
