"""Several teachers of one phase, from the settings to the artifact: weights, partial knowledge, quality, disputes, and data of a phase's own."""

import json

import pytest

from distill_system.errors import Refusal
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.phases.distill import Distill
from tests.phases.work import context, knowing_teacher, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    knowing_teacher(folder / "one", seed=5)
    knowing_teacher(folder / "other", seed=6)
    model, tokenizer = recipe().build(task="classification", label_names=["red", "blue"], seed=7)
    model.save_pretrained(folder / "part")
    tokenizer.save_pretrained(folder / "part")
    return folder


def run(where, folder, names, ensemble=None, losses=None, **more):
    made = context(where, "student", kind="distill")
    teachers = {name: {"model": str(folder / name)} | more.get(name, {}) for name in names}
    chosen = losses or {"soft": SoftTarget(2.0), "hard": HardLabel()}
    phase = Distill(
        "distill", teachers, chosen, model=recipe(), ensemble=ensemble, disputes=more.get("disputes", False)
    )
    return made, phase.run(made)


def first_line(made):
    return next(line for line in made.lines if "loss" in line)


def test_each_teacher_is_measured_and_the_student_against_each(folder, tmp_path):
    made, result = run(tmp_path, folder, ["one", "other"])
    assert list(result.evaluation["teachers"]) == ["one", "other"]
    assert set(result.evaluation["teacher"]["other"]) == {"agreement", "kl"}
    assert {key for key in first_line(made) if key.startswith("loss/")} == {"loss/soft", "loss/hard"}


def test_a_teacher_of_weight_nought_says_nothing(folder, tmp_path):
    alone, _ = run(tmp_path / "a", folder, ["one"])
    both, _ = run(tmp_path / "b", folder, ["one", "other"], other={"weight": 0.0})
    apart, _ = run(tmp_path / "c", folder, ["one", "other"], {"combine": "losses"}, other={"weight": 0.0})
    expected = first_line(alone)["loss/soft"]
    assert first_line(both)["loss/soft"] == pytest.approx(expected, rel=1e-5)
    assert first_line(apart)["loss"] == pytest.approx(first_line(alone)["loss"], rel=1e-6)


def test_losses_of_each_teacher_are_told_apart(folder, tmp_path):
    made, _ = run(tmp_path, folder, ["one", "other"], {"combine": "losses"}, one={"weight": 3.0})
    line = first_line(made)
    expected = 0.75 * line["loss/soft/one"] + 0.25 * line["loss/soft/other"] + line["loss/hard"]
    assert line["loss"] == pytest.approx(expected, rel=1e-6)


def test_quality_decides_the_weights_and_is_told(folder, tmp_path):
    made, _ = run(tmp_path, folder, ["one", "other"], {"weighting": "quality"})
    (note,) = [note for note in made.notes if "by quality" in note]
    shares = [float(word.rstrip(",")) for word in note.split() if word.rstrip(",").replace(".", "").isdigit()]
    assert sum(shares) == pytest.approx(1, abs=2e-3)
    assert shares[0] != pytest.approx(shares[1], abs=1e-3)


def test_a_teacher_of_some_classes_teaches_those(folder, tmp_path):
    made, result = run(tmp_path, folder, ["part"])
    assert any("knows 2 of 3 labels (red, blue) and teaches those" in warning for warning in made.warnings)
    assert result.artifact is not None
    assert all(0 <= line["loss/soft"] < 10 for line in made.lines if "loss" in line)


def test_beside_another_it_must_speak_for_itself(folder, tmp_path):
    with pytest.raises(Refusal, match=r"ensemble\.combine: is probabilities, but teacher part knows only some"):
        run(tmp_path, folder, ["one", "part"])
    made, _ = run(tmp_path / "apart", folder, ["one", "part"], {"combine": "losses", "weighting": "confidence"})
    assert first_line(made)["loss/soft/part"] > 0


def test_disputed_labels_are_listed(folder, tmp_path):
    made, _ = run(tmp_path, folder, ["one"], disputes=True)
    content = json.loads((made.folder / "disputes.json").read_text())
    lines = (made.folder / "disputes.csv").read_text(encoding="utf-8-sig").splitlines()
    assert content["teacher"] == "one"
    assert len(lines) == 1 + content["disputed"]
    with pytest.raises(Refusal, match="knows only part of the classes"):
        run(tmp_path / "part", folder, ["part"], disputes=True)
