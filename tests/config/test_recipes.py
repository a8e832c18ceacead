"""Names under which later phases find what earlier ones leave, and data with what a phase says over it."""

import pytest

from distill_system.config.check import check
from distill_system.config.compose import compose
from distill_system.config.recipes import data_node, members_of, merged, outputs, phase_of, recipe_of, recipes_of

CONFIG = {
    "data": {"path": "x", "label_noise": {"rate": 0.0, "seed": 1}},
    "phases": {
        "teacher": {"model": {"_target_": "t"}},
        "cohort": {
            "model": None,
            "members": {"a": {"_target_": "a"}, "b": {"_target_": "b"}},
            "data": {"label_noise": {"rate": 0.2}},
        },
        "sizes": {"model": {}, "students": {"small": {"_target_": "s"}}},
    },
}


def test_recipes_have_keys_below_their_phase():
    phases = CONFIG["phases"]
    assert list(recipes_of(phases["teacher"])) == ["model"]
    assert list(recipes_of(phases["cohort"])) == ["members.a", "members.b"]
    assert list(recipes_of(phases["sizes"])) == ["students.small"]
    assert members_of(phases["teacher"]) == []
    assert members_of(phases["cohort"]) == ["a", "b"]


def test_outputs_come_in_order_and_end_before_a_phase():
    assert outputs(CONFIG) == ["teacher", "cohort", "cohort.a", "cohort.b", "sizes", "sizes.small"]
    assert outputs(CONFIG, before="cohort") == ["teacher"]


def test_a_member_is_found_and_a_stranger_is_not():
    assert phase_of(CONFIG, "cohort.b") == "cohort"
    assert phase_of(CONFIG, "cohort.c") is None
    assert recipe_of(CONFIG, "cohort.b") == {"_target_": "b"}
    assert recipe_of(CONFIG, "cohort") is None  # the best of two: nobody knows yet
    assert recipe_of(CONFIG, "teacher") == {"_target_": "t"}


def test_members_that_are_thrown_away_can_t_be_taken():
    phase = CONFIG["phases"]["cohort"] | {"cohort": {"artifact": "best"}}
    assert outputs({"phases": {"cohort": phase}}) == ["cohort"]
    assert list(recipes_of(phase)) == ["members.a", "members.b"]


def test_a_phase_s_data_lies_over_the_run_s():
    assert data_node(CONFIG, "cohort") == {"path": "x", "label_noise": {"rate": 0.2, "seed": 1}}
    assert data_node(CONFIG, "teacher") == data_node(CONFIG) == CONFIG["data"]
    assert merged({"a": 0.5}, {"a": {"rate": 1}}) == {"a": {"rate": 1}}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("phases.student.data={labeled:0.5}", "phases.student.data.labeled"),
        ("phases.student.data={labelled:7}", "phases.student.data.labelled"),
        ("phases.student.data={_target_:distill_system.data.table.Table}", "phases.student.data._target_"),
    ],
)
def test_what_a_phase_says_of_data_is_checked(typed, key):
    composition = compose(["experiment=demo_quick", "run.name=x", typed])
    problems = composition.problems + check(composition.config)
    assert [problem.key for problem in problems] == [key]


def test_a_fault_of_the_run_s_data_is_told_once():
    composition = compose(
        ["experiment=demo_quick", "run.name=x", "data.max_length=0", "phases.student.data={labelled:0.5}"]
    )
    assert [problem.key for problem in check(composition.config)] == ["data.max_length"]


def test_a_seed_is_shared_by_a_word():
    composition = compose(["experiment=demo_quick", "run.name=x", "phases.student.seed_as=teacher"])
    assert check(composition.config) == []
