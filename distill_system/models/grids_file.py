"""The grids of a plain model folder whose weights lie on them: `grids.safetensors`, beside the weights, which anybody reads without it.

It holds `NAME:scale` and `NAME:zero` (in uint8 where it is a code), or `NAME:levels`, of each quantized tensor NAME; its layout says of each the number of levels, which weights share
a grid, and which axis of the stored matrix its inputs lie on.

Shapes: G groups; L levels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_system.models.checked_file import Kind, damaged, read_checked, write_checked
from distill_system.models.grid import MOST_LEVELS, Granularity, Grid, OnGrid
from distill_system.models.packing import MOST
from distill_system.models.weights import GRIDS

__all__ = ["GRIDS", "check_groups", "grid_tensors", "layout_of", "on_grid", "parts_of", "read_grids", "write_grids"]

KIND = Kind("distill_grids", 1, "file of grids")
KINDS = ("tensor", "row", "group")


def write_grids(folder: Path | str, grids: Mapping[str, OnGrid]) -> None:
    """Writes the grids of a model's tensors into its folder; without any, takes an older file away.

    Raises:
        ValueError: a name holds a colon.
    """
    path = Path(folder) / GRIDS
    if not grids:
        path.unlink(missing_ok=True)
        return
    pieces: dict[str, Tensor] = {}
    layout = {}
    for name, on in grids.items():
        if ":" in name:
            raise ValueError(f"{name} can't be stored: a colon separates a tensor's name from its parts")
        pieces |= grid_tensors(name, on.grid)
        layout[name] = layout_of(on)
    write_checked(path, KIND, pieces, layout)


def read_grids(folder: Path | str) -> dict[str, OnGrid]:
    """The grid of each quantized tensor, by name; empty where the folder has no such file.

    Raises:
        ValueError: the file is damaged, or a newer version wrote it.
    """
    path = Path(folder) / GRIDS
    if not path.is_file():
        return {}
    head, pieces = read_checked(path, KIND)
    grids = {}
    for name, told in head.layout.items():
        try:
            grids[name] = on_grid(told, {part: pieces.pop(f"{name}:{part}") for part in parts_of(name, pieces)})
        except ValueError as error:
            raise damaged(path, f"{name} {error}") from error
    if pieces:
        raise damaged(path, f"its tensors are not those of its layout: {min(pieces)}")
    return grids


def grid_tensors(name: str, grid: Grid) -> dict[str, Tensor]:
    """A grid's tensors as a file holds them; copies, since grids may share one. Zeros that are codes take a byte each."""
    tensors = {part: tensor.detach().cpu().contiguous().clone() for part, tensor in grid.tensors().items()}
    if "zero" in tensors and _are_codes(tensors["zero"]):
        tensors["zero"] = tensors["zero"].to(torch.uint8)
    return {f"{name}:{part}": tensor for part, tensor in tensors.items()}


def _are_codes(zero_G1: Tensor) -> bool:
    """Whether they can be told as such; -0.0 gives the same values as 0.0."""
    return bool(((zero_G1 == zero_G1.round()) & (zero_G1 >= 0) & (zero_G1 < MOST)).all())


def parts_of(name: str, pieces: Mapping[str, Any]) -> list[str]:
    """Which tensors of a grid a file holds."""
    return [part for part in ("scale", "zero", "levels") if f"{name}:{part}" in pieces]


def layout_of(on: OnGrid) -> dict[str, Any]:
    """What a file says of a grid beside its tensors."""
    told: dict[str, Any] = {"count": on.grid.count, "granularity": on.granularity.kind, "input_axis": on.input_axis}
    return told | ({"size": on.granularity.size} if on.granularity.kind == "group" else {})


def on_grid(told: Any, tensors: Mapping[str, Tensor]) -> OnGrid:
    """The inverse of `layout_of` and `grid_tensors`, checked: a checksum proves that a file is as it was written, not that an honest writer wrote it.

    Raises:
        ValueError: it is no grid; the message is a clause.
    """
    keys = {"count", "granularity", "input_axis"}
    if not isinstance(told, dict) or told.get("granularity") not in KINDS:
        raise ValueError(f"has a layout that says nothing of its granularity: {told}")
    keys |= {"size"} if told["granularity"] == "group" else set()
    numbers = {key: value for key, value in told.items() if key != "granularity"}
    if told.keys() != keys or any(type(value) is not int for value in numbers.values()):
        raise ValueError(f"has a layout with other entries than {sorted(keys)}: {told}")
    count, size = numbers["count"], numbers.get("size", Granularity.size)
    if not 2 <= count <= MOST or size < 1 or numbers["input_axis"] not in (0, 1):
        raise ValueError(f"has a layout with impossible numbers: {told}")
    if "scale" in tensors and "zero" in tensors and tensors["zero"].dtype == torch.uint8:
        tensors = {**tensors, "zero": tensors["zero"].to(tensors["scale"].dtype)}
    _check_tensors(count, tensors)
    return OnGrid(Grid.of(count, tensors), Granularity(told["granularity"], size), numbers["input_axis"])


def _check_tensors(count: int, tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point or next(iter(dtypes)).itemsize < 2:
        raise ValueError(
            f"has a grid of {', '.join(map(str, dtypes)) or 'nothing'}, must be of one floating-point type"
        )
    if shapes.keys() == {"levels"}:
        groups, *levels = shapes["levels"] or (0,)
        sound = levels == [count] and groups >= 1 and count <= MOST_LEVELS
    else:
        groups = shapes["scale"][0] if shapes.get("scale") else 0
        sound = groups >= 1 and shapes["scale"] == (groups, 1) and shapes.get("zero") in ((groups, 1), (1, 1))
        sound = sound and "levels" not in shapes
    if not sound:
        raise ValueError(f"has a grid of impossible shapes: { {name: list(shape) for name, shape in shapes.items()} }")


def check_groups(on: OnGrid, outputs: int, inputs: int) -> None:
    """Raises: ValueError: a grid has not the groups of a matrix; the message is a clause."""
    if min(outputs, inputs) < 1:
        raise ValueError(f"has {outputs} rows of {inputs}")
    try:
        groups = on.granularity.shape(outputs, inputs)[0]
    except ValueError as error:
        raise ValueError(f"has groups whose size {error}") from error
    main = on.grid.levels_GL if on.grid.levels_GL is not None else on.grid.scale_G1
    if main is None or len(main) != groups:
        raise ValueError(f"has {0 if main is None else len(main)} grids for {groups} groups")
