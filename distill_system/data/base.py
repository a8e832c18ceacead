"""What a data source gives (rows of text by split), and the helpers that every source shares: splits by hash, label order, limits."""

import collections
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from distill_system.errors import Problem, nearest

SPLITS = ("train", "validation", "test")


@dataclass
class Rows:
    """Rows of one split, column by column.

    Args:
        ids: names a row in reports.
        texts: never blank.
        pairs: the second text of each row, for tasks on two texts.
        labels: None where unknown; None as a whole for language modelling. The name of a label (classification), a list of names (multi-label; an empty
            one says that none holds), a number (regression), or a list of tags, one a word (token classification; None where a word's is unknown).
        true_labels: what noise has changed: the label a row had, None elsewhere; None as a whole without noise.
        words: each row as a list of words (token classification), which `texts` joins.
    """

    ids: list[str]
    texts: list[str]
    pairs: list[str] | None = None
    labels: list[Any] | None = None
    true_labels: list[Any] | None = None
    words: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Rows":
        chosen = list(indices)
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {k: v if v is None else [v[i] for i in chosen] for k, v in columns.items()}
        return Rows(**taken)

    def text_keys(self) -> list[str]:
        """What makes two rows the same text: letter case and white space don't count."""
        pairs = self.pairs or [""] * len(self)
        return [" ".join(f"{text} \0 {pair}".casefold().split()) for text, pair in zip(self.texts, pairs, strict=True)]


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both, one after another; a column that one of them lacks is unknown there, and gone if both lack it."""
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Rows)):
        parts = [getattr(rows, name) for rows in (first, second)]
        if any(part is not None for part in parts):
            columns[name] = [
                cell
                for part, rows in zip(parts, (first, second), strict=True)
                for cell in (part if part is not None else [None] * len(rows))
            ]
    return Rows(**columns)


class Source(Protocol):
    """A data set. A config names the class by `_target_`; `max_length` (classification) or `block_size` (causal_lm) bounds a row's tokens."""

    task: Literal["classification", "multi_label", "regression", "token_classification", "causal_lm"]

    def problems(self, key: str = "data") -> list[Problem]:
        """All that is wrong with the settings and local files, without torch, in seconds, and without a download."""

    def label_names(self) -> list[str]:
        """Labels in the order of their numbers; empty where none are known, and in regression."""

    def read(self) -> dict[str, Rows]:
        """Rows of each split that isn't empty; may download. Raises Refusal."""

    def fingerprint(self) -> dict:
        """Plain values that change when the rows do: a digest of the content, and the settings that choose from it."""


def hash_unit(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on nothing but `name` and `salt`."""
    return (
        int.from_bytes(hashlib.sha256(f"{salt}\0{name}".encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48
    )


def hash_split(name: str, fractions: dict[str, float], salt: str = "") -> str:
    """The split of the row called `name`; what `fractions` leave is train. A row stays where it is when others come or go.

    >>> hash_split("row 1", {"test": 0.0}), hash_split("row 1", {"test": 1.0})
    ('train', 'test')
    """
    position, limit = hash_unit(name, salt), 0.0
    for split, fraction in fractions.items():
        limit += fraction
        if position < limit:
            return split
    return "train"


def split_rows(names: Sequence[str], fractions: dict[str, float], salt: str = "") -> list[str]:
    """`hash_split` of each row; where a few rows leave train or a wanted split empty, it gets the row first in hash order that can be spared."""
    splits = [hash_split(name, fractions, salt) for name in names]
    for wanted in ["train"] + [split for split, fraction in fractions.items() if fraction > 0]:
        if wanted in splits:
            continue
        sizes = collections.Counter(splits)
        spare = [i for i, split in enumerate(splits) if sizes[split] > 1 or wanted == "train"]
        if spare:
            splits[min(spare, key=lambda i: (hash_unit(names[i], salt), i))] = wanted
    return splits


def names_in(label: Any) -> list[str]:
    """The names that a row's label holds: none where it is unknown or a number."""
    if isinstance(label, str):
        return [label]
    return [name for name in label if name is not None] if isinstance(label, list | tuple) else []


def keep_labels_in_train(splits: list[str], labels: Sequence[Any]) -> list[str]:
    """Rows of a label so rare that no training row got it go to train: a test on it would mean nothing."""
    known = {name for split, label in zip(splits, labels, strict=True) if split == "train" for name in names_in(label)}
    return [
        split if known.issuperset(names_in(label)) else "train" for split, label in zip(splits, labels, strict=True)
    ]


def by_split(rows: Rows, splits: Sequence[str]) -> dict[str, Rows]:
    """Rows of each split that isn't empty, in their order."""
    parts = {name: [i for i, split in enumerate(splits) if split == name] for name in SPLITS}
    return {name: rows.take(indices) for name, indices in parts.items() if indices}


def limit_rows(rows: Rows, limit: int | None, salt: str = "limit") -> Rows:
    """At most `limit` rows, the first in hash order of their ids, in the order they had: the same ones each time."""
    if limit is None or len(rows) <= limit:
        return rows
    order = sorted(range(len(rows)), key=lambda i: (hash_unit(rows.ids[i], salt), i))
    return rows.take(sorted(order[:limit]))


def label_order(labels: Iterable[Any]) -> list[str]:
    """Each label once: in the order of the numbers when all are whole numbers, else of the alphabet."""
    names = {name for label in labels for name in names_in(label)}
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def count_duplicates(train: Rows, other: Rows) -> int:
    """Rows of `other` whose text (and second text) is also in `train`."""
    known = set(train.text_keys())
    return sum(key in known for key in other.text_keys())


def fraction_problems(key: str, validation_fraction: float, test_fraction: float) -> list[Problem]:
    """The schema checks each fraction; together they must leave something to train on."""
    problems = [
        Problem(f"{key}.{name}", f"is {value}, must be >= 0 and < 1")
        for name, value in {"validation_fraction": validation_fraction, "test_fraction": test_fraction}.items()
        if not 0 <= value < 1
    ]
    if not problems and validation_fraction + test_fraction >= 1:
        text = f"is {validation_fraction} and {key}.test_fraction is {test_fraction}; together they must be < 1, or no row is left to train on"
        problems.append(Problem(f"{key}.validation_fraction", text))
    return problems


def label_problems(
    key: str, splits: dict[str, Rows], allow_unlabelled: bool, task: str = "classification"
) -> list[Problem]:
    """No label, or fewer than a task needs, to train on, or labels in validation or test that training doesn't have."""
    labels = {split: label_order(rows.labels or []) for split, rows in splits.items()}
    known = labels.get("train", [])
    numbers = task == "regression" and any(
        label is not None for label in splits.get("train", Rows([], [])).labels or []
    )
    if not known and (allow_unlabelled or numbers):
        return []
    if not known:
        return [
            Problem(
                key,
                "has no label in any training row; name another column, or set allow_unlabelled=true if only teachers label them",
            )
        ]
    if len(known) < 2 and task != "multi_label":
        return [Problem(key, f"has one label only ({known[0]!r}) in the training rows, must be at least 2")]
    problems = []
    for split in ("validation", "test"):
        unseen = [label for label in labels.get(split, []) if label not in set(known)]
        if unseen:
            shown = ", ".join(repr(label) for label in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            hint = nearest(unseen[0], known) if len(known) <= 20 else ""
            problems.append(Problem(key, f"has labels in {split} that no training row has: {shown}{hint}"))
    return problems
