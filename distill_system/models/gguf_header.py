"""The metadata of a GGUF file (architecture, sizes), read without torch and without its tensors."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distill_system.models.weights import Unsound

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
LONGEST_KEPT = 64  # entries of an array; vocabularies are passed over


def read_metadata(path: Path) -> dict[str, Any]:
    """Names and values of the file's header; long arrays are given by their length only.

    Raises:
        Unsound: no GGUF file of version 2 or 3, or one that ends inside its header.
    """
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise Unsound("is no GGUF file: it doesn't begin with 'GGUF'")
        try:
            (version,) = struct.unpack("<I", file.read(4))
            if version not in (2, 3):
                raise Unsound(f"is a GGUF file of version {version}, must be 2 or 3")
            _, count = struct.unpack("<QQ", file.read(16))
            return dict(_pairs(file, count))
        except (struct.error, EOFError) as error:
            raise Unsound("is truncated: it ends inside its header") from error


def _pairs(file: BinaryIO, count: int) -> Iterator[tuple[str, Any]]:
    for _ in range(count):
        name = _string(file)
        yield name, _value(file, _number(file, "<I"))


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in SCALARS:
        return _number(file, SCALARS[kind])
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        raise Unsound(f"is no sound GGUF file: it has a value of the unknown kind {kind}")
    item, length = _number(file, "<I"), _number(file, "<Q")
    if item in SCALARS and length > LONGEST_KEPT:
        file.seek(length * struct.calcsize(SCALARS[item]), 1)
        return {"length": length}
    if item == STRING and length > LONGEST_KEPT:
        for _ in range(length):
            file.seek(_number(file, "<Q"), 1)
        return {"length": length}
    return [_value(file, item) for _ in range(length)]


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _bytes(file, struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    return _bytes(file, _number(file, "<Q")).decode("utf-8", "replace")


def _bytes(file: BinaryIO, length: int) -> bytes:
    data = file.read(length) if length < 1 << 31 else b""
    if len(data) < length or length >= 1 << 31:
        raise EOFError
    return data


def as_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata under the names that `config.json` uses, as far as checks need them."""
    architecture = str(metadata.get("general.architecture", ""))
    names = {
        "context_length": "max_position_embeddings",
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
    }
    found = {ours: metadata.get(f"{architecture}.{theirs}") for theirs, ours in names.items()}
    return {"model_type": architecture} | {name: value for name, value in found.items() if value is not None}
