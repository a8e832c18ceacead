"""Labelled texts from a data set that the `datasets` library loads: a hub name, a folder of data files, or a folder from `save_to_disk`."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill_system.data import base, cells, labels
from distill_system.data.base import Rows
from distill_system.data.formats import as_cell
from distill_system.errors import Problem, Refusal, nearest, refuse
from distill_system.files import digest_file
from distill_system.schema import Count, Fraction, ProperFraction
from distill_system.settings import LabelNoise


@dataclass
class Hub:
    """Rows of a data set of the hub. The names of its ClassLabel are used where it has one; -1 means unlabelled, as on the hub.

    Args:
        name: hub name such as `glue`, or a local folder.
        task: what a label is: one name (classification), any number of names (multi_label), a number (regression), a tag a word (token_classification;
            the text column holds lists of words then).
        config: which configuration of the data set, such as `sst2`.
        revision: commit or tag; null: the newest.
        text_column: column of the text.
        second_text_column: column of the second text of tasks on pairs.
        label_column: column of the label, words, numbers, a ClassLabel, or lists of them.
        label_separator: between the names of a multi-label cell that is a text.
        train_split: its name in the data set.
        validation_split: its name; null: cut from the training rows by the hash of their text.
        test_split: its name; null: cut from the training rows by the hash of their text.
        validation_fraction: share of the training rows for validation where no split is named.
        test_fraction: share of the training rows for the test where no split is named.
        max_length: tokens of a row at most; longer ones are cut.
        limit: rows of a split at most; null: all.
        allow_unlabelled: whether there may be no label at all.
        label_noise: share of the labelled training rows that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training rows that keep their label; the others learn from a teacher only.
        without_classes: labels whose rows are left out of the training rows.
        unlabelled: whether training rows without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
    """

    name: str | None = None
    task: Literal["classification", "multi_label", "regression", "token_classification"] = "classification"
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    second_text_column: str | None = None
    label_column: str = "label"
    label_separator: str = "|"
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: ProperFraction = 0.1
    test_fraction: ProperFraction = 0.1
    max_length: Count = 128
    limit: Count | None = None
    allow_unlabelled: bool = False
    label_noise: Fraction | LabelNoise = 0.0
    labelled: Fraction = 1.0
    without_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["keep", "drop"] = "keep"

    def problems(self, key: str = "data") -> list[Problem]:
        """A folder from `save_to_disk` is read and checked; of others only the settings are, since loading them may download or write."""
        problems = base.fraction_problems(key, self.validation_fraction, self.test_fraction)
        problems += labels.problems_of(self, key)
        if self.name is None:
            problems.append(
                Problem(f"{key}.name", f"is not set; add {key}.name=NAME, a data set of the hub or a local folder")
            )
            return problems
        if self._folder is None and (
            self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 or " " in self.name
        ):
            problems.append(
                Problem(f"{key}.name", f"is {self.name!r}, which is no folder and can't be a name on the hub")
            )
        elif self._folder is not None and not any(file.is_file() for file in self._folder.rglob("*")):
            problems.append(Problem(f"{key}.name", f"is {self.name!r}, a folder without files"))
        if not problems and self._saved:
            try:
                problems = self._check(self._read(key), key)
            except Refusal as refusal:
                problems = refusal.problems
        return problems

    def label_names(self) -> list[str]:
        """The names of the ClassLabel, else the labels of the training rows; loads (and maybe downloads) the data set."""
        if self.task == "regression":
            return []
        names = class_names(self._loaded[self.train_split].features[self.label_column])
        return names if names is not None else base.label_order(self._splits["train"].labels or [])

    def read(self) -> dict[str, Rows]:
        splits = {split: base.limit_rows(rows, self.limit) for split, rows in self._splits.items()}
        return labels.with_training_rows(splits, self)

    def fingerprint(self) -> dict:
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        settings["label_noise"] = labels.settings_of(self.label_noise)
        if self._folder is None:
            content = {split: rows._fingerprint for split, rows in self._loaded.items()}
        else:
            settings.pop("name")
            files = sorted(file for file in self._folder.rglob("*") if file.is_file())
            content = {str(file.relative_to(self._folder)): digest_file(file) for file in files}
        return {"source": type(self).__name__, "content": content} | settings

    @property
    def _folder(self) -> Path | None:
        """The local folder that `name` is, if it is one."""
        folder = Path(self.name).expanduser() if self.name else None
        return folder if folder is not None and folder.is_dir() else None

    @property
    def remote(self) -> bool:
        """Whether reading it may take a download."""
        return not self._saved

    @property
    def _saved(self) -> bool:
        return self._folder is not None and any(
            (self._folder / name).is_file() for name in ("dataset_dict.json", "state.json")
        )

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        return self._load("data")

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        splits = self._read("data")
        if problems := self.problems() or self._check(splits, "data"):
            raise Refusal(problems)
        return splits

    def _load(self, key: str) -> dict[str, Any]:
        """The data set's splits as `datasets.Dataset`s."""
        import datasets

        if self.name is None:
            raise Refusal(self.problems(key))
        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.utils.logging.disable_progress_bar()
        try:
            if self._saved:
                loaded = datasets.load_from_disk(str(self._folder))
            else:
                where = str(self._folder or self.name)
                loaded = datasets.load_dataset(where, self.config, revision=self.revision)
        except OSError as error:
            if error.errno is not None and not self._is_offline(error):  # a full disk is no fault of the config
                raise
            raise self._refuse(key, error) from error
        except Exception as error:  # the library raises whatever the hub client, the parser and the cache raise
            raise self._refuse(key, error) from error
        finally:
            if bars:
                datasets.utils.logging.enable_progress_bar()
        return dict(loaded) if isinstance(loaded, dict) else {self.train_split: loaded}

    @staticmethod
    def _is_offline(error: Exception) -> bool:
        words = f"{type(error).__name__} {error}".lower()
        signs = (
            "connect",
            "offline",
            "max retries",
            "timed out",
            "name resolution",
            "name or service",
            "couldn't reach",
            "proxy",
            "unreachable",
        )
        return any(sign in words for sign in signs)

    def _refuse(self, key: str, error: Exception) -> Refusal:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if self._is_offline(error):
            text = "can't be fetched, since the hub can't be reached; name a local folder, or fetch it once on a machine with a network"
            return refuse(f"{key}.name", f"is {self.name!r}, which {text}")
        if "config name" in str(error).lower():
            reason = " ".join(str(error).split())
            return refuse(f"{key}.config", f"is {self.config!r}: {reason[:300]}")
        return refuse(f"{key}.name", f"is {self.name!r}, which can't be loaded: {reason[:300]}")

    def _read(self, key: str) -> dict[str, Rows]:
        """All rows by split, without `limit`."""
        loaded = self._load(key) if "_loaded" not in vars(self) else self._loaded
        self.__dict__["_loaded"] = loaded
        wanted = {
            "train_split": self.train_split,
            "validation_split": self.validation_split,
            "test_split": self.test_split,
        }
        absent = {setting: name for setting, name in wanted.items() if name is not None and name not in loaded}
        if absent:
            raise Refusal(
                [
                    Problem(f"{key}.{s}", f"is {name!r}, which the data set lacks{nearest(name, loaded)}")
                    for s, name in absent.items()
                ]
            )
        rows = self._rows(loaded[self.train_split], self.train_split, key)
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        fractions = {split: share for split, share in fractions.items() if wanted[f"{split}_split"] is None}
        splits = base.split_rows(rows.text_keys(), fractions, "hub")
        if any(label is not None for label in rows.labels or []):
            splits = base.keep_labels_in_train(splits, rows.labels or [])
        parts = base.by_split(rows, splits)
        for split in ("validation", "test"):
            name = wanted[f"{split}_split"]
            if name is not None:
                parts[split] = self._rows(loaded[name], name, key)
        return parts

    def _rows(self, data: Any, name: str, key: str) -> Rows:
        settings = ("text_column", "second_text_column", "label_column")
        wanted = {setting: getattr(self, setting) for setting in settings if getattr(self, setting) is not None}
        absent = {setting: column for setting, column in wanted.items() if column not in data.column_names}
        if absent:
            names = data.column_names
            raise Refusal(
                [
                    Problem(f"{key}.{s}", f"is {c!r}, which is no column of {name}{nearest(c, names)}")
                    for s, c in absent.items()
                ]
            )
        lists = {"token_classification": {"text_column", "label_column"}, "multi_label": {"label_column"}}.get(
            self.task, ()
        )
        columns = {s: [as_cell(cell, s in lists) for cell in data[column]] for s, column in wanted.items()}
        for setting in ("text_column", "second_text_column"):
            blank = [i for i, cell in enumerate(columns.get(setting, [])) if cell is None]
            if blank:
                where = f"blank in {len(blank)} of {len(data)} rows of {name} (first: row {blank[0] + 1})"
                raise refuse(f"{key}.{setting}", f"is {wanted[setting]!r}, which is {where}")
        found, classes = columns["label_column"], class_names(data.features[self.label_column])
        if classes is not None and self.task != "regression":
            found = [named(cell, classes) for cell in found]
        keys = {"key": f"{key}.label_column", "place": name}
        known = cells.labels_from(found, self.task, separator=self.label_separator, **keys)
        ids = [f"{name}:{i}" for i in range(len(data))]
        if self.task == "token_classification":
            keys = {"key": f"{key}.text_column", "label_key": f"{key}.label_column", "place": name}
            words = cells.words_from(columns["text_column"], known, **keys)
            return Rows(ids, [" ".join(row) for row in words], None, known, words=words)
        pairs = list(map(str, columns["second_text_column"])) if "second_text_column" in columns else None
        return Rows(ids, list(map(str, columns["text_column"])), pairs, known)

    def _check(self, splits: dict[str, Rows], key: str) -> list[Problem]:
        if "train" not in splits:
            return [Problem(f"{key}.train_split", f"is {self.train_split!r}, which has no rows")]
        problems = base.label_problems(f"{key}.label_column", splits, self.allow_unlabelled, self.task)
        names = class_names(self._loaded[self.train_split].features[self.label_column])
        names = names if names is not None else base.label_order(splits["train"].labels or [])
        return problems or labels.problems_of(self, key, names)


def class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them; None where a column has no such type."""
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if hasattr(inner, "names") else None


def named(cell: Any, names: list[str]) -> Any:
    """A class number, or a list of them, by name; -1 is how the hub writes an unknown label."""
    if isinstance(cell, list):
        return [named(item, names) for item in cell]
    return None if cell in (None, "-1", "-100") else names[int(cell)]
