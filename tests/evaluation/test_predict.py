"""Predictions: in the order of samples, each once, whatever the ranks and batches; sums of a language model against a plain loop."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from distill_system import distributed
from distill_system.evaluation import predict as module
from distill_system.evaluation.predict import evaluation_mode, language_sums, predict

sys.path.insert(0, str(Path(__file__).parent))
import predict_rank as tiny


def test_classification_in_the_order_of_samples():
    predictions = tiny.run("classification")
    tokens = torch.cat([batch["input_ids"] for batch in tiny.batches("classification")])
    assert predictions.index_N.tolist() == list(range(tiny.SAMPLES))
    assert predictions.classes == tiny.CLASSES
    assert torch.equal(predictions.labels_N, tokens[:, 1])
    assert torch.equal(predictions.logits_NC, tiny.Model("classification", 1).table.detach()[tokens[:, 0]])
    assert torch.equal(predictions.teacher_logits["main"], tiny.Model("classification", 2).table.detach()[tokens[:, 0]])


@pytest.mark.parametrize("piece", [1, 7, 40, 2**24])
def test_language_sums_against_a_plain_loop(monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)  # logits worked on at once must not matter
    predictions = tiny.run("causal_lm")
    student, teacher = (tiny.Model("causal_lm", seed).table.detach().double().log_softmax(-1) for seed in (1, 2))
    nll = teacher_nll = tokens = same = kl = 0.0
    for batch in tiny.batches("causal_lm", batch_size=1):
        row = batch["input_ids"][0][: int(batch["attention_mask"].sum())].tolist()
        for now, after in itertools.pairwise(row):
            tokens += 1
            nll -= student[now, after].item()
            teacher_nll -= teacher[now, after].item()
            same += student[now].argmax().item() == teacher[now].argmax().item()
            kl += F.kl_div(student[now], teacher[now], reduction="sum", log_target=True).item()
    assert predictions.sums == {"nll": pytest.approx(nll, rel=1e-6), "tokens": tokens}
    expected = {"nll": pytest.approx(teacher_nll, rel=1e-6), "agreement": same, "kl": pytest.approx(kl, rel=1e-5)}
    assert predictions.teacher_sums == {"main": expected}
    assert predictions.index_N.tolist() == list(range(tiny.SAMPLES))


def test_logits_may_come_with_or_without_the_last_position():
    model = tiny.Model("causal_lm", 1)
    whole = predict(model, tiny.batches("causal_lm"), "causal_lm", "cpu")
    cut = predict(lambda batch: model(batch)[:, :-1], tiny.batches("causal_lm"), "causal_lm", "cpu", modules=[model])
    assert cut.sums == whole.sums
    with pytest.raises(AssertionError):
        predict(lambda batch: model(batch)[:, :-2], tiny.batches("causal_lm"), "causal_lm", "cpu", modules=[model])


def test_words_with_a_tag_in_their_order():
    predictions = tiny.run("token_classification", batch_size=3)
    rows = [row for batch in tiny.batches("token_classification", batch_size=1) for row in batch["labels"]]
    known = [row[row != -100] for row in rows]
    assert len(known[2]) == 0  # a row without a tag is still counted
    assert predictions.index_N.tolist() == list(range(tiny.SAMPLES))
    assert torch.equal(predictions.labels_N, torch.cat(known))
    assert predictions.samples_P.tolist() == [i for i, row in enumerate(known) for _ in row]
    assert torch.equal(
        predictions.logits_NC, tiny.Model("token_classification", 1).table.detach()[predictions.labels_N]
    )


@pytest.mark.parametrize("task", tiny.TASKS)
def test_batches_of_any_size_give_the_same(task):
    reference = tiny.run(task, batch_size=1)
    for batch_size in (3, 100):
        other = tiny.run(task, batch_size=batch_size)
        if task != "causal_lm":
            assert torch.equal(other.logits_NC, reference.logits_NC)
            assert torch.equal(other.labels_N, reference.labels_N)
        else:
            assert other.sums == pytest.approx(reference.sums)
            assert other.teacher_sums["main"] == pytest.approx(reference.teacher_sums["main"])


def test_filler_rows_are_dropped_and_lost_samples_noticed():
    share = list(tiny.batches("classification", rank=1, world=2))  # rows 1, 3, 5 and a filler
    model = tiny.Model("classification", 1)
    assert not share[-1]["valid"].all()
    assert predict(model, share, "classification", "cpu").index_N.tolist() == [1, 3, 5]
    with pytest.raises(AssertionError, match="3 of 7"):
        predict(model, share, "classification", "cpu", samples=7)
    with pytest.raises(AssertionError, match="twice"):
        predict(model, share + share, "classification", "cpu")
    with pytest.raises(AssertionError, match="modules"):
        predict(lambda batch: model(batch), share, "classification", "cpu")


def test_modes_are_restored_part_by_part_even_after_an_error():
    model = tiny.Model("classification", 1).train()
    model.dropout.eval()
    inside = []

    def fail():
        with evaluation_mode([model]):
            inside.append((model.training, model.dropout.training))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert inside == [(False, False)]
    assert model.training
    assert not model.dropout.training
    predict(model, tiny.batches("classification"), "classification", "cpu")
    assert model.training
    assert not model.dropout.training


def test_no_gradient_is_kept():
    model = tiny.Model("classification", 1)
    assert not predict(model, tiny.batches("classification"), "classification", "cpu").logits_NC.requires_grad
    model(next(iter(tiny.batches("classification")))).sum().backward()  # still trainable


def test_a_cut_word_costs_nothing_in_agreement():
    student, teacher = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    student[..., 2] = teacher[..., 2] = -torch.inf
    sums = language_sums(student, [teacher], torch.tensor([[0]]), torch.tensor([[True]]))
    assert sums.tolist() == pytest.approx([0.6931472, 1, 0.6931472, 1, 0])


def test_two_ranks_see_what_one_sees(tmp_path):
    port, program = distributed.free_port(), Path(tiny.__file__)
    ranks = []
    for rank in range(2):
        group = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(subprocess.Popen([sys.executable, str(program), str(tmp_path)], env=os.environ | group))
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    for rank in range(2):
        seen = dict(zip(tiny.TASKS, torch.load(tmp_path / f"{rank}.pt"), strict=True))
        for task in tiny.TASKS:
            alone, found = tiny.run(task), seen[task]
            assert found["index_N"].tolist() == list(range(tiny.SAMPLES))
            if task == "causal_lm":
                assert found["sums"] == pytest.approx(alone.sums)
                assert found["teacher_sums"]["main"] == pytest.approx(alone.teacher_sums["main"])
                continue
            assert torch.equal(found["labels_N"], alone.labels_N)
            assert torch.equal(found["logits_NC"], alone.logits_NC)
            assert torch.equal(found["teacher_logits"]["main"], alone.teacher_logits["main"])
