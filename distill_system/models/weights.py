"""What the files of a model folder say without torch: configs, safetensors headers, which weights there are and whether they are whole."""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distill_system.errors import Problem

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
SPARSE = "sparse.safetensors"  # see `models.sparse_file`: values beside their positions
PACKED = "packed.safetensors"  # see `models.packed_file`: codes of a few bits beside their grids
GRIDS = "grids.safetensors"  # see `models.grids_file`: beside plain weights that lie on grids
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
)
TOKENIZER_FILES += ("spiece.model", "sentencepiece.bpe.model", "spm.model", "tekken.json")
# Position tables of these start after the padding index: `max_position_embeddings` counts rows, not tokens.
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
    "mpnet",
    "longformer",
}
OFFSET_POSITIONS |= {"esm", "ibert", "layoutlmv3", "xmod", "bridgetower_text_model", "luke"}
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "max_seq_len", "seq_length")


class Unsound(ValueError):
    """A file that is not what its name says; the message is a clause that goes on after the file's name."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its dtype as the file names it, its shape, and the bytes it fills."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # from the start of the file
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, after a check that the file can hold what its header promises.

    Raises:
        Unsound: too short, no JSON, offsets that overlap, leave holes or pass the end of the file.
    """
    with open(path, "rb") as file:
        return read_head(file)[0]


def read_head(file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of a safetensors file that is open at its beginning; raises as `read_header` does."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise Unsound(f"is no safetensors file: it has {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > LARGEST_HEADER or 8 + length > size:
        raise Unsound(f"is no sound safetensors file: its header should take {length} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length))
        metadata = {str(name): str(text) for name, text in (header.pop("__metadata__", None) or {}).items()}
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Unsound(
            f"is no sound safetensors file: its header can't be read ({error or type(error).__name__})"
        ) from error
    _check_offsets(entries, 8 + length, size)
    return entries, metadata


def _entry(value: dict[str, Any], start: int) -> Entry:
    begin, end = value["data_offsets"]
    shape = tuple(int(n) for n in value["shape"])
    bits = math.prod(shape) * ITEM_BITS[value["dtype"]]
    if begin < 0 or 8 * (end - begin) != bits or min(shape, default=0) < 0:
        raise ValueError(f"{value['dtype']} of shape {list(shape)} in {end - begin} bytes")
    return Entry(value["dtype"], shape, start + begin, start + end)


def _check_offsets(entries: dict[str, Entry], start: int, size: int) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise Unsound(f"is no sound safetensors file: {name!r} begins at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        word = "truncated" if position > size else "longer than its header says"
        raise Unsound(f"is {word}: its header promises {position} bytes, the file has {size}")


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises: Unsound: the file is missing, or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unsound(f"can't be read ({error.strerror})") from error
    except ValueError as error:
        raise Unsound(f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise Unsound("holds no JSON object")
    return value


def read_config(folder: Path) -> dict[str, Any] | None:
    """`config.json` of a model folder, or None where there is none that can be read."""
    try:
        return read_json_object(folder / "config.json")
    except Unsound:
        return None


def weight_map(folder: Path) -> dict[str, str]:
    """Which file holds each tensor, by the index of a sharded model or by the header of the only file.

    Of a sparse or packed model the names are those of the tensors, which lie in the file in several pieces.

    Raises:
        Unsound: the index or the header is damaged. `FileNotFoundError`: there are no safetensors.
    """
    for own in (SPARSE, PACKED):
        if (folder / own).is_file():
            return {name.partition(":")[0]: own for name in read_header(folder / own)}
    if (folder / SAFETENSORS_INDEX).is_file():
        names = read_json_object(folder / SAFETENSORS_INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in names.values()
        ):
            raise Unsound(f"has a {SAFETENSORS_INDEX} without a sound weight_map")
        return names
    return dict.fromkeys(read_header(folder / SAFETENSORS), SAFETENSORS)


def folder_problems(folder: Path, key: str, *, allow_pickle: bool = False, allow_packed: bool = False) -> list[Problem]:
    """What keeps a local model folder from being loaded; reads configs and headers only, in milliseconds.

    Args:
        folder: exists.
        key: of the recipe in the config (`phases.student.model`).
        allow_pickle: whether `.bin` weights will do.
        allow_packed: whether packed weights will do, which can't be trained.
    """
    if (folder / PACKED).is_file() and not allow_packed:
        text = "a packed model, whose few bits can't be trained; take the model it was packed from"
        return [Problem(f"{key}.name", f"is {str(folder)!r}, {text}")]
    problems = []
    try:
        config = read_json_object(folder / "config.json")
        if not isinstance(config.get("model_type"), str):
            problems.append(Problem(f"{key}.name", f"is {str(folder)!r}, whose config.json names no model_type"))
        problems += [
            Problem(f"{key}.name", f"is {str(folder)!r}, whose config.json {text}") for text in config_faults(config)
        ]
        if config.get("quantization_config"):
            text = "a quantized model, whose weights can't be trained; take the one it was made from"
            problems.append(Problem(f"{key}.name", f"is {str(folder)!r}, {text}"))
    except Unsound as error:
        problems.append(Problem(f"{key}.name", f"is {str(folder)!r}, whose config.json {error}"))
    return problems + _weight_problems(folder, key, allow_pickle)


def _weight_problems(folder: Path, key: str, allow_pickle: bool) -> list[Problem]:
    for own in (SPARSE, PACKED):
        if (folder / own).is_file():
            try:
                read_header(folder / own)
            except (OSError, Unsound) as error:
                text = f"can't be read ({error.strerror})" if isinstance(error, OSError) else str(error)
                return [Problem(f"{key}.name", f"is {str(folder)!r}, whose {own} {text}")]
            return []
    if not (folder / SAFETENSORS).is_file() and not (folder / SAFETENSORS_INDEX).is_file():
        pickles = [name for name in (PICKLE, PICKLE_INDEX) if (folder / name).is_file()]
        if pickles and allow_pickle:
            return []
        if pickles:
            text = f"is false, and {str(folder)!r} holds only {pickles[0]}, a pickle that could run code; add {key}.allow_pickle=true if you trust it"
            return [Problem(f"{key}.allow_pickle", text)]
        return [
            Problem(f"{key}.name", f"is {str(folder)!r}, which holds no weights ({SAFETENSORS} or {SAFETENSORS_INDEX})")
        ]
    try:
        by_file: dict[str, list[str]] = {}
        for tensor, file in weight_map(folder).items():
            by_file.setdefault(file, []).append(tensor)
    except Unsound as error:
        return [Problem(f"{key}.name", f"is {str(folder)!r}, whose {SAFETENSORS} {error}")]
    problems = []
    for file, tensors in sorted(by_file.items()):
        try:
            absent = [name for name in tensors if name not in read_header(folder / file)]
            if absent:
                raise Unsound(f"lacks {absent[0]!r}, which the index places in it")
        except OSError as error:
            problems.append(
                Problem(f"{key}.name", f"is {str(folder)!r}, whose {file} can't be read ({error.strerror})")
            )
        except Unsound as error:
            problems.append(Problem(f"{key}.name", f"is {str(folder)!r}, whose {file} {error}"))
    return problems


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def first_of(config: dict[str, Any], *names: str) -> int | None:
    """The first of `names` that the config has as a whole number."""
    values = [
        config[name] for name in names if isinstance(config.get(name), int) and not isinstance(config.get(name), bool)
    ]
    return values[0] if values else None


def number_of_layers(config: dict[str, Any]) -> int | None:
    return first_of(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def config_faults(config: dict[str, Any]) -> list[str]:
    """What is impossible in a config, as clauses with value and limit."""
    width = first_of(config, "hidden_size", "n_embd", "dim", "d_model")
    heads = first_of(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    faults = [
        f"has {name} {value}, must be >= 1"
        for name, value in (("hidden_size", width), ("num_attention_heads", heads))
        if value is not None and value < 1
    ]
    if not faults and width and heads and width % heads and not config.get("head_dim"):
        faults.append(f"has hidden_size {width}, which {heads} attention heads don't divide")
    groups = first_of(config, "num_key_value_heads")
    if heads and groups and heads % groups:
        faults.append(f"has num_attention_heads {heads}, which num_key_value_heads {groups} doesn't divide")
    return faults


def max_positions(config: dict[str, Any]) -> int | None:
    """The longest sequence the model takes, in tokens; None where nothing limits it (relative positions)."""
    limit = first_of(config, *POSITION_KEYS)
    if limit is None or limit < 1:
        return None
    if config.get("model_type") in OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        return limit - (1 if padding is None else int(padding)) - 1
    return limit
