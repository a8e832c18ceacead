"""Resume points in one form by parameter name: any strategy on any number of ranks can read what any other wrote.

A checkpoint is a folder `step_00000120` with a `rank_00000.safetensors` per rank, each holding the pieces its rank owns (keys
`name|part|offset`), and `state.json` with everything else. Nothing is gathered to save, and a reader takes only the elements it needs. The folder is
written under a temporary name and renamed by rank 0 when every rank is done; sizes and checksums stand in `state.json`.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill_system import distributed
from distill_system.files import TEMPORARY, digest_value, read_json, remove_leftovers, sync_folder, write_json
from distill_system.training.engine import WEIGHT, Engine, Piece, named_state
from distill_system.training.store import VERSION, Damaged, Origin, Store, checksum

NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is read into a model of another shape.

    Attributes:
        origin: of a tensor by its name in the objective; None: it stays as it was built.
        instead: another checkpoint's folder to take the weights from (the last good round).
    """

    origin: Callable[[str], Origin | None] | None = None
    instead: Path | None = None


def save(
    folder: Path,
    engine: Engine,
    state: dict[str, Any],
    *,
    weights_only: bool = False,
    extra: Iterable[Piece] = (),
) -> None:
    """Writes a checkpoint to `folder`, all ranks together. A failure on one rank is raised on all, and leaves what was there before.

    Args:
        folder: the final name; replaced if it exists.
        state: what JSON can hold: step, position, best metric, identity.
        weights_only: no optimizer moments (the best weights so far).
        extra: state that isn't the engine's, in the same form.

    Raises:
        OSError: on every rank, when one couldn't write.
    """
    temporary = folder.parent / f"{TEMPORARY}{folder.name}"
    distributed.main_only(lambda: _make(temporary))
    failure: OSError | None = None
    report: dict[str, Any] = {}
    try:
        report = _write_rank(temporary, chain(engine.pieces(), extra), weights_only=weights_only)
    except OSError as error:
        failure = error
    except SafetensorError as error:  # its own class around the system's error
        failure = OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error))
    told = distributed.everyone((report, str(failure) if failure else None, getattr(failure, "errno", None)))
    failures = [(message, number) for _, message, number in told if message]
    if failures:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        distributed.barrier()
        raise OSError(failures[0][1], f"checkpoint could not be written: {failures[0][0]}")
    shapes = {name: shape for own in distributed.everyone(_shapes(engine)) for name, shape in own.items()}
    scalars = engine.scalars()
    files = {name: entry for ranks_report, _, _ in told for name, entry in ranks_report.items()}
    own = {"version": VERSION, "world": distributed.world(), "scalars": scalars, "shapes": shapes, "files": files}
    distributed.main_only(lambda: _publish(temporary, folder, own | state))


def _make(temporary: Path) -> None:
    remove_leftovers(temporary.parent)
    temporary.mkdir(parents=True)


def _publish(temporary: Path, folder: Path, document: dict[str, Any]) -> None:
    """Gives the finished folder its name."""
    try:
        write_json(temporary / "state.json", document | {"digest": digest_value(document)})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(temporary)
    if folder.exists():
        aside = folder.parent / f"{TEMPORARY}old"
        os.replace(folder, aside)
        os.replace(temporary, folder)
        shutil.rmtree(aside)
    else:
        os.replace(temporary, folder)
    sync_folder(folder.parent)


def _write_rank(folder: Path, pieces: Iterable[Piece], *, weights_only: bool) -> dict[str, Any]:
    rank, place, world = distributed.rank(), distributed.data_rank(), distributed.data_world()
    mine: dict[str, Tensor] = {}
    shared = 0
    for piece in pieces:
        if weights_only and piece.part != WEIGHT:
            continue
        if piece.replicated:  # dealt out: each rank writes its share of what all hold
            shared += 1
            if shared % world != place:
                continue
        if piece.values.numel():
            mine[f"{piece.name}|{piece.part}|{piece.offset}"] = piece.values.detach().cpu()
    path = folder / f"rank_{rank:05d}.safetensors"
    save_file(_apart(mine), path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {path.name: {"bytes": path.stat().st_size, "crc32": checksum(path)}}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses views of one storage (ZeRO's flat buffers), so those are copied, one file's worth at a time."""
    storages: dict[int, int] = {}
    for tensor in tensors.values():
        pointer = tensor.untyped_storage().data_ptr()
        storages[pointer] = storages.get(pointer, 0) + 1
    return {
        key: tensor.clone()
        if storages[tensor.untyped_storage().data_ptr()] > 1 or not _fills_storage(tensor)
        else tensor
        for key, tensor in tensors.items()
    }


def _fills_storage(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _shapes(engine: Engine) -> dict[str, list[int]]:
    return {name: list(getattr(t, "ds_shape", t.shape)) for name, t in named_state(engine.objective)}


def load(
    store: Store,
    engine: Engine,
    *,
    weights_only: bool = False,
    role: str | None = None,
    extra: Iterable[Piece] = (),
    loading: Loading | None = None,
    only: Callable[[str], bool] = lambda name: True,
) -> None:
    """Brings an engine to a checkpoint's state, whatever strategy and number of ranks wrote it.

    Args:
        store: where the state lies.
        engine: takes it.
        weights_only: leaves the optimizer as it is.
        role: of this one only; it need not live on this rank.
        extra: state that isn't the engine's; what the checkpoint doesn't hold of it stays as it is.
        loading: how it is read into a model of another shape.
        only: names of the tensors that are taken.
    """
    if loading is not None and loading.instead is not None:
        store, weights_only = Store(loading.instead), True
    origin = loading.origin if loading is not None else None
    shapes = {name: shape for name, shape in _shapes(engine).items() if origin is None}
    stored = store.state["shapes"] if origin is None else {}
    if distributed.division() is not None:  # the other members' are none of this rank's business
        stored = {name: shape for name, shape in stored.items() if name in shapes}
    if shapes != stored:
        different = sorted(set(map(str, shapes.items())) ^ set(map(str, stored.items())))
        raise Damaged(f"is of another model (first difference: {different[0]})")
    scalars = engine.scalars()
    with torch.no_grad():
        for piece in engine.pieces():
            if (
                (piece.part == WEIGHT or not weights_only)
                and (role is None or engine.objective.role_of(piece.name) == role)
                and only(piece.name)
            ):
                if origin is None:
                    store.fill(piece)
                elif (source := origin(piece.name)) is not None and source.name in store.state["shapes"]:
                    store.fill_from(piece, source)
                elif piece.name.startswith("roles."):
                    raise Damaged(f"doesn't know where {piece.name} was before the cut")
        for piece in extra:
            if origin is None and (piece.name, piece.part) in store.places and only(piece.name):
                store.fill(piece)
    engine.restore(scalars if weights_only else store.state["scalars"])


def existing(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of the finished checkpoints below `folder`, the newest first."""
    found = []
    if folder.is_dir():
        found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    yield from sorted(found, reverse=True)


def opened(folder: Path, identity: str) -> tuple[Store | None, str]:
    """The checkpoint in `folder` if every rank finds it whole and of this `identity`; else None and what is wrong."""
    store, fault = None, ""
    try:
        store = Store(folder)
        if store.state["identity"] != identity:
            raise Damaged("is of another phase or of other settings")
    except Damaged as error:
        fault = str(error)
    fault = next((found for found in distributed.everyone(fault) if found), "")
    return (None if fault else store), fault


def newest(folder: Path, identity: str) -> tuple[Store | None, list[str]]:
    """The newest checkpoint that is whole and belongs to this phase (`identity`), and what was wrong with those passed over."""
    complaints: list[str] = []
    for path in distributed.from_main([path for _, path in existing(folder)]):
        store, fault = opened(path, identity)
        if store is not None:
            return store, [f"{complaint}; training went on from {path.name}" for complaint in complaints]
        complaints.append(f"checkpoint {path.name} {fault}")
    return None, [f"{complaint}; training began anew" for complaint in complaints]


def prune(folder: Path, keep: int, step: int) -> None:
    """Removes all but the newest `keep` up to `step`, which has just been written whole: a good one always stays.

    What lies behind `step` was passed over at the resume (damaged, or of other settings) and would otherwise push out the good ones.
    """
    kept = 0
    for number, path in existing(folder):
        kept += number <= step
        if number > step or kept > keep:
            shutil.rmtree(path, ignore_errors=True)


def prune_best(folder: Path) -> None:
    """Removes best weights that no kept checkpoint speaks of."""
    spoken_of = set()
    for _, path in existing(folder):
        with contextlib.suppress(OSError, ValueError, KeyError):
            spoken_of |= set(read_json(path / "state.json")["progress"]["best_step"].values())
    for path in folder.glob("best_*"):
        if int(path.name.removeprefix("best_")) not in spoken_of:
            shutil.rmtree(path, ignore_errors=True)
