"""81,433 definitions of nouns, each with one of 25 classes (animal, food, feeling, ...): what the lexicographers of WordNet filed it under.

From the Debian package `wordnet-base` (WordNet 3.0, whose licence lets anyone use, copy, modify and distribute it for any purpose as long as its
copyright notice goes along). To cite: Miller, G.A. (1995). WordNet: A Lexical Database for English. Communications of the ACM 38(11), 39-41; Fellbaum,
C. (1998, ed.). WordNet: An Electronic Lexical Database. MIT Press.
"""

from dataclasses import dataclass, field
from typing import Literal

from distill_system.data import base, labels
from distill_system.data.base import Rows
from distill_system.debian import fetch_debian_package
from distill_system.errors import Problem
from distill_system.schema import Count, Fraction, ProperFraction
from distill_system.settings import LabelNoise

FILE = "usr/share/wordnet/data.noun"
FIRST = 4  # number of the first file of nouns among the lexicographer files that have a topic; 03 holds 51 top concepts
CLASSES = [
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]


@dataclass
class WordSenses:
    """Definitions of nouns, without the examples in quotes. A row's split is the hash of its text, so equal definitions stay together.

    A definition that occurs in several classes, or in one more than once, is one row: that of the synset that comes first.

    Args:
        max_length: tokens of a row at most; longer ones are cut.
        limit: rows of a split at most; null: all.
        validation_fraction: share of the rows for validation.
        test_fraction: share of the rows for the test.
        label_noise: share of the labelled training rows that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training rows that keep their label; the others learn from a teacher only.
        without_classes: labels whose rows are left out of the training rows.
        unlabelled: whether training rows without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
        package: the Debian package.
        sha256: of its file `data.noun`.
    """

    task = "classification"

    max_length: Count = 48
    limit: Count | None = None
    validation_fraction: ProperFraction = 0.05
    test_fraction: ProperFraction = 0.1
    label_noise: Fraction | LabelNoise = 0.0
    labelled: Fraction = 1.0
    without_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["keep", "drop"] = "keep"
    package: str = "wordnet-base"
    sha256: str = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"

    def problems(self, key: str = "data") -> list[Problem]:
        return base.fraction_problems(key, self.validation_fraction, self.test_fraction) + labels.problems_of(
            self, key, self.label_names()
        )

    def label_names(self) -> list[str]:
        return list(CLASSES)

    def read(self) -> dict[str, Rows]:
        folder = fetch_debian_package(self.package, {FILE: self.sha256}, "data.package")
        rows = parse((folder / FILE).read_text(encoding="utf-8"))
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        parts = base.by_split(rows, base.split_rows(rows.text_keys(), fractions, "word_senses"))
        splits = {split: base.limit_rows(part, self.limit) for split, part in parts.items()}
        return labels.with_training_rows(splits, self)

    def fingerprint(self) -> dict:
        return {"source": type(self).__name__} | vars(self) | {"label_noise": labels.settings_of(self.label_noise)}


def parse(text: str) -> Rows:
    r"""Lines of `data.noun` as wndb(5WN) describes them; the licence at its head is indented, the top concepts (file 03) have no topic.

    >>> rows = parse('  1 This software\n00007846 05 n 01 pup 0 001 @ 1 n 0000 | young of a canine; small; "a pup"  \n')
    >>> rows.texts, rows.labels, rows.ids
    (['young of a canine; small'], ['animal'], ['00007846'])
    """
    rows, known = Rows([], [], None, []), set()
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        head, _, gloss = line.partition(" | ")
        id_, number = head.split(" ", 2)[:2]
        definition = definition_of(gloss)
        if int(number) < FIRST or not definition or definition.casefold() in known:
            continue
        known.add(definition.casefold())
        rows.ids.append(id_)
        rows.texts.append(definition)
        rows.labels.append(CLASSES[int(number) - FIRST])  # type: ignore[union-attr]
    return rows


def definition_of(gloss: str) -> str:
    """The gloss without its examples, which stand in quotes behind a semicolon and hold the word that is defined."""
    return " ".join(gloss.partition('; "')[0].split()).strip(" ;,:")
