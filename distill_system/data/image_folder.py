"""Classification of the user's own pictures: a folder for each class, split by folders or by the hash of a picture's path."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill_system.data import augment, base
from distill_system.data import labels as label_settings
from distill_system.data.augment import Augmentation
from distill_system.data.pictures import (
    Pictures,
    Preprocessing,
    Unreadable,
    preprocessing_problems,
    view_settings,
)
from distill_system.data.table import SPLIT_WORDS
from distill_system.errors import Problem, Refusal, nearest, refuse
from distill_system.files import digest_file
from distill_system.schema import Count, Fraction, Index, ProperFraction
from distill_system.settings import LabelNoise

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
CHECKED = 200  # pictures of each split that `problems` reads; writing the cache reads them all


@dataclass
class ImageFolder:
    """Pictures whose class is the folder they lie in: `path/class/*.png`, or `path/{train,validation,test}/class/*.png`.

    A split without a folder of its own is cut from the training pictures by the hash of their path below the split's folder.

    Args:
        path: the folder.
        size: pixels a side that a model sees.
        channels: 3 (red, green, blue) or 1 (grey).
        resize: crop: the shorter side is resized and the middle cut out; stretch: both sides are resized.
        mean: of each channel, in 0 ... 1; one number counts for all.
        std: of each channel, in 0 ... 1; one number counts for all.
        augment: standard: training pictures are shifted, mirrored and cut as the next three settings say.
        shift: pixels that a training picture may move in each direction.
        flip: whether half of the training pictures are mirrored left to right.
        cutout: side of a square that is cut out of a training picture; 0: none.
        validation_fraction: share of the training pictures for validation where there is no folder for it.
        test_fraction: share of the training pictures for the test where there is no folder for it.
        limit: pictures of a split at most; null: all.
        label_noise: share of the labelled training pictures that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training pictures that keep their label; the others learn from a teacher only.
        without_classes: labels whose pictures are left out of the training pictures.
        unlabelled: whether training pictures without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
    """

    task = "classification"
    inputs = "images"

    path: str | None = None
    size: Count = 64
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "stretch"] = "crop"
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    augment: Literal["none", "standard"] = "none"
    shift: Index = 4
    flip: bool = True
    cutout: Index = 0
    validation_fraction: ProperFraction = 0.1
    test_fraction: ProperFraction = 0.1
    limit: Count | None = None
    label_noise: Fraction | LabelNoise = 0.0
    labelled: Fraction = 1.0
    without_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["keep", "drop"] = "keep"

    def problems(self, key: str = "data") -> list[Problem]:
        """Settings, folders, and the first pictures of each split."""
        problems = base.fraction_problems(key, self.validation_fraction, self.test_fraction)
        prepared = self.preprocessing()
        problems += preprocessing_problems(key, self.size, self.channels, prepared.mean, prepared.std)
        problems += Augmentation(self.shift, self.flip, self.cutout).problems(key, self.size) if self._augments else []
        if self.path is None:
            problems.append(Problem(f"{key}.path", f"is not set; add {key}.path=FOLDER, which holds a folder a class"))
        elif not Path(self.path).expanduser().is_dir():
            what = "a file" if Path(self.path).expanduser().exists() else "no folder here"
            problems.append(
                Problem(f"{key}.path", f"is {self.path!r}, {what}; must be a folder that holds a folder a class")
            )
        if problems:
            return problems
        try:
            splits = self._read(key)
        except Refusal as refusal:
            return refusal.problems
        problems = base.label_problems(f"{key}.path", splits, False)  # type: ignore[arg-type]
        if not problems:
            names = base.label_order(splits["train"].labels)
            problems = label_settings.problems_of(self, key, names)
        return problems + self._unreadable(splits, key)

    def label_names(self) -> list[str]:
        return base.label_order(self._splits["train"].labels)

    def read(self) -> dict[str, Pictures]:
        splits: dict[str, Any] = {split: base.limit_rows(rows, self.limit) for split, rows in self._splits.items()}  # type: ignore[arg-type]
        return label_settings.with_training_rows(splits, self)

    def preprocessing(self) -> Preprocessing:
        mean, std = (tuple(values) * (self.channels if len(values) == 1 else 1) for values in (self.mean, self.std))
        return Preprocessing(self.size, self.channels, self.resize, mean, std)

    def augmentation(self) -> Augmentation | None:
        return augment.chosen(self.augment, self.shift, self.flip, self.cutout)

    @property
    def _augments(self) -> bool:
        return self.augment != "none"

    def content(self) -> dict:
        names = (
            "size",
            "channels",
            "resize",
            "validation_fraction",
            "test_fraction",
            "limit",
            *label_settings.SETTINGS,
        )
        settings = {name: getattr(self, name) for name in names}
        settings["label_noise"] = label_settings.settings_of(self.label_noise)
        return {"source": type(self).__name__, "files": self._digests} | settings

    def fingerprint(self) -> dict:
        return self.content() | view_settings(self.preprocessing(), self.augmentation())

    @cached_property
    def _digests(self) -> dict[str, str]:
        root = self._root
        files = [file for folder in self._split_folders("data").values() for file in _pictures_below(folder)]
        return {file.relative_to(root).as_posix(): digest_file(file) for file in files}

    @property
    def _root(self) -> Path:
        return Path(self.path or "").expanduser()

    @cached_property
    def _splits(self) -> dict[str, Pictures]:
        if problems := self.problems():
            raise Refusal(problems)
        return self._read("data")

    def _split_folders(self, key: str) -> dict[str, Path]:
        """The folder of each split that has one; without such folders all is the training split's."""
        folders = _folders_in(self._root)
        named = {folder: SPLIT_WORDS.get(folder.name.lower()) for folder in folders}
        if "train" not in named.values():
            return {"train": self._root}
        found: dict[str, Path] = {}
        for folder, split in named.items():
            if split is None:
                hint = nearest(folder.name, SPLIT_WORDS)
                text = (
                    f"is {self.path!r}, which holds a folder for training beside {folder.name!r}, which names no split"
                )
                raise refuse(f"{key}.path", f"{text}{hint if 'did you mean' in hint else ''}; move it elsewhere")
            if split in found:
                text = f"is {self.path!r}, which holds two folders for {split}: {found[split].name} and {folder.name}"
                raise refuse(f"{key}.path", f"{text}; keep one")
            found[split] = folder
        return found

    def _read(self, key: str) -> dict[str, Pictures]:
        """All pictures by split, without `limit`.

        Raises:
            Refusal: no class, or a class without a picture.
        """
        folders = self._split_folders(key)
        found = {split: self._classes(folder, key) for split, folder in folders.items()}
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        fractions = {split: share for split, share in fractions.items() if split not in folders}
        rows = found.pop("train")
        splits = base.split_rows(rows.ids, fractions, "image_folder")
        splits = base.keep_labels_in_train(splits, rows.labels)
        return base.by_split(rows, splits) | found  # type: ignore[arg-type, return-value]

    def _classes(self, folder: Path, key: str) -> Pictures:
        """Every picture below `folder`, its class the folder it lies in directly below."""
        classes = _folders_in(folder)
        if not classes:
            loose = len(_pictures_below(folder))
            text = f"{loose} pictures but no folder for a class" if loose else "no folders"
            raise refuse(f"{key}.path", f"is {self.path!r}: {folder.name} holds {text}; put the pictures into CLASS/")
        files = {name: _pictures_below(name) for name in classes}
        empty = [name.name for name, inside in files.items() if not inside]
        if empty:
            shown = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
            known = " ".join(sorted(SUFFIXES))
            text = f"is {self.path!r}, in which {shown} in {folder.name} holds no picture ({known}); fill or remove it"
            raise refuse(f"{key}.path", text)
        rows = [(file, name.name) for name, inside in files.items() for file in inside]
        paths = [file for file, _ in rows]
        ids = [file.relative_to(folder).as_posix() for file in paths]
        prepared = self.preprocessing()
        texts = [file.relative_to(self._root).as_posix() for file in paths]
        labels: list[str | None] = [label for _, label in rows]
        return Pictures(ids, texts, labels, list(range(len(rows))), lambda i: read_picture(paths[i], prepared))

    def _unreadable(self, splits: dict[str, Pictures], key: str) -> list[Problem]:
        from distill_system.data.pixels import unreadable_text

        clauses, total = [], 0
        for rows in splits.values():
            few = np.unique(np.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).astype(int)).tolist()
            total += len(few)
            for i in few:
                try:
                    rows.load(rows.numbers[i])
                except Unreadable as error:
                    clauses.append(f"{rows.texts[i]} {error}")
        return [Problem(f"{key}.path", unreadable_text(clauses, total))] if clauses else []


def _folders_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_picture(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [C, H, W] of a file.

    Raises:
        Unreadable: it is no picture, or is cut short.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return preprocessing.pixels(image)
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises whatever a file's decoder raises
        raise Unreadable(
            f"({str(error).splitlines()[0].replace(str(path), path.name) or type(error).__name__})"
        ) from error
