"""Models that take pictures: told by their config, checked against the data's pictures, and the image processor that lies beside their weights.

No torch is imported: an image processor is loaded inside a function.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_system.errors import Problem, refuse
from distill_system.models.architectures import IMAGE_MAPPING, TASK_MAPPINGS, known_for
from distill_system.models.tokenizers import first_sentence, load_tokenizer
from distill_system.models.weights import Unsound, first_of, read_json_object

HEAD = "ForImageClassification"
PROCESSOR = "preprocessor_config.json"
STEPS = (("do_normalize", True), ("do_rescale", True), ("rescale_factor", 1 / 255))
BATCH_NORM = frozenset({"resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet", "levit", "mobilevit"})


def sees_pictures(config: Any) -> bool:
    """Whether a config (of transformers, or the content of config.json) is of a model that classifies pictures."""
    get = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    if any(HEAD in name for name in get("architectures") or []):
        return True
    architecture = str(get("model_type"))
    texts = known_for(TASK_MAPPINGS["classification"]), known_for(TASK_MAPPINGS["causal_lm"])
    return architecture in known_for(IMAGE_MAPPING) and not any(architecture in names for names in texts)


def input_problems(config: Mapping[str, Any], key: str, *, size: int | None, channels: int | None) -> list[Problem]:
    """Whether a model takes what the data gives.

    Args:
        config: the content of config.json, or a recipe's `config()`.
        key: of the model in the config; problems name settings below it.
        size: pixels a side of the data's pictures; None: the data is text.
        channels: of the data's pictures.
    """
    kind = config.get("model_type")
    if size is None or channels is None:
        if not sees_pictures(config):
            return []
        return [Problem(key, f"is a {kind}, which takes pictures, and the data is text; take data=image_folder, say")]
    if not sees_pictures(config):
        return [
            Problem(key, f"is a {kind}, which takes no pictures, and the data is pictures; take models=tiny_vit, say")
        ]
    problems = []
    taken = first_of(dict(config), "num_channels")
    if taken is not None and taken != channels:
        text = f"is {taken}, data.channels is {channels}; they must be the same"
        problems.append(Problem(f"{key}.num_channels", text))
    side, patch = (first_of(dict(config), name) for name in ("image_size", "patch_size"))
    if not isinstance(config.get("depths"), list | tuple):  # it has a position for each patch
        if side is not None and side != size:
            text = f"is {side}, data.size is {size}; they must be the same: the model has a position for each patch"
            problems.append(Problem(f"{key}.image_size", text))
        if patch is not None and patch > size:
            problems.append(Problem(f"{key}.patch_size", f"is {patch}, must be at most data.size={size}"))
    elif patch is not None:
        stages = len(config["depths"])
        if size // patch >> (stages - 1) < 1:
            text = f"is {patch}: {stages} stages, each of which halves the sides, leave nothing of {size} pixels"
            problems.append(Problem(f"{key}.patch_size", f"{text}; take a smaller patch or fewer stages"))
    return problems


def load_reader(
    name: str | Path, config: Any, key: str, *, revision: str | None = None, local_only: bool = False
) -> Any:
    """What prepares a model's inputs: its tokenizer, or its image processor (None where it lies beside no such thing).

    Args:
        name: folder or hub name.
        config: of the model, as `sees_pictures` takes it.
        key: for refusals.
        revision: on the hub.
        local_only: never asks the hub.
    """
    if not sees_pictures(config):
        return load_tokenizer(name, key, revision=revision, local_only=local_only)
    return load_processor(name, key, revision=revision, local_only=local_only)


def load_processor(name: str | Path, key: str, *, revision: str | None = None, local_only: bool = False) -> Any:
    """The image processor of a folder or hub name; None where there is none.

    Raises:
        Refusal: there is one that can't be read.
    """
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    if Path(name).is_dir() and not (Path(name) / PROCESSOR).is_file():
        return None
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would advise to install torchvision
    try:
        return AutoImageProcessor.from_pretrained(
            str(name), revision=revision or "main", trust_remote_code=False, local_files_only=local_only
        )
    except OSError as error:
        if PROCESSOR in str(error) and "not appear to have" in str(error):
            return None
        raise refuse(
            key, f"is {str(name)!r}, whose image processor can't be loaded ({first_sentence(error)})"
        ) from error
    except Exception as error:  # the library raises whatever the file's parser raises
        raise refuse(
            key, f"is {str(name)!r}, whose image processor can't be loaded ({first_sentence(error)})"
        ) from error
    finally:
        logging.set_verbosity(level)


def read_processor(folder: Path) -> dict[str, Any] | None:
    """The settings of a folder's image processor, without the library that runs it; None where there is none."""
    try:
        return read_json_object(folder / PROCESSOR)
    except (OSError, Unsound):
        return None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two image processors' settings (`to_dict`) give other pixels, as clauses: `image_mean is [0.5], not [0.4]`."""
    clauses = []
    for name, default in STEPS:
        one, other = found.get(name, default), wanted.get(name, default)
        if one != other and not (name == "rescale_factor" and abs(one - other) < 1e-6):
            clauses.append(f"{name} is {one}, not {other}")
    for name in ("image_mean", "image_std"):
        one, other = (_channels(settings.get(name)) for settings in (found, wanted))
        if len(one) != len(other) or any(abs(a - b) > 1e-4 for a, b in zip(one, other, strict=True)):
            clauses.append(f"{name} is {one}, not {other}")
    side, other_side = final_size(found), final_size(wanted)
    if side != other_side:
        clauses.append(f"its pictures have {side} pixels a side, not {other_side}")
    return clauses


def _channels(values: Any) -> list[float]:
    return [float(value) for value in values] if isinstance(values, list | tuple) else [float(values or 0)]


def final_size(settings: Mapping[str, Any]) -> int | None:
    """Pixels a side that an image processor's pictures have; None where its settings don't say."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if size else None


def check_processors(one: Any, other: Any, key: str) -> list[Problem]:
    """Whether a teacher sees the pictures that the student sees. A model without a processor takes what it is given.

    Args:
        one: the teacher's image processor, or None.
        other: the student's.
        key: the config key that problems name.
    """
    if one is None or other is None:
        return []
    clauses = differences(one.to_dict(), other.to_dict())
    if not clauses:
        return []
    text = f"was trained on pictures prepared in another way ({'; '.join(clauses)}); set {data_fix(one.to_dict())}"
    return [Problem(key, text)]


def data_fix(settings: Mapping[str, Any]) -> str:
    """The overrides that make the data prepare pictures as an image processor does."""
    fix: dict[str, Any] = {"size": final_size(settings), "mean": _channels(settings.get("image_mean"))}
    fix["std"] = _channels(settings.get("image_std"))
    return " ".join(f"data.{name}={str(value).replace(' ', '')}" for name, value in fix.items())


def warnings_of(config: Any) -> list[str]:
    """What a user should know of an architecture before it is trained."""
    kind = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    if kind not in BATCH_NORM:
        return []
    text = f"a {kind} has batch normalisation, whose statistics are those of each rank's own rows"
    return [f"{text}: its figures depend on the number of ranks and on accumulation; models=small_cnn has none"]
