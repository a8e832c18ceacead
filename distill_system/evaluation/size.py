"""How big a saved model is: bytes on disk, parameters, and how many of them are not zero."""

from pathlib import Path

import torch
from safetensors import safe_open

from distill_system.errors import refuse
from distill_system.files import folder_size, read_json
from distill_system.models.packed_file import read_stored
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.reading import is_packed, is_sparse
from distill_system.models.sparse_file import read_tensors
from distill_system.models.weights import PACKED, SPARSE

PIECE = 2**24  # elements that are read at once


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` would read from `folder`.

    Raises:
        Refusal: there is none.
    """
    for own in (SPARSE, PACKED):
        if (folder / own).is_file():
            return [folder / own]
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        return sorted({folder / name for name in read_json(index)["weight_map"].values()})
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise refuse(
            "path", f"is '{folder}', a folder without *.safetensors; name the `model` folder of a finished phase"
        )
    return files


def size(folder: Path | str) -> dict[str, int]:
    """Bytes of the weight files and of the whole folder (`os.stat`), floating-point parameters, and those that are not zero.

    Counted from the files, a piece of a tensor at a time: a tied weight counts once, and the model is never held whole.
    """
    folder = Path(folder)
    files = weight_files(folder)
    if is_sparse(folder):
        parameters, nonzeros = sparse_counts(folder)
        return sizes(folder, files, parameters, nonzeros)
    if is_packed(folder):
        return sizes(folder, files, *packed_counts(folder))
    parameters = nonzeros = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                shape = part.get_shape()
                if not part.get_dtype().startswith(("F", "BF")):
                    continue  # buffers of whole numbers, such as position ids
                if not shape:
                    parameters, nonzeros = parameters + 1, nonzeros + int(torch.count_nonzero(file.get_tensor(name)))
                    continue
                width = max(1, torch.Size(shape[1:]).numel())
                for start in range(0, shape[0], max(1, PIECE // width)):
                    tensor = part[start : start + max(1, PIECE // width)]
                    parameters += tensor.numel()
                    nonzeros += int(torch.count_nonzero(tensor.float() if tensor.itemsize == 1 else tensor))
    return sizes(folder, files, parameters, nonzeros)


def sparse_counts(folder: Path) -> tuple[int, int]:
    """(parameters, those that aren't zero) of a folder that holds positions and values."""
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if tensor.is_floating_point()}
    return sum(tensor.numel() for tensor in tensors.values()), sum(
        int(tensor.count_nonzero()) for tensor in tensors.values()
    )


def packed_counts(folder: Path) -> tuple[int, int]:
    """(parameters, those that aren't zero) of a folder that holds codes; a piece of a matrix has its values at a time."""
    parameters = nonzeros = 0
    for stored in read_stored(folder).values():
        if isinstance(stored, PackedMatrix):
            parameters += stored.outputs * stored.inputs
            rows = max(1, PIECE // stored.inputs)
            for first in range(0, stored.outputs, rows):
                nonzeros += int(torch.count_nonzero(stored.values(slice(first, first + rows))))
        elif stored.is_floating_point():
            parameters, nonzeros = parameters + stored.numel(), nonzeros + int(torch.count_nonzero(stored))
    return parameters, nonzeros


def sizes(folder: Path, files: list[Path], parameters: int, nonzeros: int) -> dict[str, int]:
    return {
        "size_bytes": sum(path.stat().st_size for path in files),
        "folder_bytes": folder_size(folder),
        "parameters": parameters,
        "nonzeros": nonzeros,
    }
