"""Tokenised data as memory-mapped arrays, cached by the content of the source, its settings and the tokenizer.

    <cache>/tokens/<digest>/{summary.json, <split>/{tokens,offsets,labels,num_bytes[,type_ids],row_offsets}.npy, <split>/rows.jsonl}

Row i of a split is `tokens[offsets[i]:offsets[i + 1]]`. Language modelling: the documents of a split, each ended by the end-of-sequence token,
are laid end to end and cut into blocks of `block_size` tokens; the last block may be shorter.

Shapes: N rows, C labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_system.data.base import Rows, Source, count_duplicates, limit_rows
from distill_system.data.labels import sentences
from distill_system.data.samples import IGNORE, samples
from distill_system.errors import refuse
from distill_system.files import digest_value, folder_atomic, read_json, write_json
from distill_system.packages import cache_folder, locked, remove_unfinished

FORMAT = 2  # raise it when the same input would give other arrays
PIECE = 100_000  # characters of a document that a tokenizer gets at once


class TokenStore:
    """One split, tokenised. Arrays are read from disk when they are touched.

    Attributes:
        tokens: int32, all rows one after another.
        offsets: int64 [N + 1].
        lengths: int64 [N], tokens of each row.
        labels: int64 [N], -100 where unknown (and in language modelling); multi-label and regression: float32 [N, C], NaN where unknown; token
            classification: int64, like `tokens`, -100 on special tokens and on the second and later pieces of a word.
        num_bytes: int64 [N], UTF-8 bytes of the text that a block's predicted tokens (all but the first) stand for; 0 in classification.
        type_ids: int8, like `tokens`, where rows have two texts; else None.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self.folder, self.task = folder, task
        self.tokens = self._load("tokens")
        self.offsets = self._load("offsets")
        self.labels = self._load("labels")
        self.num_bytes = self._load("num_bytes")
        self.type_ids = self._load("type_ids") if (folder / "type_ids.npy").exists() else None
        self.lengths = np.diff(self.offsets)
        self._row_offsets = self._load("row_offsets")

    def _load(self, name: str) -> np.ndarray:
        return np.asarray(
            np.load(self.folder / f"{name}.npy", mmap_mode="r")
        )  # a plain view: np.memmap is slow to index

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def labelled(self) -> np.ndarray:
        """Rows [N] of which something is known."""
        if self.labels.dtype.kind == "f":
            return ~np.isnan(self.labels).all(axis=1)
        known = self.labels != IGNORE
        return np.logical_or.reduceat(known, self.offsets[:-1]) if self.task == "token_classification" else known

    def row(self, i: int) -> dict[str, Any]:
        """`id`, `text` and, where there is one, the second text (`pair`), and the label before noise (`true_label`) of row `i`."""
        with open(self.folder / "rows.jsonl", "rb") as file:
            file.seek(int(self._row_offsets[i]))
            return json.loads(file.readline())

    def text(self, i: int) -> str:
        """The text of row `i` for a report; a second text follows after a bar."""
        row = self.row(i)
        return f"{row['text']} | {row['pair']}" if "pair" in row else row["text"]

    @property
    def ids(self) -> list[str]:
        """The id of every row; reads the whole file."""
        with open(self.folder / "rows.jsonl", "rb") as file:
            return [json.loads(line)["id"] for line in file]


class Stores(dict[str, TokenStore]):
    """The stores of a data set by split; a split without rows is absent.

    Attributes:
        task: of the source.
        label_names: labels in the order of their numbers.
        digest: of content, settings and tokenizer.
        summary: {"rows", "labelled", "noisy", "tokens", "bytes", "duplicates", "shortened": {split: count}, "warnings": [sentences]}; `noisy` counts
            labels that were changed on purpose.
    """

    def __init__(self, folder: Path) -> None:
        meta = read_json(folder / "summary.json")
        super().__init__({split: TokenStore(folder / split, meta["task"]) for split in meta["summary"]["rows"]})
        self.task: str = meta["task"]
        self.label_names: list[str] = meta["label_names"]
        self.digest: str = folder.name
        self.summary: dict[str, Any] = meta["summary"]


def tokenise(source: Source, tokenizer: Any, cache_dir: Path | None = None) -> Stores:
    """Tokenised splits of `source`, from the cache where it has them; pictures as pixels. Safe to call from several processes at once.

    Args:
        source: what to read, see `data.base.Source`.
        tokenizer: a transformers tokenizer.
        cache_dir: null: `<cache>/tokens`.

    Raises:
        Refusal: the source can't be read, or there is nothing to train on.
    """
    if getattr(source, "inputs", "texts") == "images":
        from distill_system.data.pixels import pixelise

        return pixelise(source, cache_dir)  # type: ignore[arg-type]
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "tokens"
    limits = {name: getattr(source, name) for name in ("max_length", "block_size") if hasattr(source, name)}
    what = {"format": FORMAT, "task": source.task, "source": source.fingerprint(), "limits": limits}
    digest = digest_value(what | {"tokenizer": tokenizer_fingerprint(tokenizer)})[:32]
    target = folder / digest
    if not target.is_dir():
        with locked(folder / f"{digest}.lock"):
            if not target.is_dir():
                remove_unfinished(target)
                _write(source, tokenizer, target)
    return Stores(target)


def tokenizer_fingerprint(tokenizer: Any) -> dict[str, Any]:
    """What decides which tokens a text becomes: the vocabulary and rules, and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)  # left over from the last call
        rules.pop("padding", None)
    else:
        rules = [sorted(tokenizer.get_vocab().items()), str(sorted(getattr(tokenizer, "init_kwargs", {}).items()))]
    special = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    sides = [tokenizer.truncation_side, list(tokenizer.model_input_names)]
    return {"class": type(tokenizer).__name__, "rules": digest_value(rules), "special": special, "sides": sides}


def _write(source: Source, tokenizer: Any, target: Path) -> None:
    splits = source.read()
    if not len(splits.get("train", ())):
        raise refuse("data", "has no rows to train on")
    names = source.label_names() if source.task != "causal_lm" else []
    counted = ("rows", "labelled", "noisy", "tokens", "bytes", "duplicates", "shortened")
    summary: dict[str, Any] = {name: {} for name in counted} | {"warnings": []}
    with folder_atomic(target) as folder:
        for split, rows in splits.items():
            if source.task == "causal_lm":
                arrays, lines, shortened = _blocks(
                    rows, tokenizer, _bound(source, "block_size"), split, getattr(source, "limit", None)
                )
            else:
                arrays, found, shortened = samples(rows, tokenizer, _bound(source, "max_length"), names, source.task)
                lines = [_line(**row) for row in found]
            if not lines:
                continue
            (folder / split).mkdir()
            arrays["row_offsets"] = np.cumsum([0] + [len(line) for line in lines], dtype=np.int64)
            for name, array in arrays.items():
                np.save(folder / split / f"{name}.npy", array)
            (folder / split / "rows.jsonl").write_bytes(b"".join(lines))
            duplicates = count_duplicates(splits["train"], rows) if split != "train" else 0
            figures = {"rows": len(lines), "tokens": len(arrays["tokens"]), "bytes": int(arrays["num_bytes"].sum())}
            figures |= {"duplicates": duplicates, "shortened": shortened}
            figures["labelled"] = sum(label is not None for label in rows.labels or [])
            figures["noisy"] = sum(label is not None for label in rows.true_labels or [])
            for name, value in figures.items():
                summary[name][split] = value
            if split == "train":
                summary["warnings"] += sentences(rows)
            summary["warnings"] += _warnings(split, len(rows), duplicates, shortened, getattr(source, "max_length", 0))
        if "train" not in summary["rows"]:
            raise refuse("data", "is too short: the training text gives no block of two tokens")
        write_json(folder / "summary.json", {"task": source.task, "label_names": names, "summary": summary})


def _bound(source: Source, name: str) -> int:
    value = getattr(source, name, None)
    assert isinstance(value, int), f"a source of the task {source.task} has {name}"
    return value


def _warnings(split: str, rows: int, duplicates: int, shortened: int, max_length: int) -> Iterator[str]:
    if duplicates:
        yield f"{duplicates} of {rows} {split} rows have a text that is in the training rows too: their score says little about new texts"
    if shortened > 0.05 * rows:
        yield f"{shortened} of {rows} {split} rows are longer than data.max_length={max_length} tokens and were cut"


def _line(**row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _blocks(
    rows: Rows, tokenizer: Any, block_size: int, split: str, limit: int | None
) -> tuple[dict[str, np.ndarray], list[bytes], int]:
    """Documents end to end in fixed blocks; of more than `limit` blocks, the first in hash order stay."""
    parts, ends, stream = [], [], bytearray()  # tokens; where in the stream of bytes each token ends
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in rows.texts:
        for piece in pieces(text):
            encoded = tokenizer(
                piece, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
            )
            ids = encoded["input_ids"]
            ends.append(
                len(stream)
                + token_ends(piece, [end for _, end in encoded["offset_mapping"]] if tokenizer.is_fast else len(ids))
            )
            parts.append(np.array(ids, dtype=np.int32))
            stream += piece.encode("utf-8", "replace")
        parts.append(np.array(eos, dtype=np.int32))
        ends.append(np.full(len(eos), len(stream), dtype=np.int64))  # the end of a document stands for no bytes
    tokens, end = np.concatenate(parts), np.concatenate(ends)
    starts = np.arange(0, len(tokens), block_size)
    starts = starts[np.minimum(starts + block_size, len(tokens)) - starts >= 2]  # one token alone predicts nothing
    blocks = [(int(s), int(min(s + block_size, len(tokens)))) for s in starts]
    names = Rows([f"{split}:{i}" for i in range(len(blocks))], [""] * len(blocks))
    kept = {name: i for i, name in enumerate(names.ids)}
    blocks = [blocks[kept[name]] for name in limit_rows(names, limit).ids]
    lines = []
    for start, stop in blocks:
        first = int(end[start - 1]) if start else 0
        lines.append(
            _line(
                id=f"{split}:{start // block_size}", text=stream[first : int(end[stop - 1])].decode("utf-8", "replace")
            )
        )
    arrays = {
        "tokens": np.concatenate([tokens[start:stop] for start, stop in blocks] or [tokens[:0]]),
        "offsets": np.cumsum([0] + [stop - start for start, stop in blocks], dtype=np.int64),
        "labels": np.full(len(blocks), IGNORE, dtype=np.int64),
        "num_bytes": np.array([end[stop - 1] - end[start] for start, stop in blocks], dtype=np.int64),
    }
    return arrays, lines, 0


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of about `PIECE` characters that end at a line's end where there is one."""
    start = 0
    while len(text) - start > PIECE:
        cut = text.rfind("\n", start, start + PIECE) + 1
        cut = cut if cut > start else start + PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def token_ends(text: str, ends: list[int] | int) -> np.ndarray:
    """Where in the UTF-8 bytes of `text` each token ends; a byte no token covers counts to the token after it, at the end to the last one.

    Args:
        text: what was tokenised.
        ends: the character at which each token ends; or how many tokens there are, to share the bytes out evenly.

    >>> token_ends("aé b", [2, 4]).tolist(), token_ends("abcd", 2).tolist()
    ([3, 5], [2, 4])
    """
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    total = np.concatenate([[0], np.cumsum(widths)])
    if isinstance(ends, int):
        return np.arange(1, ends + 1, dtype=np.int64) * int(total[-1]) // max(1, ends)
    result = np.maximum.accumulate(total[np.array(ends, dtype=np.int64)]) if ends else np.zeros(0, dtype=np.int64)
    if len(result):
        result[-1] = total[-1]
    return result
