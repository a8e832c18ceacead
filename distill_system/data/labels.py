"""What is done to training labels on purpose: changed (noise), taken away (transfer rows), whole classes left out.

Only rows of the training split are touched, whatever kind of rows a source has. Which ones is a matter of the hash of a row's id, so that neither the
order of the rows nor the number of ranks has a say, and more noise hits the same rows and some more.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from distill_system.data.base import hash_unit
from distill_system.errors import Problem, nearest
from distill_system.settings import LabelNoise

SETTINGS = ("label_noise", "labelled", "without_classes", "unlabelled")  # of every source that has labels
LABELLED_SALT = "labelled"


class Labelled(Protocol):
    """Rows of a split; a dataclass."""

    ids: list[str]
    labels: Any
    true_labels: Any

    def __len__(self) -> int: ...

    def take(self, indices: Any) -> Any: ...


R = TypeVar("R", bound=Any)  # a dataclass that is Labelled; a Protocol bound would ask for ClassVars of dataclasses


def noise_of(label_noise: float | LabelNoise | dict[str, Any]) -> LabelNoise:
    """The setting in full; a bare number is the rate of symmetric noise.

    >>> noise_of(0.2)
    LabelNoise(rate=0.2, kind='symmetric', seed=0)
    """
    if isinstance(label_noise, LabelNoise):
        return label_noise
    return LabelNoise(**label_noise) if isinstance(label_noise, dict) else LabelNoise(rate=float(label_noise))


def first_by_hash(ids: Sequence[str], among: Sequence[int], share: float, salt: str) -> list[int]:
    """Exactly `round(share * n)` of the indices `among`, the first in hash order of their ids."""
    order = sorted(among, key=lambda i: (hash_unit(ids[i], salt), ids[i], i))
    return sorted(order[: round(share * len(order))])


def with_noise(
    ids: Sequence[str], labels: Sequence[str | None], names: Sequence[str], noise: LabelNoise
) -> list[str | None]:
    """The labels, of which `round(rate * n)` of the n known ones are another: any other at random (symmetric), or the next of `names` (pair).

    >>> with_noise(["a", "b"], ["no", "yes"], ["no", "yes"], LabelNoise(rate=1.0))
    ['yes', 'no']
    """
    number = {name: i for i, name in enumerate(names)}
    changed: list[str | None] = list(labels)
    known = [i for i, label in enumerate(labels) if label is not None]
    for i in first_by_hash(ids, known, noise.rate, f"label_noise {noise.seed}"):
        old = number[str(labels[i])]
        # 1 ... C - 1 places further on: every other class is equally likely.
        further = 1 + int(hash_unit(ids[i], f"label_noise class {noise.seed}") * (len(names) - 1))
        changed[i] = names[(old + (further if noise.kind == "symmetric" else 1)) % len(names)]
    return changed


def training_rows(
    rows: R,
    names: Sequence[str],
    *,
    label_noise: float | LabelNoise | dict[str, Any] = 0.0,
    labelled: float = 1.0,
    without_classes: Sequence[str] = (),
    unlabelled: str = "keep",
) -> R:
    """Training rows after all that the settings do to them: classes left out first, then labels taken away, then changed, unlabelled rows dropped last.

    `true_labels` of the result holds the label a row had wherever noise has changed it, None elsewhere.

    Args:
        rows: with ids and labels by name; a dataclass with a field `true_labels`.
        names: all labels, in order.
        label_noise: share of the labelled rows that get another label, or the setting in full.
        labelled: share of the labelled rows that keep their label; the others can learn from a teacher only.
        without_classes: rows of these labels are removed.
        unlabelled: "keep" or "drop" the rows without a label.
    """
    if rows.labels is None:
        return rows
    if without_classes:
        rows = rows.take([i for i, label in enumerate(rows.labels) if label not in set(without_classes)])
    labels: list[Any] = list(rows.labels)
    if labelled < 1:
        known = [i for i, label in enumerate(labels) if label is not None]
        kept = set(first_by_hash(rows.ids, known, labelled, LABELLED_SALT))
        labels = [label if i in kept else None for i, label in enumerate(labels)]
    noise = noise_of(label_noise)
    true: list[Any] | None = None
    if noise.rate > 0:
        before, labels = labels, with_noise(rows.ids, labels, names, noise)
        true = [old if old != new else None for old, new in zip(before, labels, strict=True)]
    rows = dataclasses.replace(rows, labels=labels, true_labels=true)
    return rows.take([i for i, label in enumerate(labels) if label is not None]) if unlabelled == "drop" else rows


def with_training_rows(splits: dict[str, R], source: Any) -> dict[str, R]:
    """The splits with the training rows after what the settings of `source` (parameters of `training_rows`) do to them."""
    if "train" not in splits:
        return splits
    settings = {name: getattr(source, name) for name in SETTINGS if hasattr(source, name)}
    return splits | {"train": training_rows(splits["train"], source.label_names(), **settings)}


def none_known(source: Any) -> bool:
    """Whether, as far as the settings and local files tell, no training row has a label: then only a teacher's losses can learn."""
    if getattr(source, "labelled", 1.0) == 0:
        return True
    if not getattr(source, "allow_unlabelled", False) or getattr(source, "remote", False):
        return False
    return all(label is None for label in source.read()["train"].labels or [])


def setting_problems(
    key: str,
    *,
    label_noise: float | LabelNoise | dict[str, Any] = 0.0,
    without_classes: Sequence[str] = (),
    labelled: float = 1.0,
    unlabelled: str = "keep",
    names: Sequence[str] = (),
    task: str = "classification",
) -> list[Problem]:
    """What can be told from the settings and the labels alone; without `names` (they aren't known yet) only the former.

    Args:
        key: of the data in the config.
        label_noise: as in `training_rows`.
        without_classes: as in `training_rows`.
        labelled: as in `training_rows`.
        unlabelled: as in `training_rows`.
        names: all labels, in order.
        task: noise and classes left out speak of one label a row.
    """
    problems = []
    if labelled == 0 and unlabelled == "drop":
        problems.append(Problem(f"{key}.labelled", f"is 0 and {key}.unlabelled is drop: no row is left to train on"))
    if task != "classification":
        if noise_of(label_noise).rate > 0:
            problems.append(
                Problem(f"{key}.label_noise", f"changes single labels, which a {task} task doesn't have; drop it")
            )
        if without_classes:
            problems.append(
                Problem(f"{key}.without_classes", f"leaves out classes, which a {task} task doesn't have; drop it")
            )
        return problems
    if not names:
        return problems
    for i, name in enumerate(without_classes):
        if name not in names:
            problems.append(
                Problem(f"{key}.without_classes[{i}]", f"is {name!r}, which is no label{nearest(name, names)}")
            )
    left = [name for name in names if name not in set(without_classes)]
    if not problems and len(left) < 2:
        text = f"is {list(without_classes)}, which leaves {len(left)} of {len(names)} classes to train on, must leave at least 2"
        problems.append(Problem(f"{key}.without_classes", text))
    return problems


def problems_of(source: Any, key: str, names: Sequence[str] = ()) -> list[Problem]:
    """`setting_problems` of the settings that a source has."""
    settings = (*SETTINGS, "task")
    return setting_problems(key, names=names, **{n: getattr(source, n) for n in settings if hasattr(source, n)})


def settings_of(label_noise: float | LabelNoise | dict[str, Any]) -> dict[str, Any]:
    """The noise as plain values, for a fingerprint: however it was spelt, the same noise has the same one."""
    return dataclasses.asdict(noise_of(label_noise))


def sentences(rows: Any) -> list[str]:
    """What a report should say of training rows whose labels aren't what they were."""
    changed = sum(label is not None for label in rows.true_labels or [])
    return (
        [f"{changed} of {len(rows)} training rows have a wrong label on purpose (data.label_noise)"] if changed else []
    )
