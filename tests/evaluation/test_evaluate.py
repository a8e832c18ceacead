"""evaluation.json from predictions, and a saved model evaluated on data whose labels are in another order than its own."""

import json
import math

import numpy as np
import pytest
import torch

from distill_system.data.base import Rows
from distill_system.errors import Refusal
from distill_system.evaluation.evaluate import evaluate_folder, finite, phase_evaluation, prediction_rows
from distill_system.evaluation.predict import Predictions
from distill_system.models.tokenizers import byte_tokenizer

NAMES = ["bad", "good"]


def classes():
    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]]).log()
    teacher = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8]]).log()
    return Predictions(
        "classification", 2, torch.tensor([0, 1, 2]), torch.tensor([0, 1, -100]), logits, {"main": teacher}
    )


class Store:
    """The part of a TokenStore that reports read."""

    def row(self, i):
        return {"id": f"row{i}", "text": self.text(i)}

    def text(self, i):
        return f"text {i}"


def test_phase_evaluation_of_a_classifier():
    figures = phase_evaluation(classes(), split="test", label_names=NAMES)
    assert (figures["task"], figures["split"]) == ("classification", "test")
    assert figures["metrics"]["accuracy"] == 1.0
    assert figures["metrics"]["samples"] == 2
    assert figures["teacher"]["main"]["agreement"] == pytest.approx(2 / 3)  # over unlabelled rows too
    assert figures["teachers"]["main"]["accuracy"] == 0.5
    assert figures["teachers"]["main"]["chance"] == 0.5
    assert figures["confusion"] == {"labels": NAMES, "matrix": [[1, 0], [0, 1]]}
    assert sum(entry["count"] for entry in figures["calibration"]["bins"]) == 2
    json.dumps(figures, allow_nan=False)


def test_phase_evaluation_of_a_language_model():
    sums = {"nll": 4 * math.log(8), "tokens": 4}
    predictions = Predictions("causal_lm", 10, torch.tensor([0, 2]), sums=sums)
    predictions.teacher_sums = {"main": {"nll": 4 * math.log(2), "agreement": 3.0, "kl": 0.8}}
    figures = phase_evaluation(predictions, split="validation", num_bytes_N=np.array([2, 1000, 4]))
    assert figures["metrics"] == pytest.approx({"perplexity": 8, "bits_per_byte": 2, "nll": math.log(8), "tokens": 4})
    assert figures["teacher"]["main"] == pytest.approx({"agreement": 0.75, "kl": 0.2})
    assert figures["teachers"]["main"]["perplexity"] == pytest.approx(2)
    assert figures["teachers"]["main"]["chance"] == 10
    assert "confusion" not in figures
    assert "calibration" not in figures


def test_rows_of_a_report():
    rows = prediction_rows(classes(), Store(), NAMES)["rows"]
    assert rows[1] == {
        "id": "row1",
        "text": "text 1",
        "label": "good",
        "prediction": "good",
        "confidence": pytest.approx(0.7),
        "teacher_prediction": "bad",
        "teacher_confidence": pytest.approx(0.6),
    }
    assert rows[2]["label"] is None
    assert [row["id"] for row in prediction_rows(classes(), Store(), NAMES, limit=2)["rows"]] == ["row0", "row2"]
    alone = classes()
    alone.teacher_logits = {}
    assert prediction_rows(alone, Store(), NAMES)["rows"][0]["teacher_prediction"] is None


def test_finite():
    assert finite({"a": math.nan, "b": [math.inf, 1, "x", None]}) == {"a": None, "b": [None, 1, "x", None]}


class Words:
    """A source whose label is the first word of the text."""

    task = "classification"
    max_length = 24

    def __init__(self, names=NAMES):
        self.names = names

    def problems(self, key="data"):
        return []

    def label_names(self):
        return self.names

    def rows(self, split, count):
        labels = [self.names[i % 2] for i in range(count)]
        return Rows(
            [f"{split}{i}" for i in range(count)],
            [f"{label} film {split} {i}" for i, label in enumerate(labels)],
            labels=labels,
        )

    def read(self):
        return {"train": self.rows("train", 4), "test": self.rows("test", 9)}

    def fingerprint(self):
        return {"names": self.names}


class Prose:
    task = "causal_lm"
    block_size = 16

    def problems(self, key="data"):
        return []

    def label_names(self):
        return []

    def read(self):
        return {
            split: Rows([split], [f"a text for {split}, long enough for some blocks of bytes"])
            for split in ("train", "test")
        }

    def fingerprint(self):
        return {"prose": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A classifier that knows its classes by name in the other order, a teacher with the same weights, and a language model."""
    import transformers

    base, tokenizer = tmp_path_factory.mktemp("models"), byte_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(max_position_embeddings=24, **sizes))
    bert.config.id2label, bert.config.label2id = {0: "Good", 1: "bad"}, {"Good": 0, "bad": 1}
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(tie_word_embeddings=True, max_position_embeddings=32, **sizes)
    )
    for name, model in (("classifier", bert), ("lm", llama)):
        model.save_pretrained(base / name)
        tokenizer.save_pretrained(base / name)
    return base


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))


@pytest.fixture(autouse=True)
def _no_long_timing(monkeypatch):
    from distill_system.evaluation import evaluate

    whole = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", lambda *args, **kwargs: whole(*args, budget_s=0.2, **kwargs))


def test_a_folder_is_evaluated_with_labels_matched_by_name(folders):
    import transformers

    figures = evaluate_folder(folders / "classifier", Words(), teacher=folders / "classifier", batch_size=4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders / "classifier").eval()
    right, tokenizer = 0, byte_tokenizer()
    for text, label in zip(Words().read()["test"].texts, Words().read()["test"].labels, strict=True):
        encoded = tokenizer(text, truncation=True, max_length=24, return_tensors="pt", return_token_type_ids=False)
        answer = model(**encoded).logits.argmax(-1).item()
        right += model.config.id2label[answer].lower() == label
    assert figures["metrics"]["accuracy"] == pytest.approx(right / 9)
    assert figures["metrics"]["samples"] == 9
    assert figures["confusion"]["labels"] == NAMES
    assert figures["teacher"]["teacher"] == pytest.approx({"agreement": 1.0, "kl": 0.0}, abs=1e-6)
    assert figures["size"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert figures["latency"]["batch_32"]["samples_per_s"] > 0
    json.dumps(figures, allow_nan=False)


def test_limit_and_splits(folders):
    assert evaluate_folder(folders / "classifier", Words(), limit=5)["metrics"]["samples"] == 5
    with pytest.raises(Refusal, match=r"split: is 'validation'.*train, test"):
        evaluate_folder(folders / "classifier", Words(), split="validation")


def test_a_language_model_against_its_own_loss(folders):
    import transformers

    figures = evaluate_folder(folders / "lm", Prose(), teacher=folders / "lm")
    model = transformers.AutoModelForCausalLM.from_pretrained(folders / "lm").eval()
    text = Prose().read()["test"].texts[0]
    tokenizer = byte_tokenizer()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    blocks = [torch.tensor([ids[start : start + 16]]) for start in range(0, len(ids), 16)]
    losses = [
        (model(input_ids=block, labels=block).loss.item(), block.shape[1] - 1) for block in blocks if block.shape[1] > 1
    ]
    nll = sum(loss * tokens for loss, tokens in losses)
    assert figures["metrics"]["tokens"] == sum(tokens for _, tokens in losses)
    assert figures["metrics"]["nll"] == pytest.approx(nll / figures["metrics"]["tokens"], rel=1e-5)
    # A token is a byte; the end token stands for none, unless a block starts with it.
    num_bytes = figures["metrics"]["tokens"] - (len(ids) % 16 != 1)
    assert figures["metrics"]["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-5)
    assert figures["teacher"]["teacher"] == pytest.approx({"agreement": 1.0, "kl": 0.0}, abs=1e-6)


def test_what_does_not_fit_is_refused_in_words(folders, tmp_path):
    with pytest.raises(Refusal, match=r"path: has no label 'ugly'"):
        evaluate_folder(folders / "classifier", Words(["bad", "ugly"]))
    with pytest.raises(Refusal, match=r"path: has 2 labels .* the data has 3"):
        evaluate_folder(folders / "classifier", Words(["bad", "good", "so so"]))
    with pytest.raises(Refusal, match=r"path: .* classification head"):
        evaluate_folder(folders / "lm", Words())
    with pytest.raises(Refusal, match=r"path: .* not a folder"):
        evaluate_folder(tmp_path / "nothing", Words())
    (tmp_path / "model").symlink_to(folders / "classifier")
    with pytest.raises(Refusal, match=r"did you mean '.*/model'"):
        evaluate_folder(tmp_path, Words())
    longer = Words()
    longer.max_length = 100
    longer.rows = lambda split, count: Rows(["1", "2"], ["good " + "x" * 99, "bad"], labels=["good", "bad"])
    with pytest.raises(Refusal, match=r"room for 24 tokens, the longest row has 100; set data.max_length=24"):
        evaluate_folder(folders / "classifier", longer)


def test_damaged_weights_are_refused(folders, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders / "classifier" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folders / "classifier" / "model.safetensors").read_bytes()[:500])
    with pytest.raises(Refusal, match="can't be loaded"):
        evaluate_folder(tmp_path, Words())
