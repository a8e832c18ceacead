"""What a cohort needs beside training: members that differ, a place for each, and passports that know where a member came from."""

import json

import pytest
import torch

from distill_system import distributed
from distill_system.errors import Refusal
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.phases import cohort
from distill_system.phases.context import Member
from distill_system.phases.finish import best_member, own_recipe
from distill_system.phases.mutual import Mutual
from distill_system.settings import Cohort, Training
from distill_system.training.objective import Objective, Term
from tests.phases.work import context, recipe
from tests.training.tiny import Net, batch


def built(**settings):
    return {
        name: recipe(**settings).build(task="classification", num_labels=3, seed=i)[0] for i, name in enumerate("ab")
    }


@pytest.fixture
def machine(monkeypatch):
    """A number of ranks, and bytes that each of them may still take."""

    def made(ranks, free):
        monkeypatch.setattr(distributed, "world", lambda: ranks)
        monkeypatch.setattr(distributed, "everyone", lambda value: [value] * ranks)
        monkeypatch.setattr(cohort, "free_memory", lambda: float(free))

    return made


@pytest.mark.parametrize(
    ("ranks", "free", "spread", "words"),
    [
        (2, 10**12, False, "nothing has to be sent"),
        (2, 10**5, True, "spread: training state of all 2 members takes"),
        (3, 10**5, False, "3 ranks can't be dealt to 2 members"),
        (1, 10**5, False, "1 ranks can't be dealt to 2 members"),
    ],
)
def test_auto_looks_at_the_memory_and_says_why(tmp_path, machine, ranks, free, spread, words):
    machine(ranks, free)
    chosen, why = cohort.place(Cohort(), built(), Training(devices=ranks), tmp_path / "placement.json")
    assert chosen is spread
    assert words in why


def test_what_auto_has_chosen_once_stays(tmp_path, machine):
    """More memory is free at the next start: a resumed run lives where it lived."""
    machine(2, 10**5)
    first = cohort.place(Cohort(), built(), Training(devices=2), tmp_path / "placement.json")
    machine(2, 10**12)
    assert cohort.place(Cohort(), built(), Training(devices=2), tmp_path / "placement.json") == first
    machine(3, 10**12)
    assert cohort.place(Cohort(), built(), Training(devices=3), tmp_path / "placement.json")[0] is False


def test_sharded_state_takes_less_of_a_rank(tmp_path, machine):
    parameters = sum(p.numel() for model in built().values() for p in model.parameters())
    machine(2, 1.5 * cohort.STATE_BYTES * parameters)  # whole it takes 2/3 of what is free, halved 1/3
    assert cohort.by_memory(built(), Training(devices=2))[0] is True
    assert cohort.by_memory(built(), Training(devices=2, strategy="zero2"))[0] is False


def test_what_is_asked_for_is_not_questioned(tmp_path, machine):
    machine(2, 1)
    for asked in ("together", "spread"):
        chosen = cohort.place(Cohort(placement=asked), built(), Training(devices=2), tmp_path / "placement.json")
        assert chosen == (asked == "spread", None)
    assert not list(tmp_path.iterdir())


def test_members_that_begin_alike_or_speak_of_other_classes_are_refused(tmp_path):
    made = context(tmp_path, "cohort")
    twins = dict.fromkeys("ab", built()["a"])
    with pytest.raises(Refusal, match=r"members\.b: starts from the same weights as a; .*phases\.cohort\.seeds\.b"):
        cohort.check_members(twins, made)
    other = recipe().build(task="classification", num_labels=5)[0]
    with pytest.raises(Refusal, match=r"differ in the number of classes .*a 3, b 5"):
        cohort.check_members({"a": built()["a"], "b": other}, made)
    cohort.check_members(built(), made)


@pytest.mark.parametrize(("keep", "left"), [("all", ["a", "b"]), ("best", [])])
def test_what_is_kept(tmp_path, keep, left):
    made = context(tmp_path, "cohort", kind="mutual")
    members = {"a": recipe(), "b": recipe(num_hidden_layers=2)}
    phase = Mutual("mutual", members, {"hard": HardLabel()}, {"peer": SoftTarget(1.0)}, cohort={"artifact": keep})
    result = phase.run(made)
    best = result.extra["best_member"]
    assert result.artifact.digest == result.members[best].artifact.digest
    there = [name for name in "ab" if (made.folder / name / "model").is_dir()]
    assert there == (left or [best])
    assert (made.folder / "model" / "model.safetensors").is_file()
    assert json.loads((made.folder / "evaluation.json").read_text()) == result.members[best].evaluation


def test_the_best_is_chosen_on_validation_rows_in_the_good_direction():
    found = {
        name: Member(None, {"metrics": {"accuracy": a, "nll": n}}) for name, a, n in (("a", 0.7, 0.9), ("b", 0.8, 0.5))
    }
    assert best_member(found, {"a": 0.6, "b": 0.9}, "accuracy") == "b"
    assert best_member(found, {"a": 0.9, "b": 0.6}, "accuracy") == "a"  # whatever the test rows say
    assert best_member(found, {"a": 0.9, "b": 0.6}, "nll") == "b"
    assert best_member(found, {}, "accuracy") == "b"  # no validation rows
    assert best_member(found, {"a": 0.6, "b": 0.6}, "accuracy") == "a"


def test_a_member_s_recipe_is_its_own():
    settings = {"model": {"name": "x"}, "members": {"a": {"name": "m/a"}}, "students": {"s": {"package": "p"}}}
    assert own_recipe(settings, "a") == {"name": "m/a"}
    assert own_recipe(settings, "s") == {"package": "p"}
    assert own_recipe(settings, None) == own_recipe(settings, "assistant_1") == {"name": "x"}
    assert own_recipe({"members": None}, None) == {}


def test_a_member_s_dropout_does_not_hang_on_what_its_neighbours_draw():
    """Behind another first member, whose forward draws more, the second one's loss is the same."""
    terms = [Term(f"{role}/hard", role) for role in "ab"]
    sums = []
    for first in (Net(1, dropout=0.5), Draws(Net(1, dropout=0.5))):
        losses = {term.name: HardLabel() for term in terms}
        objective = Objective({"a": first, "b": Net(2, dropout=0.5)}, losses, task="classification", terms=terms)
        torch.manual_seed(3)
        sums.append(objective.train()(batch(0), None, torch.ones(2))[1])
    assert torch.equal(sums[0][1], sums[1][1])


class Draws(torch.nn.Module):
    """A model that draws random numbers beside its work."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        torch.rand(17)
        return self.model(input_ids, attention_mask)
