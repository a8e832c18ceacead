"""Heads of the tasks with several labels, numbers and tags: made, kept, put in the data's order, or refused."""

import pytest
import torch

from distill_system.artifacts import AUTO_CLASSES, PIPELINE_TAGS
from distill_system.errors import Refusal
from distill_system.evaluation.names import METRICS
from distill_system.export.dense import load, save_model
from distill_system.models.common import resolve_labels
from distill_system.models.pretrained import Pretrained
from tests.models import tiny

TASKS = ["multi_label", "regression", "token_classification"]
NAMES = {"multi_label": ["x", "y", "z"], "regression": [], "token_classification": ["O", "B-x", "I-x"]}
KIND = {"multi_label": "multi_label_classification", "regression": "regression", "token_classification": None}


def make(path, task, architecture="bert"):
    model, tokenizer = tiny.recipe(architecture).build(task=task, label_names=NAMES[task], seed=1)
    save_model(path, model, tokenizer)
    return model, tokenizer


def test_every_task_has_a_class_and_a_tag():
    assert set(AUTO_CLASSES) == set(PIPELINE_TAGS) == set(METRICS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
def test_new_and_reloaded(tmp_path, task, architecture):
    model, tokenizer = make(tmp_path / "m", task, architecture)
    inputs = tiny.batch(tokenizer)
    width = max(1, len(NAMES[task]))
    assert tiny.logits(model, inputs).shape == (
        2,
        *([inputs["input_ids"].shape[1]] if task == "token_classification" else []),
        width,
    )
    again = load(tmp_path / "m", task)
    torch.testing.assert_close(tiny.logits(again, inputs), tiny.logits(model, inputs))
    assert again.config.problem_type == KIND[task]
    assert again.config.num_labels == width


@pytest.mark.parametrize("task", TASKS)
def test_a_trained_head_is_kept(tmp_path, task):
    model, tokenizer = make(tmp_path / "m", task)
    inputs = tiny.batch(tokenizer)
    expected = tiny.logits(model, inputs)
    for names in (NAMES[task], None):  # a student's, and a teacher's that says itself what it knows
        kept, _ = Pretrained(name=str(tmp_path / "m")).build(task=task, label_names=names, seed=5)
        torch.testing.assert_close(tiny.logits(kept, inputs), expected)
    if task != "regression":
        turned, _ = Pretrained(name=str(tmp_path / "m")).build(task=task, label_names=NAMES[task][::-1], seed=5)
        torch.testing.assert_close(tiny.logits(turned, inputs), expected.flip(-1))


@pytest.mark.parametrize("task", TASKS)
def test_a_head_of_another_task_is_replaced_and_can_t_teach(tmp_path, task, caplog):
    tiny.folder(tmp_path / "m", "bert")
    source = Pretrained(name=str(tmp_path / "m"))
    with pytest.raises(Refusal, match=r"can't teach|has no head for tags"):
        source.build(task=task, label_names=None)
    names = tiny.LABELS if task != "regression" else []
    model, _ = source.build(task=task, label_names=names, seed=3)
    assert model.config.num_labels == max(1, len(names))
    assert model.config.problem_type == KIND[task]
    body = source.build(task="classification", label_names=tiny.LABELS)[0].bert.embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, body)
    if task != "token_classification":
        assert "its head is replaced by a new one" in caplog.text
        same, _ = source.build(task="classification", label_names=tiny.LABELS)
        if task == "multi_label":
            assert not torch.equal(model.classifier.weight, same.classifier.weight)


def test_labels_by_task():
    assert resolve_labels("regression", [], None) == ["LABEL_0"]
    assert resolve_labels("regression", None, None) is None
    assert resolve_labels("multi_label", ["a"], None) == ["a"]
    assert resolve_labels("causal_lm", ["a"], 1) is None
