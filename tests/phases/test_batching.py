"""Whether members of a cohort run as one: measured and kept, refused in words, and never wrong."""

import json

import pytest
import torch

from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.phases import batching
from distill_system.phases.mutual import Mutual
from distill_system.training.batched import Batched
from distill_system.training.folded import CantBatch
from tests.phases.work import context, recipe


def run(folder, batched, **settings):
    members = {"a": recipe(), "b": recipe(**settings)}
    made = context(folder, "cohort", kind="mutual")
    phase = Mutual("mutual", members, {"hard": HardLabel()}, {"peer": SoftTarget(1.0)}, cohort={"batched": batched})
    return made, phase.run(made)


def members():
    return {f"m{i}": recipe().build(task="classification", num_labels=3, seed=i)[0].train() for i in range(2)}


def losses(made):
    return [line["loss"] for line in made.lines if "loss" in line]


def test_batched_members_learn_what_a_loop_s_learn(tmp_path):
    loop, _ = run(tmp_path / "loop", "never")
    batched, result = run(tmp_path / "batched", "always")
    assert losses(batched) == pytest.approx(losses(loop), rel=1e-5)
    assert list(result.members) == ["a", "b"]
    assert batched.notes == [note for note in batched.notes if "batched" not in note]


@pytest.mark.parametrize(("fast", "words"), [(1.0, "as one batched model"), (20.0, "one after the other")])
def test_auto_takes_the_faster_and_keeps_to_it(tmp_path, monkeypatch, fast, words):
    monkeypatch.setattr(batching, "measure", lambda *_: {"loop_ms": 10.0, "batched_ms": fast})
    made, _ = run(tmp_path, "auto")
    assert any(words in note for note in made.notes)
    kept = json.loads((made.folder / "batched.json").read_text())
    assert kept["batched"] is (fast < 9.5)
    monkeypatch.setattr(batching, "measure", lambda *_: pytest.fail("measured again"))
    again, _ = run(tmp_path, "auto")
    assert any(words in note for note in again.notes)


def test_members_that_differ_run_one_after_the_other(tmp_path):
    made, _ = run(tmp_path, "always", num_hidden_layers=2)
    assert any("run one after the other, because a and b differ in architecture" in note for note in made.notes)


def test_what_comes_out_wrong_is_not_used():
    """A language model's causal mask has no batched form in every release: whatever comes out is compared before it is trusted."""
    found = members()
    batched = Batched(found, "classification")
    ids = torch.randint(4, 200, (2, 5))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batching.check(batched, found, batch, "classification")
    wrong = Batched(found, "classification")
    wrong._run = lambda *given: batched._together(*given) + 0.01
    with pytest.raises(CantBatch, match="batched, m0 says something else"):
        batching.check(wrong, found, batch, "classification")


def test_a_measurement_leaves_no_gradient():
    found = members()
    ids = torch.randint(4, 200, (2, 5))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    times = batching.measure(Batched(found, "classification"), found, batch, "classification")
    assert min(times.values()) > 0
    assert all(p.grad is None for model in found.values() for p in model.parameters())
