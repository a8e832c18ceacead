"""Chains of assistants: who teaches whom, what is skipped and resumed, what the passports say, and whether the detour paid."""

import functools
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distill_system.artifacts import Artifact
from distill_system.data.tokens import tokenise
from distill_system.errors import Refusal
from distill_system.losses.hint import Hint
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.models.from_layers import FromLayers
from distill_system.phases import finish, steps
from distill_system.phases.assistants import Assistants
from distill_system.phases.distill import Distill
from tests.phases.work import context, knowing_teacher, losses, recipe, source

TRAIN = {"max_steps": 4, "checkpoint_every": 2, "flush_every": 1}
LOSSES = {"soft": SoftTarget(2.0), "hard": HardLabel(weight=0.5)}


@pytest.fixture(autouse=True, scope="module")
def quick_latency():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "measure", functools.partial(finish.measure, budget_s=0.01))
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Of width 24 and two layers; the student has width 16 and one."""
    return knowing_teacher(tmp_path_factory.mktemp("teacher") / "model")


def prepared(folder, teacher, *, training=None, identity="chain", given=None, **settings):
    """A chain and its context; `given` of the context."""
    inputs = {"teachers.main.model": {"model": str(teacher)}}
    made = context(
        folder, "chain", kind="assistants", training=TRAIN | (training or {}), inputs=inputs, **(given or {})
    )
    made.identity = identity
    settings = {"model": recipe(), "losses": LOSSES} | settings
    return made, Assistants("assistants", teachers={"main": {"model": str(teacher)}}, **settings)


def chain(folder, teacher, **more):
    made, phase = prepared(folder, teacher, **more)
    return made, phase.run(made)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    """One planned assistant, and the direct path."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *chain(folder, teacher, compare_direct=True)


def digests(result):
    return {name: member.artifact.digest for name, member in result.members.items()}


def lines_of(made, title):
    return [line["loss"] for line in made.lines if line["phase"] == title and "loss" in line]


def test_each_step_leaves_a_model_and_the_student_s_is_the_phase_s_own(whole):
    folder, made, result = whole
    assert list(result.members) == ["assistant_1", "student", "direct"]
    assert result.artifact.folder == folder / "chain" / "model"
    assert result.artifact.digest == digests(result)["student"]
    assert result.evaluation == result.members["student"].evaluation
    assert json.loads((folder / "chain" / "evaluation.json").read_text()) == result.evaluation
    for step, member in result.members.items():
        assert member.artifact.is_intact()
        assert member.artifact.folder == folder / "chain" / step / "model"
    assert result.outcome.progress.step == 16
    assert result.outcome.progress.samples > 0
    assert result.extra["steps_of"] == {"assistant_1": 4, "student": 4, "direct": 8}
    assert [len(lines_of(made, f"chain.{step}")) for step in result.members] == [4, 4, 8]


def test_the_assistant_lies_between_the_two_ends(whole):
    _, made, result = whole
    sizes = {name: member.evaluation["size"]["parameters"] for name, member in result.members.items()}
    plan = result.extra["plan"]
    assert plan["teacher"]["parameters"] > sizes["assistant_1"] > sizes["student"] == sizes["direct"]
    assert {name: plan[name]["parameters"] for name in ("assistant_1", "student")} == {
        name: sizes[name] for name in ("assistant_1", "student")
    }
    assert any(note.startswith("planned sizes: teacher ") for note in made.notes)


def test_passports_name_what_each_step_heard(whole, teacher):
    _, _, result = whole
    first, student, direct = (result.members[name].artifact for name in ("assistant_1", "student", "direct"))
    assert [step.get("phase") for step in first.lineage] == [None, "chain.assistant_1"]
    assert [step.get("phase") for step in student.lineage] == [None, "chain.assistant_1", "chain.student"]
    assert [step.get("phase") for step in direct.lineage] == [None, "chain.direct"]
    heard = {"teachers.assistant_1.phase": {"phase": "chain.assistant_1", "digest": first.digest}}
    assert student.lineage[-1]["inputs"] == heard
    assert direct.lineage[-1]["inputs"] == {"teachers.main.model": {"model": str(teacher)}}
    assert first.settings["model"]["values"] != student.settings["model"]["values"]
    assert list(result.members["student"].evaluation["teacher"]) == ["assistant_1"]
    assert list(result.members["direct"].evaluation["teacher"]) == ["main"]


def test_the_direct_path_starts_as_the_student_and_is_a_plain_distillation_of_as_many_steps(whole, teacher, tmp_path):
    _, made, result = whole
    plain = context(tmp_path, "plain", kind="distill", training=TRAIN | {"max_steps": 8})
    plain.seed_as = "chain"
    done = Distill("distill", {"main": {"model": str(teacher)}}, LOSSES, model=recipe()).run(plain)
    assert losses(plain) == lines_of(made, "chain.direct")
    assert done.artifact.digest == digests(result)["direct"]


def test_the_verdict_is_told(whole):
    _, made, result = whole
    rule = result.extra["stop_rule"]
    assert (rule["metric"], rule["steps_chain"], rule["steps_direct"]) == ("accuracy", 8, 8)
    assert rule["chain"] == result.members["student"].evaluation["metrics"]["accuracy"]
    assert rule["direct"] == result.members["direct"].evaluation["metrics"]["accuracy"]
    assert rule["words"] in made.notes


def stopped(folder, teacher, step, after):
    """A chain that is told to leave after a number of a step's optimizer steps; after 0: once the step before it is finished."""
    made = None
    previous = {"student": "assistant_1", "direct": "student"}.get(step)

    def asked():
        if after == 0:
            return previous is None or (folder / "chain" / previous / steps.NOTE).is_file()
        return len(lines_of(made, f"chain.{step}")) >= after

    made, phase = prepared(folder, teacher, compare_direct=True, given={"stop_asked": asked})
    return made, phase.run(made)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("step", ["assistant_1", "student", "direct"])
def test_a_chain_stopped_anywhere_goes_on_to_the_same_bits(whole, teacher, tmp_path, step, after):
    """What was finished before isn't touched again; what was begun goes on from its checkpoint."""
    _, straight_context, straight = whole
    made, result = stopped(tmp_path, teacher, step, after)
    assert result.artifact is None
    assert result.outcome.preempted
    order = list(straight.members)
    before = order[: order.index(step)]
    moments = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob(f"chain/*/{steps.NOTE}")}
    assert sorted(moments) == sorted(before)
    assert (tmp_path / "chain" / step / "checkpoints").exists() == (after > 0)
    assert not (tmp_path / "chain" / "model").exists()
    again, result = chain(tmp_path, teacher, compare_direct=True)
    assert digests(result) == digests(straight)
    for name, moment in moments.items():
        assert (tmp_path / "chain" / name / steps.NOTE).stat().st_mtime_ns == moment
        assert not lines_of(again, f"chain.{name}")
    if after:
        assert lines_of(again, f"chain.{step}")
        assert len(lines_of(again, f"chain.{step}")) < straight.extra["steps_of"][step]
    for name in order:
        both = lines_of(made, f"chain.{name}") + lines_of(again, f"chain.{name}")
        assert both == lines_of(straight_context, f"chain.{name}")
    assert result.extra["stop_rule"] == straight.extra["stop_rule"]
    assert result.outcome.progress.step == 16
    assert result.outcome.progress.resumes == (after > 0)


def test_a_crash_after_the_artifact_costs_no_training(whole, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(steps.Note, "write", lambda note, folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        chain(tmp_path, teacher, compare_direct=True)
    monkeypatch.undo()
    again, result = chain(tmp_path, teacher, compare_direct=True)
    assert lines_of(again, "chain.assistant_1") == []
    assert digests(result) == digests(whole[2])


def test_a_finished_chain_is_only_concluded_and_another_identity_is_done_anew(whole, teacher, tmp_path):
    _, first = chain(tmp_path, teacher)
    again, second = chain(tmp_path, teacher)
    assert [line for line in again.lines if "loss" in line] == []
    assert digests(second) == digests(first)
    assert any(note.startswith("planned sizes") for note in again.notes)
    other, third = chain(tmp_path, teacher, identity="other", losses={"hard": HardLabel()})
    assert len(lines_of(other, "chain.assistant_1")) == len(lines_of(other, "chain.student")) == 4
    assert digests(third)["student"] != digests(first)["student"]


def test_given_assistants_keep_their_names_and_their_order_is_checked(teacher, tmp_path):
    large, small = recipe(hidden_size=20, num_hidden_layers=2), recipe(num_hidden_layers=2)
    _, result = chain(tmp_path / "a", teacher, assistants={"large": large, "small": small})
    assert list(result.members) == ["large", "small", "student"]
    assert [step.get("phase") for step in result.artifact.lineage] == [
        None,
        "chain.large",
        "chain.small",
        "chain.student",
    ]
    with pytest.raises(Refusal, match=r"phases.chain.assistants.large: has .*more than small, which teaches it"):
        chain(tmp_path / "b", teacher, assistants={"small": small, "large": large})
    with pytest.raises(Refusal, match=r"phases.chain.assistants.huge: has .*more than the teacher"):
        chain(tmp_path / "c", teacher, assistants={"huge": recipe(hidden_size=48)})
    with pytest.raises(Refusal, match=r"phases.chain.model: has .*more than tiny"):
        chain(tmp_path / "d", teacher, assistants={"tiny": recipe(hidden_size=8)})
    assert not list(tmp_path.glob("[bcd]/chain/*/checkpoints"))


def test_a_densely_guided_student_hears_all_before_it(teacher, tmp_path):
    student = recipe(num_attention_heads=4)  # two sizes lie between
    _, result = chain(tmp_path, teacher, model=student, count=2, densely_guided=True, ensemble={"combine": "losses"})
    evaluation = result.evaluation
    assert list(evaluation["teacher"]) == ["main", "assistant_1", "assistant_2"]
    assert list(result.members["assistant_1"].evaluation["teacher"]) == ["main"]
    inputs = result.artifact.lineage[-1]["inputs"]
    assert list(inputs) == ["teachers.main.model", "teachers.assistant_1.phase", "teachers.assistant_2.phase"]


def test_hints_find_their_layers_in_each_step(teacher, tmp_path):
    _, result = chain(tmp_path, teacher, losses={"hint": Hint(), "hard": HardLabel()})
    assert set(result.extra["mapping"]) == {"assistant_1/hint", "student/hint"}


def test_generations_have_one_size_other_weights_and_an_ensemble(teacher, tmp_path):
    _, result = chain(tmp_path, teacher, born_again={"generations": 3, "ensemble": True}, training={"max_steps": 2})
    assert list(result.members) == ["generation_1", "generation_2", "generation_3"]
    assert result.artifact.digest == digests(result)["generation_3"]
    assert len(set(digests(result).values())) == 3
    assert len({member.evaluation["size"]["parameters"] for member in result.members.values()}) == 1
    assert [step.get("phase") for step in result.artifact.lineage][1:] == [
        "chain.generation_1",
        "chain.generation_2",
        "chain.generation_3",
    ]
    stored = json.loads((tmp_path / "chain" / "ensemble.json").read_text())
    assert result.extra["ensemble"] == stored["metrics"]
    assert stored["metrics"]["nll"] == pytest.approx(naive_ensemble_nll(tmp_path, result), rel=1e-5)


def naive_ensemble_nll(folder, result):
    """-log of the mean probability of the right label, over the labelled test rows."""
    probabilities = []
    for member in result.members.values():
        model = AutoModelForSequenceClassification.from_pretrained(member.artifact.folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(member.artifact.folder)
        store = tokenise(source(folder), tokenizer)["test"]
        given = tokenizer([store.text(i) for i in range(len(store))], padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities.append(model(**given).logits.double().softmax(-1))
    labels = torch.tensor(store.labels)
    kept = labels >= 0
    mean = torch.stack(probabilities).mean(0)[kept]
    return float(-mean[torch.arange(len(mean)), labels[kept]].log().mean())


def test_a_student_larger_than_its_teacher_has_nothing_between(teacher, tmp_path):
    with pytest.raises(Refusal, match=r"phases.chain.model: has .*nothing lies between"):
        chain(tmp_path, teacher, model=recipe(hidden_size=48))


def test_layers_are_taken_from_the_teacher(tmp_path):
    folder = tmp_path / "teacher" / "model"
    knowing_teacher(folder, gain=1.0)
    digest = Artifact.read(folder).digest
    inputs = {
        "teachers.main.phase": {"phase": "teacher", "digest": digest},
        "model.phase": {"phase": "teacher", "digest": digest},
    }
    made = context(tmp_path, "chain", {"teacher": folder}, kind="assistants", training=TRAIN, inputs=inputs)
    student = FromLayers(phase="teacher", num_layers=1)
    phase = Assistants("assistants", student, {"main": {"phase": "teacher"}}, LOSSES)
    with pytest.raises(Refusal, match=r"phases.chain.count: is 1, but the student's recipe has no sizes between"):
        phase.run(made)
    phase = Assistants(
        "assistants",
        student,
        {"main": {"phase": "teacher"}},
        LOSSES,
        born_again={"generations": 1},
        compare_direct=True,
    )
    result = phase.run(made)
    assert result.members["generation_1"].artifact.lineage[-1]["inputs"] == inputs
    assert "the chain" in result.extra["stop_rule"]["words"]
