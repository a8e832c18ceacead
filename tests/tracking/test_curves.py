"""Whose curves a phase has, and which figures are made of them."""

import pytest

from distill_system.tracking import pictures
from distill_system.tracking.curves import MOST, Track, curve_panels, losses, member_losses, tracks, weights
from distill_system.tracking.report import load_run, write_report
from tests.tracking.fake_members import RUNS, chain_of_assistants_run, cohort_run, faculty_run


def line(phase, step=1, **figures):
    return {"phase": phase, "step": step, "time": 0.0, "loss": 1.0, **figures}


def curves_of(panel):
    return panel.draw.args[0]


def test_one_model_several_roles_and_steps_are_told_apart():
    lines = [
        line("teacher", grad_norm=1.0),
        line("cohort", **{"grad_norm": 1.0, "grad_norm/a": 1.0, "grad_norm/b": 1.0, "loss/a": 1.0, "loss/b": 1.0}),
        line("chain.assistant_1"),
        line("chain.student"),
        {"phase": "chain", "step": 2, "time": 0.0, "event": "finish"},
        line("gone.x"),
    ]
    assert tracks(lines, ["chain", "teacher", "cohort"]) == {
        "chain": [Track("assistant_1", "chain.assistant_1"), Track("student", "chain.student")],
        "teacher": [Track("teacher", "teacher")],
        "cohort": [Track("a", "cohort", "a"), Track("b", "cohort", "b")],
        "gone.x": [Track("gone.x", "gone.x")],
    }


def test_members_have_a_curve_each_and_parts_are_means_over_those_that_are_heard():
    own = {"loss/a": 3.0, "loss/a/hard": 2.0, "loss/a/peer/b": 1.0, "loss/a/peer/c": 3.0}
    both = own | {"loss/b": 4.0, "loss/b/hard": 2.5, "loss/b/peer/a": 1.0, "loss/b/peer/c": 2.0}
    found = member_losses([line("m", **both)], "m", [Track("a", "m", "a"), Track("b", "m", "b")])
    assert [panel.title for panel in found] == ["Loss of m", "Loss of m: hard", "Loss of m: peer"]
    assert [[curve.values for curve in curves_of(panel)] for panel in found] == [
        [[3.0], [4.0]], [[2.0], [2.5]], [[2.0], [1.5]],
    ]  # fmt: skip
    assert found[2].caption == "mean over those that are heard"


def test_few_parts_stay_in_one_figure_and_many_are_gathered():
    few = losses([line("s", **{"loss/soft/x": 1.0, "loss/soft/y": 2.0, "loss/hard": 3.0})], "s")
    assert [curve.name for curve in curves_of(few[0])] == ["total", "hard", "soft/x", "soft/y"]
    assert len(few) == 1
    many = {f"loss/{name}/{teacher}": 1.0 for name in ("soft", "hint") for teacher in "abcd"} | {"loss/hard": 1.0}
    found = losses([line("s", **many)], "s")
    assert [panel.title for panel in found] == ["Loss of s", "Loss of s: hint", "Loss of s: soft"]
    assert [curve.name for curve in curves_of(found[0])] == ["total", "hard", "hint", "soft"]
    assert [curve.name for curve in curves_of(found[1])] == ["a", "b", "c", "d"]


def test_weights_are_drawn_where_one_changes():
    lines = [
        line("s", step, **{"weight/hint/x": 1 / step, "weight/hint/y": 1 / step, "weight/hard": 1.0}) for step in (1, 2)
    ]
    (panel,) = weights(lines, "s", Track("s", "s"))
    assert [(curve.name, curve.values) for curve in curves_of(panel)] == [("hard", [1.0, 1.0]), ("hint", [1.0, 0.5])]
    assert weights(lines[:1], "s", Track("s", "s")) == []


@pytest.mark.parametrize("make", RUNS)
def test_no_figure_is_a_thicket(make, tmp_path):
    run = load_run(make(tmp_path / "run"))
    panels = curve_panels(run)
    assert len({panel.file for panel in panels}) == len(panels)
    assert max(len(curves_of(panel)) for panel in panels) <= MOST
    with pictures.style():
        assert all(pictures.png(panel.draw())[:4] == b"\x89PNG" for panel in panels[:2])


def test_steps_of_a_chain_lie_in_one_figure(tmp_path):
    titles = [panel.title for panel in curve_panels(load_run(chain_of_assistants_run(tmp_path / "run")))]
    assert titles.count("Loss of chain") == 1
    assert "Validation of chain: accuracy" in titles
    assert not [title for title in titles if "chain." in title]


def test_pages_of_members_are_whole(tmp_path):
    cohort = write_report(cohort_run(tmp_path / "cohort")).read_text()
    assert "a-resnet-with-a-long-name is handed on, the best of 4" in cohort
    faculty = write_report(faculty_run(tmp_path / "faculty")).read_text()
    assert "Weights in student" in faculty
    assert "weight 0.50, agrees with student on 86.0 %" in faculty
    chain = write_report(chain_of_assistants_run(tmp_path / "chain")).read_text()
    assert (
        chain.count("The detour over assistant_1, assistant_2 didn") == 1
    )  # above the chain, not among the notes again
    assert "300 steps" in chain
