"""The user's own table, for any task on texts but language modelling: csv, tsv, jsonl, parquet or CoNLL, split by column, by file, or by fraction."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill_system.data import base, cells, formats
from distill_system.data import labels as label_settings
from distill_system.data.base import Rows
from distill_system.errors import Problem, Refusal
from distill_system.files import digest_file
from distill_system.schema import Count, Fraction, ProperFraction
from distill_system.settings import LabelNoise

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
PATHS = ("path", "validation_path", "test_path", "transfer_path")
SPLIT_WORDS |= {"dev": "validation", "test": "test", "testing": "test"}


@dataclass
class Table:
    """Rows of a table with a text and a label each: a name, several names, a number, or a tag for each word.

    Split by fraction, a row's split is the hash of its id, or of its text where `id_column` is null: equal texts stay together, and a row stays
    where it is when others are added. A row without a label (an empty cell) can teach through a teacher only; it always goes to train, unless
    the split column or file says otherwise.

    Args:
        path: the file; the training rows where other files are named for the other splits.
        text_column: column of the text.
        second_text_column: column of the second text of tasks on pairs.
        task: what a label is: one name (classification), any number of names (multi_label), a number (regression), a tag a word (token_classification;
            the text is a list of words then).
        label_column: column of the label, words or numbers; null with `allow_unlabelled`. An empty cell: unknown.
        label_separator: between the names of a multi-label cell that is a text; a cell of nothing but the separator: no label holds.
        id_column: column that names a row (and decides its split); null: the row's number (and the hash of its text).
        format: of all files; auto: by their suffixes.
        validation_path: file of the validation rows; null: cut from `path`.
        test_path: file of the test rows; null: cut from `path`.
        transfer_path: file of more training texts, whose labels nobody knows (a label column in it isn't read): teachers label them.
        split_column: column that says train, validation or test; null: split by fraction.
        validation_fraction: share of the rows of `path` for validation.
        test_fraction: share of the rows of `path` for the test.
        max_length: tokens of a row at most; longer ones are cut.
        limit: rows of a split at most; null: all.
        allow_unlabelled: whether there may be no label at all.
        label_noise: share of the labelled training rows that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training rows that keep their label; the others learn from a teacher only.
        without_classes: labels whose rows are left out of the training rows.
        unlabelled: whether training rows without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
    """

    path: str | None = None
    task: Literal["classification", "multi_label", "regression", "token_classification"] = "classification"
    text_column: str = "text"
    second_text_column: str | None = None
    label_column: str | None = "label"
    label_separator: str = "|"
    id_column: str | None = None
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "conll"] = "auto"
    validation_path: str | None = None
    test_path: str | None = None
    transfer_path: str | None = None
    split_column: str | None = None
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
        problems = base.fraction_problems(key, self.validation_fraction, self.test_fraction)
        if self.split_column and (self.validation_path or self.test_path):
            problems.append(
                Problem(
                    f"{key}.split_column",
                    f"is {self.split_column!r}, but {key}.validation_path or test_path is set; drop one",
                )
            )
        if self.label_column is None and not self.allow_unlabelled:
            text = f"is null; name a column, or set {key}.allow_unlabelled=true if only teachers label the rows"
            problems.append(Problem(f"{key}.label_column", text))
        if self.task == "token_classification" and self.second_text_column:
            text = f"is {self.second_text_column!r}, but rows of token_classification have one list of words; drop it"
            problems.append(Problem(f"{key}.second_text_column", text))
        if not self.label_separator.strip():
            problems.append(Problem(f"{key}.label_separator", "is blank, must be a sign such as | or ;"))
        problems += label_settings.problems_of(self, key)
        for name in PATHS:
            if name == "path" or getattr(self, name) is not None:
                problems += formats.file_problems(getattr(self, name), f"{key}.{name}")
        if problems:
            return problems
        try:
            splits = self._read(key)
        except Refusal as refusal:
            return refusal.problems
        if "train" not in splits:
            return [Problem(f"{key}.split_column", f"is {self.split_column!r}, whose cells name no row 'train'")]
        problems = base.label_problems(f"{key}.label_column", splits, self.allow_unlabelled, self.task)
        if not problems:
            names = base.label_order(splits["train"].labels or [])
            problems = label_settings.problems_of(self, key, names)
        if "test" not in splits and self.test_fraction > 0 and not self.split_column:
            text = f"is {self.test_fraction}, which leaves no row for the test, since there are {len(splits['train'])} rows; name {key}.test_path"
            problems.append(Problem(f"{key}.test_fraction", text))
        return problems

    def label_names(self) -> list[str]:
        return base.label_order(self._splits["train"].labels or [])

    def read(self) -> dict[str, Rows]:
        splits = {split: base.limit_rows(rows, self.limit) for split, rows in self._splits.items()}
        return label_settings.with_training_rows(splits, self)

    def fingerprint(self) -> dict:
        paths = {name: getattr(self, name) for name in PATHS if getattr(self, name)}
        settings = {k: v for k, v in vars(self).items() if k not in PATHS and not k.startswith("_")}
        settings["label_noise"] = label_settings.settings_of(self.label_noise)
        files = {name: [digest_file(Path(path).expanduser()), Path(path).suffix] for name, path in paths.items()}
        return {"source": type(self).__name__, "files": files} | settings

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        if problems := self.problems():
            raise Refusal(problems)
        return self._read("data")

    def _read(self, key: str) -> dict[str, Rows]:
        """All rows by split, without `limit`."""
        assert self.path is not None
        rows, splits = self._read_file(self.path, f"{key}.path", self.split_column)
        others = {"validation": self.validation_path, "test": self.test_path}
        if splits is None:
            fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
            fractions = {split: share for split, share in fractions.items() if others[split] is None}
            names = rows.ids if self.id_column else rows.text_keys()
            splits = base.split_rows(names, fractions, "table")
            if rows.labels is not None and any(label is not None for label in rows.labels):
                splits = ["train" if label is None else split for split, label in zip(splits, rows.labels, strict=True)]
                splits = base.keep_labels_in_train(splits, rows.labels)
        parts = base.by_split(rows, splits)
        for split, path in others.items():
            if path is not None:
                parts[split] = self._read_file(path, f"{key}.{split}_path", None)[0]
        if self.transfer_path is not None and "train" in parts:
            more = self._read_file(self.transfer_path, f"{key}.transfer_path", None, labelled=False)[0]
            parts["train"] = base.joined(parts["train"], more)
        return parts

    def _read_file(
        self, path: str, key: str, split_column: str | None, labelled: bool = True
    ) -> tuple[Rows, list[str] | None]:
        settings = ("text_column", "second_text_column", "id_column") + (("label_column",) if labelled else ())
        wanted = {name: getattr(self, name) for name in settings if getattr(self, name) is not None}
        wanted |= {"split_column": split_column} if split_column else {}
        lists = {"token_classification": {"text_column", "label_column"}, "multi_label": {"label_column"}}
        columns = formats.read_columns(path, self.format, wanted, key, frozenset(lists.get(self.task, ())))
        count, parent, place = len(columns[self.text_column]), key.rpartition(".")[0], Path(path).name
        problems = []
        for setting in ("text_column", "second_text_column", "id_column", "split_column"):
            empty = [i for i, cell in enumerate(columns[wanted[setting]]) if cell is None] if setting in wanted else []
            if empty:
                text = f"is {wanted[setting]!r}, which is blank in {len(empty)} of {count} rows of {place} (first: row {empty[0] + 1})"
                problems.append(Problem(f"{parent}.{setting}", text))
        splits = None
        if split_column and not problems:
            words = [cell.strip().lower() for cell in columns[split_column] if cell is not None]
            unknown = sorted(set(words) - set(SPLIT_WORDS))
            if unknown:
                text = f"is {split_column!r}, which holds {unknown[0]!r}; its cells must be train, validation or test"
                problems.append(Problem(f"{parent}.split_column", text))
            else:
                splits = [SPLIT_WORDS[word] for word in words]
        if problems:
            raise Refusal(problems)
        ids = (
            [f"{Path(path).stem}:{i + 1}" for i in range(count)]
            if self.id_column is None
            else list(map(str, columns[self.id_column]))
        )
        return self._rows(ids, columns, wanted, parent, place), splits

    def _rows(
        self, ids: list[str], columns: dict[str, list[Any]], wanted: dict[str, str], key: str, place: str
    ) -> Rows:
        """Columns as rows of the task; rows of a file without a label column have no labels."""
        labels: list[Any] = [None] * len(ids)
        label_key, text_key = f"{key}.label_column", f"{key}.text_column"
        if "label_column" in wanted:
            options = {"separator": self.label_separator, "key": label_key, "place": place}
            labels = cells.labels_from(columns[wanted["label_column"]], self.task, **options)
        texts = columns[self.text_column]
        if self.task == "token_classification":
            words = cells.words_from(texts, labels, key=text_key, label_key=label_key, place=place)
            return Rows(ids, [" ".join(row) for row in words], None, labels, words=words)
        pairs = None if self.second_text_column is None else list(map(str, columns[self.second_text_column]))
        return Rows(ids, list(map(str, texts)), pairs, labels)
