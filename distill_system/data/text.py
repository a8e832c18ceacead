"""Language modelling on the user's own texts: .txt files (each a document) and .jsonl files (each line one), a file or a folder of them."""

from dataclasses import dataclass
from pathlib import Path

from distill_system.data import base, formats
from distill_system.data.base import Rows
from distill_system.errors import Problem, Refusal, nearest, refuse
from distill_system.files import digest_file
from distill_system.schema import Count, ProperFraction

CHECKED_BYTES = 50_000_000  # what `problems` reads at most; `read` finds the rest
FEW = 3  # with fewer documents each is split by position


@dataclass
class Text:
    """Texts, cut into blocks of tokens. A document's split is the hash of its text, so that equal ones stay together.

    One or two documents are each split by position: the beginning is for training, then comes validation, the end is the test.

    Args:
        path: a .txt or .jsonl file, or a folder that holds such files at any depth.
        pattern: which files of the folder, such as `wiki/*.txt`; null: all .txt and .jsonl files.
        text_field: of a line of a .jsonl file.
        block_size: tokens of a block.
        validation_fraction: share of the documents for validation.
        test_fraction: share of the documents for the test.
        limit: blocks of a split at most; null: all.
    """

    task = "causal_lm"

    path: str | None = None
    pattern: str | None = None
    text_field: str = "text"
    block_size: Count = 128
    validation_fraction: ProperFraction = 0.05
    test_fraction: ProperFraction = 0.1
    limit: Count | None = None

    def problems(self, key: str = "data") -> list[Problem]:
        problems = base.fraction_problems(key, self.validation_fraction, self.test_fraction)
        if self.block_size < 2:
            problems.append(
                Problem(f"{key}.block_size", f"is {self.block_size}, must be >= 2: one token predicts nothing")
            )
        if self.path is None or not Path(self.path).expanduser().is_dir():
            problems += formats.file_problems(self.path, f"{key}.path")
        if problems:
            return problems
        try:
            self._documents(key, CHECKED_BYTES)
        except Refusal as refusal:
            return refusal.problems
        return []

    def label_names(self) -> list[str]:
        return []

    def read(self) -> dict[str, Rows]:
        if problems := self.problems():
            raise Refusal(problems)
        rows = self._documents("data", None)
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        if len(rows) < FEW:
            return split_by_position(rows, self.validation_fraction, self.test_fraction)
        return base.by_split(rows, base.split_rows(rows.text_keys(), fractions, "text"))

    def fingerprint(self) -> dict:
        root = Path(self.path or "").expanduser()
        files = {
            str(file.relative_to(root)) if file != root else file.suffix: digest_file(file)
            for file in self._files("data")
        }
        return {"source": type(self).__name__, "files": files} | {
            name: value for name, value in vars(self).items() if name != "path"
        }

    def _files(self, key: str) -> list[Path]:
        root = Path(self.path or "").expanduser()
        if root.is_file():
            if root.suffix not in (".txt", ".jsonl"):
                raise refuse(f"{key}.path", f"is {self.path!r}, must be a .txt or .jsonl file or a folder of them")
            return [root]
        if self.pattern is None:
            found = [*root.rglob("*.txt"), *root.rglob("*.jsonl")]
        else:
            try:
                found = list(root.glob(self.pattern))
            except (ValueError, NotImplementedError) as error:
                raise refuse(
                    f"{key}.pattern", f"is {self.pattern!r}, must be a pattern such as wiki/*.txt: {error}"
                ) from error
        files = sorted(file for file in found if file.is_file() and file.suffix in (".txt", ".jsonl"))
        if not files and self.pattern is not None:
            raise refuse(f"{key}.pattern", f"is {self.pattern!r}, which fits no .txt or .jsonl file in {self.path!r}")
        if not files:
            raise refuse(f"{key}.path", f"is {self.path!r}, a folder without .txt or .jsonl files")
        return files

    def _documents(self, key: str, budget: int | None) -> Rows:
        """All documents, or those of the first files that hold `budget` bytes."""
        rows, root, skipped = Rows([], []), Path(self.path or "").expanduser(), False
        for file in self._files(key):
            if budget is not None:
                budget -= file.stat().st_size
                if budget < 0:
                    skipped = True
                    break
            name = str(file.relative_to(root)) if file != root else file.name
            if file.suffix == ".txt":
                found = [(name, formats.read_utf8(file, f"{key}.path"))]
            else:
                found = self._lines(file, name, key)
            rows.ids += [id_ for id_, text in found if text.strip()]
            rows.texts += [text for _, text in found if text.strip()]
        if not rows.texts and not skipped:
            raise refuse(f"{key}.path", f"is {self.path!r}, which holds no text")
        return rows

    def _lines(self, file: Path, name: str, key: str) -> list[tuple[str, str]]:
        documents = []
        for number, row in enumerate(formats.read_objects(file, f"{key}.path"), start=1):
            text = row.get(self.text_field)
            if not isinstance(text, str):
                what = f"which is no text in object {number} of {file.name}{nearest(self.text_field, row) if text is None else ''}"
                raise refuse(f"{key}.text_field", f"is {self.text_field!r}, {what}")
            documents.append((f"{name}:{number}", text))
        return documents


def split_by_position(rows: Rows, validation_fraction: float, test_fraction: float) -> dict[str, Rows]:
    """Cuts each document in train, validation and test, in this order, at the blank line, line end or space before the exact place."""
    parts = {split: Rows([], []) for split in base.SPLITS}
    for id_, text in zip(rows.ids, rows.texts, strict=True):
        cuts = [
            0,
            boundary(text, 1 - validation_fraction - test_fraction),
            boundary(text, 1 - test_fraction),
            len(text),
        ]
        for split, start, stop in zip(base.SPLITS, cuts, cuts[1:], strict=False):
            if text[start:stop].strip():
                parts[split].ids.append(f"{id_}:{split}")
                parts[split].texts.append(text[start:stop])
    return {split: part for split, part in parts.items() if part.texts}


def boundary(text: str, fraction: float) -> int:
    """The place in `text` to cut at: at a paragraph's end, if not a line's, if not a word's, in the tenth before `fraction` of it."""
    place = round(len(text) * fraction)
    if place >= len(text):
        return len(text)
    for separator in ("\n\n", "\n", " "):
        found = text.rfind(separator, place - len(text) // 10 if place > len(text) // 10 else 0, place)
        if found >= 0:
            return found + len(separator)
    return place
