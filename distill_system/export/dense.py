"""Writes a model as `from_pretrained` reads it, one shard in memory at a time, and proves it by reading it back.

Shapes: B samples, T tokens, C classes or words.
"""

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_system.files import TEMPORARY, sync_folder, write_json
from distill_system.models.own import OWN, class_named, own_of
from distill_system.models.weights import GRIDS, PACKED, SAFETENSORS, SAFETENSORS_INDEX, SPARSE, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CODE = "modeling_cut.py"  # in folders of models whose config has a `reshape`
CODES = (CODE, *(own.copy for own in OWN.values()))
PROBE = "The quick brown fox, naïve façade & 3.14 -- 你好 😀"


def tied_duplicates(model: "PreTrainedModel") -> set[str]:
    """Names in the state dict whose tensor is written under another name: `lm_head.weight` where it is the word embedding."""
    targets = getattr(model, "all_tied_weights_keys", None) or {}
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(
        keep_vars=True
    ).items():  # tied parameters are one object, also when their data is sharded away
        names.setdefault(id(tensor), []).append(name)
    duplicates = set()
    for group in names.values():
        kept = next((name for name in group if name not in targets), group[0])
        duplicates |= set(group) - {kept}
    return duplicates


def named_tensors(model: "PreTrainedModel") -> Iterator[tuple[str, Tensor]]:
    """What is written of an unsharded model: its parameters and persistent buffers, tied ones once."""
    skipped = tied_duplicates(model)
    for name, tensor in model.state_dict().items():
        if name not in skipped:
            yield name, tensor


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Any,
    tokenizer: Any,
    max_shard_bytes: float = 5e9,
    generation_config: Any = None,
) -> list[Path]:
    """Writes weights, config and tokenizer into `folder` (made if it isn't there) and returns the weight files.

    At most one shard is held in memory besides the tensor that is being fetched, so `tensors` may gather a sharded model one by one. Weights of an
    earlier model in the folder are removed at the end. Put the whole artifact into `files.folder_atomic`: this function replaces file by file.

    Args:
        folder: of the artifact.
        tensors: (name, tensor), each name once; tied tensors once (see `named_tensors`).
        config: of transformers; `architectures` should name the model's class.
        tokenizer: of transformers, or an image processor, or None.
        max_shard_bytes: a shard is closed before it would grow beyond this (a single larger tensor makes a shard of its own).
        generation_config: of a language model, or None.

    Raises:
        ValueError: a name comes twice, or there are no tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary: list[Path] = []
    placed: dict[str, int] = {}
    total = 0
    try:
        for shard in _shards(tensors, max_shard_bytes):
            twice = placed.keys() & shard.keys()
            if twice:
                raise ValueError(f"{sorted(twice)[0]} was handed over twice")
            path = folder / f"{TEMPORARY}{len(temporary)}-{SAFETENSORS}"
            temporary.append(path)
            _save(shard, path)
            placed |= dict.fromkeys(shard, len(temporary) - 1)
            total += sum(tensor.nbytes for tensor in shard.values())
        if not temporary:
            raise ValueError("a model without tensors can't be written")
        return _finish(folder, temporary, placed, total, config, tokenizer, generation_config)
    except BaseException:
        for path in temporary:
            path.unlink(missing_ok=True)
        raise


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: float) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if name in shard:
            raise ValueError(f"{name} was handed over twice")
        if shard and filled + tensor.nbytes > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = _own(tensor)
        filled += tensor.nbytes
    if shard:
        yield shard


def _own(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor with no more storage than it needs: a view into a flat buffer would keep the buffer alive."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _save(shard: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in shard.items():  # two names for one storage would be refused: the second one gets a copy
        tensors[name] = tensor.clone() if tensor.numel() and tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(tensors, path, metadata={"format": "pt"})
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _finish(
    folder: Path,
    temporary: list[Path],
    placed: Mapping[str, int],
    total: int,
    config: Any,
    tokenizer: Any,
    generation_config: Any,
) -> list[Path]:
    count = len(temporary)
    names = [SAFETENSORS] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for old in [
        *folder.glob("model*.safetensors"),
        *(folder / name for name in (SAFETENSORS_INDEX, SPARSE, PACKED, GRIDS, *CODES)),
    ]:
        old.unlink(missing_ok=True)
    files = [path.rename(folder / name) for path, name in zip(temporary, names, strict=True)]
    if count > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: names[i] for name, i in sorted(placed.items())},
        }
        write_json(folder / SAFETENSORS_INDEX, index)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    if generation_config is not None:
        generation_config.save_pretrained(str(folder))
    save_config(folder, config)  # last: a folder without config.json is no model
    sync_folder(folder)
    return files


def save_config(folder: Path, config: Any) -> None:
    """Writes config.json; where the model needs code that transformers doesn't have, that goes beside it, for `from_pretrained(folder, trust_remote_code=True)`.

    Without that consent `from_pretrained` builds the layers of a `reshape` as large as the config says, and fails at weights of other sizes.
    """
    own = own_of(config)
    if own is not None:
        shutil.copyfile(own.source, folder / own.copy)
        config = copy.deepcopy(config)
        config.auto_map = own.auto_map()
    if not getattr(config, "reshape", None):
        config.save_pretrained(str(folder))
        return
    from distill_system.models import reshape

    assert reshape.__file__ is not None
    shutil.copyfile(reshape.__file__, folder / CODE)
    config = copy.deepcopy(config)
    names = config.architectures or []
    config.auto_map = {auto: f"{Path(CODE).stem}.{name}" for name in names for auto in _auto_classes(config, name)}
    config.save_pretrained(str(folder))


def _auto_classes(config: Any, name: str) -> list[str]:
    """Those auto classes, of the ones used here, that build the model class `name` from a config."""
    import transformers

    from distill_system.artifacts import AUTO_CLASSES, IMAGE_AUTO_CLASS
    from distill_system.models.common import quiet

    found = []
    for auto in dict.fromkeys([*AUTO_CLASSES.values(), IMAGE_AUTO_CLASS]):
        try:
            with quiet(), torch.device("meta"):
                model = getattr(transformers, auto).from_config(copy.deepcopy(config))
        except (ValueError, TypeError):  # no such model of this architecture
            continue
        found += [auto] if type(model).__name__ == name else []
    return found


def save_model(folder: Path, model: "PreTrainedModel", tokenizer: Any, max_shard_bytes: float = 5e9) -> list[Path]:
    """`write_model` for an unsharded model."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = next(iter(model.parameters())).dtype
    generation = model.generation_config if model.can_generate() else None
    return write_model(folder, named_tensors(model), model.config, tokenizer, max_shard_bytes, generation)


def load(folder: Path, task: str | None = None) -> "PreTrainedModel":
    """The model of a folder, without a network, in eval mode: by plain `from_pretrained` where the folder is plain, or in the form it has.

    Args:
        folder: of an artifact: plain, with layers smaller than its config says, sparse, or packed.
        task: of the data; None: whatever the model was saved for.

    Raises:
        RuntimeError: a weight of the model isn't in the folder, or has another shape.
        ValueError: the folder holds no model, or its files are damaged.
    """
    from distill_system.models.common import auto_class, quiet
    from distill_system.models.reading import folder_config, from_folder

    with quiet():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no model: there is no config.json in it")
        config = folder_config(folder, local_files_only=True)
        kind = auto_class(task, read_config(folder)) if task else saved_class(folder, config)
        model, report = from_folder(kind, folder, config, local_files_only=True)
    for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[fault]:
            raise RuntimeError(
                f"{folder} is no whole model: {fault.replace('_', ' ')} {sorted(map(str, report[fault]))[:5]}"
            )
    return model.eval()


def saved_class(folder: Path, config: Any) -> Any:
    """The class of the model that a folder holds; where its config has a `reshape`, the class that reads it."""
    from distill_system.models.reshape import reshaped

    name = (getattr(config, "architectures", None) or [""])[0]
    cls = class_named(name)
    if cls is None:
        raise ValueError(
            f"{folder} doesn't say what model it holds (architectures: {config.architectures}); name its task"
        )
    return reshaped(cls) if getattr(config, "reshape", None) else cls


def verify(
    folder: Path,
    task: str,
    batch: Mapping[str, Tensor],
    expected_logits: Tensor,
    tolerance: float = 1e-5,
    tokenizer: Any = None,
) -> float:
    """Reloads the folder as `load` does and compares its logits on `batch` with those of the model that was written.

    Args:
        folder: of the artifact.
        task: of the data.
        batch: inputs on the CPU; keys that the model doesn't take (labels, valid, index) are left out.
        expected_logits: [B, C] or [B, T, C] ([B, T-1, C] where the last position, of which nothing speaks, was left out); of padded positions only the
            real ones are compared.
        tolerance: largest absolute difference, relative to the largest logit where that is above 1.
        tokenizer: the one that was written, or the image processor; None: not compared.

    Returns:
        The largest absolute difference.

    Raises:
        RuntimeError: the outputs or the tokenizers differ, or a weight is missing.
    """
    model = load(folder, task)
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    inputs = {name: batch[name] for name in names if name in batch}
    with torch.inference_mode():
        logits = model(**inputs).logits.float()
    expected = expected_logits.detach().cpu().float()
    if task == "causal_lm":
        logits = logits[:, : expected.shape[1]]
    if logits.shape != expected.shape:
        raise RuntimeError(
            f"{folder} gives logits of shape {list(logits.shape)} after reloading, expected {list(expected.shape)}"
        )
    difference = (logits - expected).abs()
    if logits.dim() == 3 and "attention_mask" in inputs:
        difference = difference[inputs["attention_mask"][:, : expected.shape[1]].bool()]
    largest = float(difference.max()) if difference.numel() else 0.0
    if not largest <= tolerance * max(1.0, float(expected.abs().max())):  # also true for nan
        raise RuntimeError(
            f"{folder} does not give the model's outputs after reloading: they differ by up to {largest:.3g}, allowed is {tolerance:g}"
        )
    if tokenizer is not None:
        _verify_tokenizer(folder, tokenizer)
    return largest


def _verify_tokenizer(folder: Path, tokenizer: Any) -> None:
    if not hasattr(tokenizer, "get_vocab"):
        _verify_processor(folder, tokenizer)
        return
    from transformers import AutoTokenizer

    reloaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if reloaded(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"] or len(reloaded) != len(tokenizer):
        kinds = json.dumps([type(tokenizer).__name__, type(reloaded).__name__])
        raise RuntimeError(
            f"{folder} does not give the tokenizer back after reloading ({kinds}): the same text is split in another way"
        )


def _verify_processor(folder: Path, processor: Any) -> None:
    """By their settings: where torchvision is installed, other code than the data's own would resize a probe."""
    from distill_system.models.images import differences, load_processor

    reloaded = load_processor(folder, "model", local_only=True)
    clauses = ["it isn't there"] if reloaded is None else differences(reloaded.to_dict(), processor.to_dict())
    if clauses:
        raise RuntimeError(f"{folder} does not give the image processor back after reloading: {'; '.join(clauses)}")
