"""70,000 grey pictures of clothes, 28 x 28, in ten classes (Fashion-MNIST), out of the Debian package dataset-fashion-mnist (MIT licence).

Xiao, H., Rasul, K. and Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.
https://arxiv.org/abs/1708.07747
"""

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill_system.data import augment, base
from distill_system.data import labels as label_settings
from distill_system.data.augment import Augmentation
from distill_system.data.pictures import Pictures, Preprocessing, preprocessing_problems, view_settings
from distill_system.debian import fetch_debian_package
from distill_system.errors import Problem, refuse
from distill_system.schema import Count, Fraction, Index, ProperFraction
from distill_system.settings import LabelNoise

FOLDER = "usr/share/datasets/fashion-mnist"
FILES = {
    f"{FOLDER}/train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    f"{FOLDER}/train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    f"{FOLDER}/t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    f"{FOLDER}/t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
PARTS = {"train": "train", "test": "t10k"}
SIDE = 28


@dataclass
class FashionMnist:
    """The 60,000 training pictures, some of them for validation by the hash of their id, and the 10,000 of the test.

    Args:
        size: pixels a side that a model sees; 28 leaves the pictures as they are.
        channels: 1 (grey), or 3 equal ones for models that take colours.
        mean: of each channel, in 0 ... 1; one number counts for all.
        std: of each channel, in 0 ... 1; one number counts for all.
        augment: standard: training pictures are shifted, mirrored and cut as the next three settings say.
        shift: pixels that a training picture may move in each direction.
        flip: whether half of the training pictures are mirrored left to right.
        cutout: side of a square that is cut out of a training picture; 0: none.
        validation_fraction: share of the training pictures for validation.
        limit: pictures of a split at most; null: all.
        label_noise: share of the labelled training pictures that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training pictures that keep their label; the others learn from a teacher only.
        without_classes: labels whose pictures are left out of the training pictures.
        unlabelled: whether training pictures without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
        package: name of the Debian package.
    """

    task = "classification"
    inputs = "images"

    size: Count = 28
    channels: Literal[1, 3] = 1
    mean: list[float] = field(default_factory=lambda: [0.286])
    std: list[float] = field(default_factory=lambda: [0.353])
    augment: Literal["none", "standard"] = "none"
    shift: Index = 2
    flip: bool = True
    cutout: Index = 0
    validation_fraction: ProperFraction = 0.05
    limit: Count | None = None
    label_noise: Fraction | LabelNoise = 0.0
    labelled: Fraction = 1.0
    without_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["keep", "drop"] = "keep"
    package: str = "dataset-fashion-mnist"

    def problems(self, key: str = "data") -> list[Problem]:
        prepared = self.preprocessing()
        problems = base.fraction_problems(key, self.validation_fraction, 0.0)
        problems += preprocessing_problems(key, self.size, self.channels, prepared.mean, prepared.std)
        if self.augment != "none":
            problems += Augmentation(self.shift, self.flip, self.cutout).problems(key, self.size)
        return problems + label_settings.problems_of(self, key, LABELS)

    def label_names(self) -> list[str]:
        return list(LABELS)

    def read(self) -> dict[str, Pictures]:
        """The files are pinned by their sha256; they are fetched once where the package isn't installed."""
        folder = fetch_debian_package(self.package, FILES) / FOLDER
        splits: dict[str, Pictures] = {}
        for split, part in PARTS.items():
            images, labels = (folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
            splits[split] = self._pictures(read_idx(images), read_idx(labels), split)
        train = splits.pop("train")
        parts = base.split_rows(train.ids, {"validation": self.validation_fraction}, "fashion_mnist")
        splits |= base.by_split(train, parts)  # type: ignore[arg-type]
        ordered = {split: splits[split] for split in base.SPLITS if split in splits}
        limited: dict[str, Any] = {split: base.limit_rows(rows, self.limit) for split, rows in ordered.items()}  # type: ignore[arg-type]
        return label_settings.with_training_rows(limited, self)

    def _pictures(self, images_NHW: np.ndarray, labels_N: np.ndarray, split: str) -> Pictures:
        prepared = self.preprocessing()

        def load(i: int) -> np.ndarray:
            if self.size == SIDE:
                return np.repeat(images_NHW[i][None], self.channels, axis=0)
            from PIL import Image

            return prepared.pixels(Image.fromarray(images_NHW[i]))

        ids = [f"{split}:{i}" for i in range(len(labels_N))]
        texts = [f"{split} picture {i}" for i in range(len(labels_N))]
        return Pictures(ids, texts, [LABELS[i] for i in labels_N], list(range(len(labels_N))), load)

    def preprocessing(self) -> Preprocessing:
        mean, std = (tuple(values) * (self.channels if len(values) == 1 else 1) for values in (self.mean, self.std))
        return Preprocessing(self.size, self.channels, "stretch", mean, std)

    def augmentation(self) -> Augmentation | None:
        return augment.chosen(self.augment, self.shift, self.flip, self.cutout)

    def content(self) -> dict:
        settings = {
            name: getattr(self, name)
            for name in ("size", "channels", "validation_fraction", "limit", *label_settings.SETTINGS)
        }
        settings["label_noise"] = label_settings.settings_of(self.label_noise)
        return {"source": type(self).__name__, "files": FILES} | settings

    def fingerprint(self) -> dict:
        return self.content() | view_settings(self.preprocessing(), self.augmentation())


def read_idx(path: Path, key: str = "data.package") -> np.ndarray:
    """The array of a gzipped idx file: two zero bytes, the type (8: uint8), the number of sides, each side in 4 bytes, the data.

    Raises:
        Refusal: it is damaged, or holds another type.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise refuse(
            key, f"holds {path.name}, which can't be read ({error}); remove {path.parent} to fetch it again"
        ) from error
    sides = data[3] if len(data) > 4 else 0
    start = 4 + 4 * sides
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], dtype=">u4")) if len(data) >= start else ()
    if data[:3] != b"\0\0\x08" or not shape or len(data) != start + int(np.prod(shape)):
        raise refuse(key, f"holds {path.name}, which is no idx file of bytes; remove {path.parent} to fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
