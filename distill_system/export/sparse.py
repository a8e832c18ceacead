"""Writes a model with many zeros into few bytes: one file of values and positions (`models.sparse_file`) in place of the weights.

Plain `from_pretrained` finds no weights in such a folder and says so; `distill_system.load` reads it.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_system.export.dense import CODE, save_config
from distill_system.files import TEMPORARY, sync_folder
from distill_system.models.sparse_file import (
    Stored,
    blocks_of,
    compress,
    header_of,
    is_sparse,
    read_layout,
    read_tensors,
)
from distill_system.models.weights import GRIDS, PACKED, SAFETENSORS_INDEX, SPARSE

__all__ = ["blocks_of", "is_sparse", "read_layout", "read_tensors", "write_sparse"]


def write_sparse(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    blocks: Mapping[str, tuple[int, int]],
    config: Any,
    tokenizer: Any,
    generation_config: Any = None,
) -> list[Path]:
    """Writes weights, config and tokenizer into `folder` (made if it isn't there) and returns the weight files.

    The compressed model is held in memory until it is written, and one tensor of `tensors` at a time. Dense weights of an earlier model in the folder
    are removed at the end. Put the whole artifact into `files.folder_atomic`: this function replaces file by file.

    Args:
        folder: of the artifact.
        tensors: (name, tensor), each name once; tied tensors once (see `dense.named_tensors`).
        blocks: (h, w) by name, of matrices that are stored in blocks (in whole, where that is smaller); the others by elements.
        config: of transformers; `architectures` should name the model's class.
        tokenizer: of transformers, or an image processor, or None.
        generation_config: of a language model, or None.

    Raises:
        ValueError: a name comes twice or holds a colon, a name of `blocks` never comes, blocks don't divide their matrix, or there are no tensors.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layout: dict[str, Stored] = {}
    pieces: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in layout:
            raise ValueError(f"{name} was handed over twice")
        if ":" in name:
            raise ValueError(f"{name} can't be stored: a colon separates a tensor's name from its parts")
        stored, parts = compress(tensor, blocks.get(name), name)
        layout[name] = stored
        pieces |= {name + suffix: part for suffix, part in parts.items()}
    if not layout:
        raise ValueError("a model without tensors can't be written")
    if blocks.keys() - layout.keys():
        raise ValueError(
            f"{min(blocks.keys() - layout.keys())} should be stored in blocks, but the model has no such tensor"
        )
    temporary = folder / f"{TEMPORARY}{SPARSE}"
    try:
        save_file(pieces, temporary, metadata=header_of(layout))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.rename(folder / SPARSE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for old in [
        *folder.glob("model*.safetensors"),
        *(folder / name for name in (SAFETENSORS_INDEX, PACKED, GRIDS, CODE)),
    ]:
        old.unlink(missing_ok=True)
    for part in (tokenizer, generation_config):
        if part is not None:
            part.save_pretrained(str(folder))
    save_config(folder, config)  # last: a folder without config.json is no model
    sync_folder(folder)
    return [folder / SPARSE]
