"""Token stores against rows worked by hand, and their cache."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from distill_system.data import tokens
from distill_system.data.base import Rows
from distill_system.data.table import Table
from distill_system.errors import Refusal


@dataclass
class Fixed:
    """A source of given rows that counts how often it is read."""

    splits: dict
    task: str = "classification"
    max_length: int = 6
    block_size: int = 4
    reads: list = field(default_factory=list)

    def label_names(self):
        return ["no", "yes"]

    def read(self):
        self.reads.append(1)
        return self.splits

    def fingerprint(self):
        return {"splits": str(self.splits)}


def rows(*texts, labels=None, pairs=None):
    return Rows([f"r{i}" for i in range(len(texts))], list(texts), pairs, labels)


def test_samples_by_hand(cache, tokenizer):
    source = Fixed({"train": rows("a b", "c d e f g h", labels=["yes", None]), "test": rows("A  b", labels=["no"])})
    stores = tokens.tokenise(source, tokenizer)
    train = stores["train"]
    assert train.tokens.tolist() == [2, 5, 6, 3, 2, 7, 8, 9, 10, 3]
    assert train.tokens.dtype == np.int32
    assert train.offsets.tolist() == [0, 4, 10]
    assert train.lengths.tolist() == [4, 6]
    assert train.labels.tolist() == [1, -100]
    assert train.type_ids is None
    assert (train.text(1), train.ids) == ("c d e f g h", ["r0", "r1"])
    assert stores.label_names == ["no", "yes"]
    assert set(stores) == {"train", "test"}
    assert stores.summary["shortened"] == {"train": 1, "test": 0}
    assert stores.summary["duplicates"] == {"train": 0, "test": 1}  # letter case and spaces don't make another text
    assert [w.split()[0] for w in stores.summary["warnings"]] == ["1", "1"]
    assert "1 of 1 test rows have a text that is in the training rows" in stores.summary["warnings"][1]


def test_pairs_carry_type_ids(cache, tokenizer):
    store = tokens.tokenise(Fixed({"train": rows("a", pairs=["b c"], labels=["no"])}), tokenizer)["train"]
    assert store.tokens.tolist() == [2, 5, 3, 6, 7, 3]
    assert store.type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert store.text(0) == "a | b c"


def test_blocks_by_hand(cache, tokenizer):
    source = Fixed({"train": rows("a b c", "dé e\nf"), "test": rows("a")}, task="causal_lm")
    stores = tokens.tokenise(source, tokenizer)
    train = stores["train"]
    # a b c <eos> | [UNK] e f <eos>; "dé" has three bytes, and the bytes of white space count to the token after it
    assert train.tokens.tolist() == [5, 6, 7, 4, 1, 9, 10, 4]
    assert train.offsets.tolist() == [0, 4, 8]
    assert train.num_bytes.tolist() == [len(" b c"), len(" e\nf")]
    assert [train.text(0), train.text(1)] == ["a b c", "dé e\nf"]
    assert train.labels.tolist() == [-100, -100]
    assert stores["test"].tokens.tolist() == [5, 4]
    assert stores.label_names == []


def test_last_block_of_one_token_is_dropped_and_short_one_kept(cache, tokenizer):
    lengths = {
        n: tokens.tokenise(Fixed({"train": rows(" ".join("a" * n))}, "causal_lm"), tokenizer)["train"].lengths.tolist()
        for n in (5, 8)
    }
    assert lengths == {5: [4, 2], 8: [4, 4]}  # with the end of the document 6 and 9 tokens


def test_bytes_of_all_tokens_are_the_bytes_of_the_text(cache, tokenizer):
    text = "a é 😀 b\n\nc  "
    store = tokens.tokenise(Fixed({"train": rows(text)}, "causal_lm", block_size=50), tokenizer)["train"]
    assert store.num_bytes.tolist() == [len(text.encode()) - len("a")]


def test_pieces_join_to_the_text(monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 7)
    for text in ("", "abc", "ab\ncd\nefghijklmnopq\n\nr", "x" * 30):
        parts = list(tokens.pieces(text))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 7
    assert list(tokens.pieces("ab\ncd\nefg")) == ["ab\ncd\n", "efg"]


def test_cache_is_keyed_by_content_settings_and_tokenizer(cache, tokenizer):
    source = Fixed({"train": rows("a b c d", labels=["no"])})
    first = tokens.tokenise(source, tokenizer)
    assert tokens.tokenise(source, tokenizer).digest == first.digest
    assert len(source.reads) == 1
    digests = {first.digest}
    digests.add(tokens.tokenise(Fixed(source.splits, max_length=5), tokenizer).digest)
    digests.add(tokens.tokenise(Fixed({"train": rows("a b c e", labels=["no"])}), tokenizer).digest)
    other = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token="h", pad_token="[PAD]"
    )
    digests.add(tokens.tokenise(source, other).digest)
    assert len(digests) == 4
    assert sorted(path.name for path in (cache / "tokens").iterdir() if path.is_dir()) == sorted(digests)


def test_fingerprint_forgets_the_last_call(tokenizer):
    before = tokens.tokenizer_fingerprint(tokenizer)
    tokenizer(["a b c"], truncation=True, max_length=3, padding="max_length")
    assert tokens.tokenizer_fingerprint(tokenizer) == before


def test_nothing_to_train_on_leaves_nothing(cache, tokenizer):
    with pytest.raises(Refusal, match="no rows to train on"):
        tokens.tokenise(Fixed({"test": rows("a", labels=["no"])}), tokenizer)
    eos_less = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(Refusal, match="too short"):
        tokens.tokenise(Fixed({"train": rows("a")}, "causal_lm"), eos_less)
    assert not [path for path in (cache / "tokens").iterdir() if path.is_dir()]


def test_two_processes_write_once(cache, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"a b {i},{i % 2}\n" for i in range(30)))
    code = (
        "from transformers import AutoTokenizer\n"
        "from distill_system.data import table, tokens\n"
        "real = tokens._write\n"
        "tokens._write = lambda *a: print('write') or real(*a)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / 'tokenizer')!r})\n"
        f"print(tokens.tokenise(table.Table({str(tmp_path / 'data.csv')!r}), tokenizer).digest)\n"
    )
    start = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert sorted(map(len, printed)) == [1, 2]
    assert len({lines[-1] for lines in printed}) == 1


def test_table_through_to_labels(cache, tokenizer, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"a b {i},{(i % 3) + 9}\n" for i in range(60)))
    stores = tokens.tokenise(Table(str(path)), tokenizer)
    assert stores.label_names == ["9", "10", "11"]
    store = stores["test"]
    for i in range(len(store)):
        number = int(store.text(i).split()[-1])
        assert store.labels[i] == number % 3
