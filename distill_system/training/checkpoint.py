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
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill_system import distributed
from distill_system.files import TEMPORARY, digest_value, read_json, remove_leftovers, sync_folder, write_json
from distill_system.training.engine import WEIGHT, Engine, Piece

VERSION = 1
NAME = re.compile(r"step_(\d{8})")


class Damaged(RuntimeError):
    """A checkpoint that can't be used: truncated, changed, of another phase or another version."""


def checksum(path: Path) -> int:
    """CRC-32 of a file: it is to find accidents, and costs little beside the writing."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def save(folder: Path, engine: Engine, state: dict[str, Any], *, weights_only: bool = False) -> None:
    """Writes a checkpoint to `folder`, all ranks together. A failure on one rank is raised on all, and leaves what was there before.

    Args:
        folder: the final name; replaced if it exists.
        state: what JSON can hold: step, position, best metric, identity.
        weights_only: no optimizer moments (the best weights so far).

    Raises:
        OSError: on every rank, when one couldn't write.
    """
    temporary = folder.parent / f"{TEMPORARY}{folder.name}"
    distributed.main_only(lambda: _make(temporary))
    failure: OSError | None = None
    report: dict[str, Any] = {}
    try:
        report = _write_rank(temporary, engine, weights_only=weights_only)
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


def _write_rank(folder: Path, engine: Engine, *, weights_only: bool) -> dict[str, Any]:
    rank, place, world = distributed.rank(), distributed.data_rank(), distributed.data_world()
    mine: dict[str, Tensor] = {}
    shared = 0
    for piece in engine.pieces():
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
    from distill_system.training.engine import named_state

    return {name: list(getattr(t, "ds_shape", t.shape)) for name, t in named_state(engine.objective)}


class Store:
    """Reads a checkpoint: any run of elements of any tensor, from whichever files hold them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = self._verified_state()
        self.places: dict[tuple[str, str], list[tuple[int, int, str, str]]] = {}
        self._files: dict[str, Any] = {}
        for file in self.state["files"]:
            handle = self._files[file] = safe_open(folder / file, framework="pt")
            for key in handle.keys():  # noqa: SIM118 (a safetensors handle isn't a dict)
                name, part, offset = key.rsplit("|", 2)
                count = handle.get_slice(key).get_shape()[0]
                self.places.setdefault((name, part), []).append((int(offset), count, file, key))

    def _verified_state(self) -> dict[str, Any]:
        try:
            state = read_json(self.folder / "state.json")
            if state["version"] != VERSION:
                raise Damaged(f"has version {state['version']}, this program reads {VERSION}")
            if state.pop("digest") != digest_value(state):
                raise Damaged("has a state.json that was changed")
            for number, (name, entry) in enumerate(state["files"].items()):
                path = self.folder / name
                if not path.is_file():
                    raise Damaged(f"lacks {name}")
                # Ranks share the reading, and then what they found (`opened`).
                mine = number % distributed.world() == distributed.rank()
                if path.stat().st_size != entry["bytes"] or (mine and checksum(path) != entry["crc32"]):
                    raise Damaged(f"has a {name} that is truncated or was changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"has a state.json that can't be read ({error})") from error
        return state

    def fill(self, piece: Piece) -> None:
        """Copies the piece's elements out of the files, into the piece's own memory.

        Raises:
            Damaged: elements are missing.
        """
        start, stop = piece.offset, piece.offset + piece.values.numel()
        filled = 0
        for offset, count, file, key in self.places.get((piece.name, piece.part), []):
            low, high = max(start, offset), min(stop, offset + count)
            if low < high:
                piece.values[low - start : high - start].copy_(
                    self._files[file].get_slice(key)[low - offset : high - offset]
                )
                filled += high - low
        if filled != piece.values.numel():
            raise Damaged(f"holds {filled} of {piece.values.numel()} elements of {piece.name} ({piece.part})")


def load(store: Store, engine: Engine, *, weights_only: bool = False, role: str | None = None) -> None:
    """Brings an engine to a checkpoint's state, whatever strategy and number of ranks wrote it.

    Args:
        store: where the state lies.
        engine: takes it.
        weights_only: leaves the optimizer as it is.
        role: of this one only; it need not live on this rank.
    """
    shapes = _shapes(engine)
    stored = store.state["shapes"]
    if distributed.division() is not None:  # the other members' are none of this rank's business
        stored = {name: shape for name, shape in stored.items() if name in shapes}
    if shapes != stored:
        different = sorted(set(map(str, shapes.items())) ^ set(map(str, stored.items())))
        raise Damaged(f"is of another model (first difference: {different[0]})")
    scalars = engine.scalars()
    with torch.no_grad():
        for piece in engine.pieces():
            if (piece.part == WEIGHT or not weights_only) and (
                role is None or engine.objective.role_of(piece.name) == role
            ):
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
