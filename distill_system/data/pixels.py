"""Pictures as memory-mapped arrays of bytes, cached by the content of the source and the settings that decide its pixels.

    <cache>/pixels/<digest>/{summary.json, <split>/{pixels,labels,row_offsets}.npy, <split>/rows.jsonl}

A store answers what a token store answers (labels, lengths, single rows), so that order, evaluation and reports needn't know which it is. Pictures
have no length: each counts 1. Normalisation and augmentation aren't stored: they are done to a batch.

Shapes: N rows of a split, B of a batch, C channels, H rows and W columns of pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_system.data.augment import Augmentation, augment
from distill_system.data.labels import sentences
from distill_system.data.pictures import Pictures, PictureSource, Preprocessing, Unreadable, thumbnail
from distill_system.data.tokens import IGNORE, Stores
from distill_system.errors import refuse
from distill_system.files import digest_value, folder_atomic, read_json, write_json
from distill_system.packages import cache_folder, locked, remove_unfinished

FORMAT = 1  # raise it when the same input would give other arrays


class PixelStore:
    """One split of pictures. Arrays are read from disk when they are touched.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N], -100 where unknown.
        lengths: int64 [N], all 1.
        num_bytes: int64 [N], all 0: there is no text.
        type_ids: None.
        preprocessing: how a batch is normalised.
        augmentation: what is done to a batch that is trained on; None: nothing.
    """

    type_ids = None

    def __init__(
        self, folder: Path, task: str, preprocessing: Preprocessing, augmentation: Augmentation | None
    ) -> None:
        self.folder, self.task = folder, task
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.pixels = np.asarray(np.load(folder / "pixels.npy", mmap_mode="r"))
        self.labels = np.load(folder / "labels.npy")
        self.lengths = np.ones(len(self.labels), dtype=np.int64)
        self.num_bytes = np.zeros(len(self.labels), dtype=np.int64)
        self._row_offsets = np.load(folder / "row_offsets.npy")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> np.ndarray:
        """Rows [N] whose label is known."""
        return self.labels != IGNORE

    def row(self, i: int) -> dict[str, Any]:
        """`id` and `text` (which picture it is) of row `i`, and `true_label` where noise has changed the label."""
        with open(self.folder / "rows.jsonl", "rb") as file:
            file.seek(int(self._row_offsets[i]))
            return json.loads(file.readline())

    def text(self, i: int) -> str:
        """Which picture row `i` is, for a report."""
        return self.row(i)["text"]

    def picture(self, i: int) -> str:
        """Row `i` as a small PNG in a data URI, for a report."""
        return thumbnail(self.pixels[i])

    @property
    def ids(self) -> list[str]:
        """The id of every row; reads the whole file."""
        with open(self.folder / "rows.jsonl", "rb") as file:
            return [json.loads(line)["id"] for line in file]

    def batch(self, rows_B: Sequence[int] | np.ndarray, view: tuple[int, int] | None = None) -> np.ndarray:
        """float32 [B, C, H, W] of the rows; `view` (seed, epoch) says which view of an augmented split to take, None takes the pictures as they are."""
        pixels_BCHW = self.pixels[np.asarray(rows_B)]
        if view is not None and self.augmentation is not None:
            fill_C = [round(255 * mean) for mean in self.preprocessing.mean]
            seed, epoch = view
            pixels_BCHW = augment(
                pixels_BCHW, rows_B, settings=self.augmentation, seed=seed, epoch=epoch, fill_C=fill_C
            )
        return self.preprocessing.normalise(pixels_BCHW)


class PixelStores(Stores):
    """The stores of a data set of pictures by split; see `Stores`.

    Attributes:
        processor: the image processor that is saved beside a model.
    """

    def __init__(self, folder: Path, source: PictureSource) -> None:
        meta = read_json(folder / "summary.json")
        dict.__init__(self)
        preprocessing = source.preprocessing()
        for split in meta["summary"]["rows"]:
            augmentation = source.augmentation() if split == "train" else None
            self[split] = PixelStore(folder / split, meta["task"], preprocessing, augmentation)  # type: ignore[assignment]
        self.task = meta["task"]
        self.label_names = meta["label_names"]
        self.digest = folder.name
        self.summary = meta["summary"]
        self.processor = preprocessing.processor()


def pixelise(source: PictureSource, cache_dir: Path | None = None) -> PixelStores:
    """The splits of `source` as arrays, from the cache where it has them. Safe to call from several processes at once.

    Args:
        source: what to read, see `data.pictures.PictureSource`.
        cache_dir: None: `<cache>/pixels`.

    Raises:
        Refusal: the source can't be read, or there is nothing to train on.
    """
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "pixels"
    digest = digest_value({"format": FORMAT, "task": source.task, "source": source.content()})[:32]
    target = folder / digest
    if not target.is_dir():
        with locked(folder / f"{digest}.lock"):
            if not target.is_dir():  # else another process made it while this one waited
                remove_unfinished(target)
                _write(source, target)
    return PixelStores(target, source)


def _write(source: PictureSource, target: Path) -> None:
    splits = source.read()
    if "train" not in splits:
        raise refuse("data", "has no pictures to train on")
    names = source.label_names()
    counted = ("rows", "labelled", "noisy", "tokens", "bytes", "duplicates", "shortened")
    summary: dict[str, Any] = {name: {} for name in counted} | {"warnings": []}
    known: set[bytes] = set()
    with folder_atomic(target) as folder:
        for split in sorted(splits, key=lambda name: name != "train"):
            rows = splits[split]
            (folder / split).mkdir()
            digests = _write_split(folder / split, rows, names, source.preprocessing())
            duplicates = 0 if split == "train" else sum(digest in known for digest in digests)
            known |= set(digests) if split == "train" else set()
            figures = {"rows": len(rows), "tokens": 0, "bytes": 0, "duplicates": duplicates, "shortened": 0}
            figures["labelled"] = sum(label is not None for label in rows.labels)
            figures["noisy"] = sum(label is not None for label in rows.true_labels or [])
            for name, value in figures.items():
                summary[name][split] = value
            if split == "train":
                summary["warnings"] += sentences(rows)
            if duplicates:
                text = f"{duplicates} of {len(rows)} {split} pictures are among the training pictures too"
                summary["warnings"].append(f"{text}: their score says little about new pictures")
        write_json(folder / "summary.json", {"task": source.task, "label_names": names, "summary": summary})


def _write_split(folder: Path, rows: Pictures, names: list[str], preprocessing: Preprocessing) -> list[bytes]:
    """Writes the arrays of one split, a picture at a time; returns a digest of each picture's pixels.

    Raises:
        Refusal: pictures that can't be read, the first ones by name.
    """
    side, number = preprocessing.size, {name: i for i, name in enumerate(names)}
    shape = (len(rows), preprocessing.channels, side, side)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    digests, unreadable = [], []
    for i, place in enumerate(rows.numbers):
        try:
            pixels[i] = rows.load(place)
        except Unreadable as error:
            unreadable.append(f"{rows.texts[i]} {error}")
            continue
        digests.append(hashlib.blake2b(pixels[i].tobytes(), digest_size=16).digest())
    if unreadable:
        raise refuse("data.path", unreadable_text(unreadable, len(rows)))
    pixels.flush()
    del pixels
    np.save(folder / "labels.npy", np.array([IGNORE if x is None else number[x] for x in rows.labels], dtype=np.int64))
    true = rows.true_labels or [None] * len(rows)
    lines = [
        json.dumps({"id": id_, "text": text} | ({"true_label": label} if label is not None else {}), ensure_ascii=False)
        for id_, text, label in zip(rows.ids, rows.texts, true, strict=True)
    ]
    encoded = [line.encode("utf-8", "replace") + b"\n" for line in lines]
    np.save(folder / "row_offsets.npy", np.cumsum([0] + [len(line) for line in encoded], dtype=np.int64))
    (folder / "rows.jsonl").write_bytes(b"".join(encoded))
    return digests


def unreadable_text(clauses: list[str], total: int) -> str:
    """One sentence for the files that are no pictures."""
    shown = "; ".join(clauses[:5]) + ("; ..." if len(clauses) > 5 else "")
    return f"holds {len(clauses)} of {total} pictures that can't be read: {shown}; mend or remove them"
