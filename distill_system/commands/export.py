"""`distill export RUN/PHASE format=...`: a finished model in another form: one dense file set, compressed where it is sparse, packed where it is quantized, ONNX, or with tensors of torchao."""

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_system.artifacts import Artifact, passport_of_copy
from distill_system.errors import Problem, Refusal, nearest, refuse
from distill_system.files import folder_atomic, read_json, write_json
from distill_system.models.weights import folder_problems, has_tokenizer, max_positions, read_config

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("dense", "sparse", "packed", "onnx", "torchao")
WHOLE = ("packed", "torchao")  # which write config and tokenizer too
USAGE = f"distill export runs/NAME/PHASE format={'|'.join(FORMATS)}"
LONGEST = 32  # tokens of the example that torch and onnxruntime are compared on
TEXTS = ("The quick brown fox, naïve façade & 3.14 -- 你好 😀", "A short one.")


def main(words: list[str]) -> int:
    """Writes the folder and prints what is in it."""
    settings, paths = _apart(words)
    if len(paths) != 1:
        raise refuse("PATH", f"must be one phase of a run, or a model folder: {USAGE}")
    form = _format(settings)
    source = find_model(paths[0])
    target = _target(settings.get("out"), source, form)
    artifact = _artifact(source)

    from distill_system.scheduling.rank import quiet_libraries

    quiet_libraries()
    with folder_atomic(target) as folder:
        if form == "packed":
            lines = _export_packed(source, folder)
        elif form == "onnx":
            lines = _export_onnx(source, folder, artifact.task)
        elif form == "torchao":
            lines = _export_torchao(source, folder)
        else:
            lines = _export_weights(source, folder, form)
        if form not in WHOLE:
            _copy_rest(source, folder, form)
        if artifact.task:
            title = f"{source.parent.name if source.name == 'model' else source.name}, {form}"
            passport_of_copy(artifact, folder, form, title=title, command=shlex.join(["distill", "export", *words]))
    print("\n".join([f"{target}:", *(f"  {line}" for line in lines)]))
    return 0


def _copy_rest(source: Path, folder: Path, form: str) -> None:
    from distill_system.export.packed import copy_rest

    copy_rest(source, folder)
    config = read_json(source / "config.json")
    changed = {name: value for name, value in config.items() if name != "packed"}
    if config.get("pruned"):  # the form that later phases store it in
        changed["pruned"] = form
    if changed == config:
        shutil.copyfile(source / "config.json", folder / "config.json")
    else:
        write_json(folder / "config.json", changed)


def _apart(words: list[str]) -> tuple[dict[str, str], list[str]]:
    settings: dict[str, str] = {}
    paths: list[str] = []
    problems: list[Problem] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            problems.append(Problem(word, "is no option here"))
        elif not equals:
            paths.append(word)
        elif name not in ("format", "out"):
            problems.append(Problem(name, f"is not a setting here{nearest(name, ['format', 'out'])}"))
        elif name in settings:
            problems.append(Problem(name, f"is given twice, as '{settings[name]}' and '{value}'"))
        else:
            settings[name] = value
    if problems:
        raise Refusal(problems)
    return settings, paths


def _format(settings: dict[str, str]) -> str:
    form = settings.get("format")
    if form is None:
        raise refuse("format", f"is not given, must be one of {', '.join(FORMATS)}: {USAGE}")
    if form not in FORMATS:
        raise refuse("format", f"is '{form}'{nearest(form, FORMATS)}, must be one of {', '.join(FORMATS)}")
    if form in ("onnx", "torchao"):
        from distill_system.export import onnx, torchao_export

        missing = onnx.missing_packages() if form == "onnx" else torchao_export.missing_packages()
        if missing:
            text = f"is {form}, which needs {' and '.join(missing)}"
            raise refuse("format", f"{text}; install distill_system with the extra: pip install '.[{form}]'")
    return form


def find_model(text: str) -> Path:
    """The model folder that RUN/PHASE, RUN/PHASE/MEMBER or a model folder names.

    Raises:
        Refusal: there is no model, or its files are damaged.
    """
    path = Path(text).expanduser()
    if path.name in ("", ".."):  # `.` has no name that one beside it could take after
        path = path.resolve()
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise refuse("PATH", f"is '{text}', {_why_no_model(path)}")
    if problems := folder_problems(folder, "PATH", allow_packed=True):
        raise Refusal(Problem("PATH", problem.message) for problem in problems)
    return folder


def _why_no_model(path: Path) -> str:
    inside = _models_below(path)
    if (path / "manifest.json").is_file():
        return (
            f"a run; name one of its phases: {', '.join(str(path / name) for name in inside) or 'none has a model yet'}"
        )
    if inside:
        return f"which holds several models; name one: {', '.join(str(path / name) for name in inside)}"
    manifest = path.parent / "manifest.json"
    try:
        phases = read_json(manifest)["phases"] if manifest.is_file() else {}
    except (ValueError, KeyError, TypeError):  # a damaged manifest: what is on the disk still can be told
        phases = {}
    if path.name in phases:
        state = phases[path.name].get("state", "unknown")
        return f"a phase without a model (its state is {state}): finish it by `distill run` with the run's settings"
    if not path.exists():
        return f"which doesn't exist{nearest(path.name, _models_below(path.parent))}"
    return "which holds no model (no config.json); give a phase of a run, such as runs/NAME/PHASE, or a model folder"


def _models_below(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(child.name for child in path.iterdir() if (child / "model" / "config.json").is_file())


def _target(out: str | None, source: Path, form: str) -> Path:
    """`out`, or a folder beside the model's, named after the format."""
    if out == "":
        raise refuse("out", "is empty, must be a folder to write")
    beside = source.with_name(form) if source.name == "model" else source.with_name(f"{source.name}-{form}")
    target = Path(out).expanduser() if out else beside
    if target.resolve().is_relative_to(source.resolve()):
        raise refuse(
            "out", f"is '{target}', inside the model '{source}', which would change it; name a folder elsewhere"
        )
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise refuse("out", f"is '{target}', which exists already; remove it, or name another: out=FOLDER")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse("out", f"is '{target}', which can't be made ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise refuse("out", f"is '{target}', and nothing may be written into '{target.parent}'")
    return target


def _artifact(source: Path) -> Artifact:
    try:
        return Artifact.read(source)
    except ValueError as error:
        raise refuse("PATH", f"is '{source}', whose passport can't be read: {error}") from error


def _export_weights(source: Path, folder: Path, form: str) -> list[str]:
    """The tensors in another form, read back and compared."""
    import torch
    from transformers import PreTrainedConfig

    from distill_system.export import dense, sparse
    from distill_system.export.packed import grids_of
    from distill_system.models.grids_file import write_grids

    tensors = _tensors(source)
    config = PreTrainedConfig()  # the source's own files come in its place
    lines = []
    if form == "dense":
        files = dense.write_model(folder, tensors.items(), config, None)
    else:
        negative = 0
        for name, tensor in tensors.items():
            if (
                tensor.is_floating_point() and tensor.itemsize > 1
            ):  # the sign of a zero, which a mask leaves behind, would be stored as a value
                negative += int(((tensor == 0) & torch.signbit(tensor)).sum())
                tensors[name] = torch.where(tensor == 0, torch.zeros_like(tensor), tensor)
        blocks = sparse.blocks_of(source) if sparse.is_sparse(source) else {}
        files = sparse.write_sparse(folder, tensors.items(), blocks, config, None)
        layout = sparse.read_layout(folder)
        some = [name for name, stored in layout.items() if stored.kept is not None]
        if not some:
            text = f"is sparse, but no tensor of '{source}' holds zeros enough to be smaller so; take format=dense"
            raise refuse("format", text)
        lines.append(f"{len(some)} of {len(layout)} tensors hold zeros enough to be stored by what they keep")
        if negative:
            lines.append(f"zeros with a minus sign, which is not kept: {negative:,}")
    write_grids(folder, grids_of(source))
    _compare(folder, tensors)
    size, whole = sum(path.stat().st_size for path in files), sum(tensor.nbytes for tensor in tensors.values())
    return [f"{size:,} bytes of weights, {size / max(1, whole):.3f} of the {whole:,} that they take in memory", *lines]


def _export_packed(source: Path, folder: Path) -> list[str]:
    """The weights as codes, read back and compared."""
    import torch

    from distill_system.export.packed import grids_of, pack

    try:
        report, grids = pack(source, folder), grids_of(source)
    except ValueError as error:
        raise refuse("PATH", f"is '{source}', which can't be packed: {error}") from error
    tensors = _tensors(source)
    for name in grids:
        tensors[name] = torch.where(tensors[name] == 0, torch.zeros_like(tensors[name]), tensors[name])
    _compare(folder, tensors)
    lines = [
        f"{report.bytes:,} bytes of weights, {report.ratio:.4f} (1/{1 / report.ratio:.1f}) of the {4 * report.parameters:,} of float32",
        f"{len(grids)} of {len(tensors)} tensors are packed",
        "; ".join(f"{kind} {size:,}" for kind, size in report.by_kind.items() if size),
    ]
    if report.negative_zeros:
        lines.append(f"zeros with a minus sign, which is not kept: {report.negative_zeros:,}")
    return lines


def _compare(folder: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Raises: RuntimeError: a folder doesn't hold these tensors, to the bit."""
    import torch

    again = _tensors(folder)
    for name, tensor in tensors.items():
        if not torch.equal(again[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)):
            raise RuntimeError(f"{folder} does not give {name} back after reloading")


def _tensors(folder: Path) -> "dict[str, Tensor]":
    """What the weight files of a model folder hold.

    Raises:
        Refusal: they are damaged.
    """
    from distill_system.export.packed import stored_tensors

    try:
        return dict(stored_tensors(folder))
    except ValueError as error:
        raise refuse("PATH", f"is '{folder}', whose weights can't be read: {error}") from error


def _export_onnx(source: Path, folder: Path, task: str | None) -> list[str]:
    from distill_system.export.dense import load
    from distill_system.export.integers import lines_of
    from distill_system.export.onnx import Exported, export_onnx
    from distill_system.export.onnx_qdq import export_qdq
    from distill_system.models.grids_file import read_grids
    from distill_system.models.reading import is_packed
    from distill_system.models.tokenizers import first_sentence

    if is_packed(source):
        text = "a packed model, of which onnx can't be made; take the model it was packed from, or its format=dense"
        raise refuse("PATH", f"is '{source}', {text}")
    try:
        model, grids = load(source, task), read_grids(source)
    except (RuntimeError, ValueError) as error:
        raise refuse("PATH", f"is '{source}', which can't be loaded: {first_sentence(error)}") from error
    path, inputs = folder / "model.onnx", example(source, model.config)
    exported: Exported
    try:
        if grids:
            quantized = export_qdq(model, grids, path, inputs)
            exported, lines = quantized, lines_of(quantized.codes, quantized.floats)
        else:
            exported, lines = export_onnx(model, path, inputs), []
    except ValueError as error:
        raise refuse("PATH", f"is '{source}': {error}") from error
    size = sum(path.stat().st_size for path in exported.files)
    return [
        f"{size:,} bytes in {', '.join(path.name for path in exported.files)}; inputs {', '.join(exported.inputs)}",
        f"onnxruntime gives torch's logits within {exported.difference:.1e}, for several numbers of rows and lengths",
        *lines,
    ]


def _export_torchao(source: Path, folder: Path) -> list[str]:
    from distill_system.export.torchao_export import write_torchao

    try:
        return write_torchao(source, folder)
    except ValueError as error:
        raise refuse("PATH", f"is '{source}', of which torchao's can't be made: {error}") from error


def example(source: Path, config: Any) -> "dict[str, Tensor]":
    """Inputs that the model of a folder takes: two texts, two rows of tokens where there is no tokenizer, or two pictures of noise."""
    import torch

    from distill_system.models.images import sees_pictures
    from distill_system.models.tokenizers import load_tokenizer

    generator = torch.Generator().manual_seed(0)
    if sees_pictures(config):
        side = getattr(config, "image_size", None) or 224
        height, width = (side, side) if isinstance(side, int) else side
        return {"pixel_values": torch.randn(2, getattr(config, "num_channels", 3), height, width, generator=generator)}
    length = min(LONGEST, max_positions(read_config(source) or {}) or LONGEST)
    if has_tokenizer(source):
        tokenizer = load_tokenizer(source, "PATH", local_only=True)
        return dict(tokenizer(list(TEXTS), padding=True, truncation=True, max_length=length, return_tensors="pt"))
    ids_BT = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
