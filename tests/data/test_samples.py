"""Arrays of the tasks with several labels, numbers and tags, and the batches made of them."""

import doctest
import math

import numpy as np
import pytest

from distill_system.data import samples, tokens
from distill_system.data.base import Rows
from distill_system.data.collate import collate
from distill_system.errors import Refusal
from tests.data.test_tokens import Fixed


@pytest.fixture(scope="session")
def pieces():
    """A tokenizer that cuts words into letters: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, <eos> 4, a=5, ##b=6, c=7."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>", "a", "##b", "c"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "eos_token": "<eos>",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_doctests():
    assert doctest.testmod(samples).failed == 0


def stores_of(rows, tokenizer, task):
    return tokens.tokenise(Fixed({"train": rows}, task), tokenizer)["train"]


def test_several_labels(cache, tokenizer):
    rows = Rows(["0", "1", "2"], ["a", "b c", "d"], None, [["yes", "no"], None, []])
    store = stores_of(rows, tokenizer, "multi_label")
    assert store.labels.dtype == np.float32
    assert store.labelled.tolist() == [True, False, True]
    batch = collate(store, [0, 1, 2, -1], 0)
    assert batch["labels"].shape == (4, 2)
    assert batch["labels"][0].tolist() == [1, 1]
    assert batch["labels"][2].tolist() == [0, 0]
    assert batch["labels"].isnan().all(dim=1).tolist() == [False, True, False, True]  # unknown, and filler
    assert batch["valid"].tolist() == [True, True, True, False]


def test_numbers(cache, tokenizer):
    store = stores_of(Rows(["0", "1"], ["a", "b"], None, [1.5, None]), tokenizer, "regression")
    assert store.labels.shape == (2, 1)
    batch = collate(store, [0, 1, -1], 0)
    assert batch["labels"][0].item() == 1.5
    assert all(math.isnan(batch["labels"][i].item()) for i in (1, 2))


def test_tags_stand_on_the_first_piece(cache, pieces):
    words = [["ab", "c", "abb"], ["c"], ["a", "c"]]
    rows = Rows(
        ["0", "1", "2"],
        [" ".join(row) for row in words],
        None,
        [["yes", "no", "yes"], None, ["yes", None]],
        None,
        words,
    )
    store = stores_of(rows, pieces, "token_classification")  # cut at 6 tokens
    assert store.tokens[: store.lengths[0]].tolist() == [2, 5, 6, 7, 5, 3]
    assert store.labels[: store.lengths[0]].tolist() == [-100, 1, -100, 0, 1, -100]
    assert store.labelled.tolist() == [True, False, True]
    assert store.row(0)["words"] == words[0]
    assert "tagged" not in store.row(0)
    assert store.row(2)["tagged"] == [0]
    batch = collate(store, [2, 0, -1], 0)
    assert batch["labels"].tolist() == [[-100, 1, -100, -100, -100, -100], [-100, 1, -100, 0, 1, -100], [-100] * 6]


def test_a_tokenizer_that_doesn_t_know_its_words_is_refused(cache, pieces, monkeypatch):
    rows = Rows(["0"], ["a"], None, [["yes"]], None, [["a"]])
    monkeypatch.setattr(type(pieces), "is_fast", property(lambda self: False))
    with pytest.raises(Refusal, match="needs a tokenizer that says which word a token is of"):
        samples.samples(rows, pieces, 6, ["no", "yes"], "token_classification")


def test_noise_is_counted_and_its_rows_are_known(cache, tokenizer):
    rows = Rows(["0", "1"], ["a", "b"], None, ["yes", "no"], ["no", None])
    stores = tokens.tokenise(Fixed({"train": rows}), tokenizer)
    assert stores.summary["noisy"] == {"train": 1}
    assert stores.summary["labelled"] == {"train": 2}
    assert [stores["train"].row(i).get("true_label") for i in (0, 1)] == ["no", None]
    assert "1 of 2 training rows have a wrong label on purpose" in stores.summary["warnings"][0]
