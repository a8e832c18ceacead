"""What a phase leaves behind: a folder that plain transformers loads and that says what the live model said."""

import json

import pytest
import torch

from distill_system.artifacts import Artifact
from distill_system.data.tokens import tokenise
from distill_system.phases import finish
from distill_system.training.engine import PlainEngine
from tests.phases.work import COLOURS, context, finetune, recipe


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made, result = finetune(folder, settings={"architecture": "bert", "name": "someone/model"})
    return folder, made, result


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The same training once more, its engine caught before it is gone."""
    caught = {}
    original = finish.write_artifact

    def catching(given, trained, taken, folder):
        caught.update(context=given, trained=trained, logits=taken.probe_logits)
        return original(given, trained, taken, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_artifact", catching)
        finetune(tmp_path_factory.mktemp("again"))
    return caught


def test_plain_from_pretrained_gives_the_live_model_s_logits(done, live):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, made, _ = done
    model = AutoModelForSequenceClassification.from_pretrained(folder / "teacher" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher" / "model")
    store = tokenise(made.source, tokenizer)["test"]
    rows = [store.text(i) for i in range(finish.PROBE_ROWS)]
    with torch.no_grad():
        logits = model(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, live["logits"], rtol=1e-5, atol=1e-6)
    assert model.config.id2label == dict(enumerate(COLOURS))


def test_the_figures_are_those_of_the_test_rows(done):
    folder, _, result = done
    stored = json.loads((folder / "teacher" / "evaluation.json").read_text())
    assert stored == result.evaluation
    assert stored["split"] == "test"
    assert stored["metrics"]["samples"] == 11  # 12 rows, one of them without a label
    assert sum(bin_["count"] for bin_ in stored["calibration"]["bins"]) == 11
    assert stored["size"]["parameters"] == sum(
        p.numel() for p in recipe().build(task="classification", label_names=COLOURS)[0].parameters()
    )
    assert set(stored["latency"]) == {"batch_1", "batch_32"}
    predictions = json.loads((folder / "teacher" / "predictions.json").read_text())
    assert predictions["labels"] == COLOURS
    assert len(predictions["rows"]) == 12


def test_the_passport_says_where_it_came_from(done):
    folder, _, result = done
    artifact = Artifact.read(folder / "teacher" / "model")
    assert artifact.is_intact()
    assert artifact.digest == result.artifact.digest
    assert artifact.task == "classification"
    assert [(step["phase"], step["kind"], step["steps"]) for step in artifact.lineage] == [("teacher", "finetune", 4)]
    assert artifact.metrics["split"] == "test"
    assert artifact.passport["base_models"] == ["someone/model"]
    assert "someone/model" in (folder / "teacher" / "model" / "README.md").read_text()


def test_equal_trainings_give_equal_digests_whether_tokens_were_cached_or_not(done, live):
    assert Artifact.read(live["context"].folder / "model").digest == done[2].artifact.digest


@pytest.mark.parametrize("name", ["classifier.bias", "bert.encoder.layer.0.output.dense.bias"])
def test_a_tensor_that_changes_on_its_way_to_the_disk_is_found(tmp_path, monkeypatch, name):
    original = PlainEngine.whole_weights

    def tampered(self, role):
        for key, tensor in original(self, role):
            yield key, tensor + torch.arange(tensor.numel()) if key == name else tensor

    monkeypatch.setattr(PlainEngine, "whole_weights", tampered)
    with pytest.raises(RuntimeError, match="does not give the model's outputs after reloading"):
        finetune(tmp_path)
    assert not (tmp_path / "teacher" / "model").exists()
    assert not [path for path in (tmp_path / "teacher").iterdir() if path.name.startswith(".part-")]


def test_a_tensor_that_is_lost_on_its_way_is_found(tmp_path, monkeypatch):
    original = PlainEngine.whole_weights
    monkeypatch.setattr(
        PlainEngine,
        "whole_weights",
        lambda self, role: ((k, t) for k, t in original(self, role) if k != "classifier.bias"),
    )
    with pytest.raises(RuntimeError, match="missing keys"):
        finetune(tmp_path)
    assert not (tmp_path / "teacher" / "model").exists()


def test_a_phase_that_was_told_to_leave_writes_no_model_and_goes_on_later(tmp_path, done):
    asked = iter([False, True])
    _, result = finetune(tmp_path, stop_asked=lambda: next(asked))
    assert result.artifact is None
    assert result.outcome.preempted
    assert not (tmp_path / "teacher" / "model").exists()
    _, result = finetune(tmp_path)
    assert result.outcome.progress.resumes == 1
    assert result.artifact.digest == done[2].artifact.digest


def test_lineage_and_base_models_are_inherited(tmp_path, done):
    folder, _, first = done
    given = {"teachers.main.phase": {"phase": "teacher", "digest": first.artifact.digest}}
    given |= {"teachers.more.model": {"model": "other/teacher"}, "model.phase": given["teachers.main.phase"]}
    made = context(tmp_path, "student", {"teacher": folder / "teacher" / "model"}, kind="distill", inputs=given)
    model = made.folder / "model"
    recipe().build(task="classification", label_names=COLOURS)[0].save_pretrained(model)
    progress = type("Progress", (), {"step": 9})
    trained = type("Trained", (), {"outcome": type("Outcome", (), {"progress": progress})})
    evaluation = {"metrics": {"accuracy": 0.5}, "split": "test", "size": {}, "latency": {}, "teacher": {}}
    artifact = finish.record(made, trained, evaluation, model)
    assert [step.get("phase") or step["model"] for step in artifact.lineage] == ["teacher", "other/teacher", "student"]
    assert artifact.lineage[-1]["steps"] == 9
    assert artifact.passport["base_models"] == ["someone/model"]
