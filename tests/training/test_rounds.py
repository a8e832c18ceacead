"""When rounds take place, what is judged, and how the learning rate runs: with a surgeon that only counts."""

from typing import ClassVar

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.pruning.base import Group, Slice
from distill_system.settings import Gate, Pruning
from distill_system.training import rounds as module
from distill_system.training.rounds import Rounds, bound_in_words
from distill_system.training.surgeon import Applied, Tally


class Surgeon:
    kind = "weights"
    cuts_units = False
    watches_gradients = False
    groups: ClassVar = [Group("w", 0, 100, (Slice("w", (10, 10), -1, 1),), block=(1, 1))]

    def __init__(self) -> None:
        self.alive = 100
        self.applied: list[int] = []
        self.begun: list[float] = []

    def begin(self, engine, sparsity):
        self.begun.append(sparsity)

    def counts(self, engine, keep):
        return {"w": self.alive}

    def count(self, engine, keep):
        return Tally(self.alive, self.alive + 50)

    def apply(self, engine, due, keep):
        self.applied.append(due.number)
        self.alive = round(100 * (1 - due.sparsity))
        return Applied()


def made(tmp_path, gate=None, **settings) -> Rounds:
    given = {"shape": "linear", "final_sparsity": 0.6, "begin": 0.2, "end": 0.6, "rounds": 3} | settings
    return Rounds(
        Surgeon(),
        Pruning(**given),
        10,
        gate=gate or Gate(),
        folder=tmp_path,
        identity="x",
        monitor="accuracy",
        whole=100,
        tell=lambda sentence: None,
        key="phases.p",
    )


def walk(rounds: Rounds, figures=lambda step: {"accuracy": 1 - step / 100}, until: int = 10):
    changes = {}
    for step in range(until + 1):
        last = step == 10
        told = figures(step) if rounds.wants_figures(step, last=last) else None
        changes[step] = rounds.after_step(None, step, told, last=last)
    return changes


def test_rounds_come_at_their_steps_and_are_judged_before_the_next(tmp_path):
    rounds = made(tmp_path)
    changes = walk(rounds)
    assert [step for step, change in changes.items() if change.fresh] == [2, 4, 6]
    assert rounds.surgeon.applied == [1, 2, 3]
    told = [
        (one["round"], one["step"], one["sparsity"], one["remaining"], one["metric"])
        for one in rounds.memory["records"]
    ]
    assert told == [
        (0, 2, 0.0, 150, pytest.approx(0.98)),
        (1, 2, pytest.approx(0.2), 130, pytest.approx(0.96)),
        (2, 4, pytest.approx(0.4), 110, pytest.approx(0.94)),
        (3, 6, pytest.approx(0.6), 90, pytest.approx(0.90)),
    ]


def test_figures_are_wanted_only_where_a_round_ends(tmp_path):
    rounds = made(tmp_path)
    wanted = []
    for step in range(11):
        if rounds.wants_figures(step, last=step == 10):
            wanted.append(step)
        rounds.after_step(None, step, {"accuracy": 1.0}, last=step == 10)
    assert wanted == [2, 4, 6, 10]


def test_the_same_step_twice_changes_nothing(tmp_path):
    rounds = made(tmp_path)
    walk(rounds, until=4)
    before = dict(rounds.state())
    change = rounds.after_step(None, 4, None, last=False)
    assert (change.fresh, change.halt, change.lines) == (False, False, [])
    assert rounds.state() == before


def test_best_weights_count_from_the_last_round_on(tmp_path):
    rounds = made(tmp_path)
    settled = []
    for step in range(11):
        rounds.after_step(None, step, None, last=step == 10)
        settled.append(rounds.settled)
    assert settled.index(True) == 6


def test_an_early_end_judges_the_last_round(tmp_path):
    rounds = made(tmp_path)
    walk(rounds, until=7)
    assert rounds.memory["records"][-1]["metric"] is None
    assert rounds.wants_figures(8, last=True)
    rounds.after_step(None, 8, {"accuracy": 0.5}, last=True)
    assert rounds.memory["records"][-1]["metric"] == 0.5


@pytest.mark.parametrize(
    ("rewind", "windows"),
    [
        ("none", [(0, 10)] * 10),
        ("learning_rate", [(0, 2), (0, 2), (2, 4), (2, 4), (4, 6), (4, 6), (6, 10), (6, 10), (6, 10), (6, 10)]),
    ],
)
def test_the_learning_rate_runs_anew(tmp_path, rewind, windows):
    rounds = made(tmp_path, rewind=rewind)
    assert [rounds.window(step) for step in range(10)] == windows


def test_a_layer_that_would_vanish_ends_the_phase(tmp_path):
    rounds = made(tmp_path)
    rounds.surgeon.counts = lambda engine, keep: {"w": 0}
    with pytest.raises(Refusal, match="leaves nothing of layer 0"):
        walk(rounds)


def test_a_surgeon_learns_once_how_far_things_are(tmp_path):
    rounds = made(tmp_path)
    walk(rounds, until=5)
    assert rounds.surgeon.begun == [0.0]
    again = made(tmp_path)
    again.restore(rounds.state())
    again.after_step(None, 5, None, last=False)
    again.after_step(None, 6, None, last=False)
    assert again.surgeon.begun == [pytest.approx(0.4)]


def test_state_comes_back(tmp_path):
    rounds = made(tmp_path)
    walk(rounds, until=5)
    again = made(tmp_path)
    again.restore(rounds.state())
    assert again.state() == rounds.state()
    pending = rounds.state() | {"pending": {"kind": "heads", "keep": {"a": [0]}}, "instead": "round_0001"}
    again.restore(pending)
    assert (again.memory["pending"], again.memory["instead"], again.memory["cut"]) == (None, None, True)
    assert again.memory["surgeries"] == [{"kind": "heads", "keep": {"a": [0]}}]


def test_a_miss_goes_back_to_the_round_before(tmp_path, monkeypatch):
    saved = {}

    class Store:
        def __init__(self, state):
            self.state = state

    def save(folder, engine, state, weights_only=False):
        folder.mkdir()
        saved[folder.name] = {**state, "modifier": dict(state["modifier"])}

    monkeypatch.setattr(module.checkpoint, "save", save)
    monkeypatch.setattr(module.checkpoint, "opened", lambda folder, identity: (Store(saved[folder.name]), ""))
    rounds = made(tmp_path, gate=Gate(metric="accuracy", at_least=0.95))
    changes = walk(rounds, until=6)
    assert changes[6].halt
    assert changes[6].stop
    assert rounds.surgeon.applied == [1, 2]
    assert rounds.memory["instead"] == "round_0001"
    story = rounds.memory["rolled_back"]
    assert (story["round"], story["step"], story["handed_on"]) == (2, 6, 1)
    assert rounds.memory["records"][-1]["state"] == "rolled_back"
    assert changes[6].lines[0]["event"] == "rollback"
    assert [path.name for path in tmp_path.iterdir()] == ["round_0001"]  # only the last good one is kept


def test_bounds_in_words():
    assert bound_in_words(Gate(metric="nll", at_most=0.5)) == "nll at most 0.5"
    assert bound_in_words(Gate(metric="accuracy", at_least=0.8, at_most=1.0)) == "accuracy at least 0.8 and at most 1"


def test_hexadecimal_units_belong_to_their_groups(tmp_path):
    rounds = made(tmp_path)
    rounds.memory["keep"] = {"w": "80" + "00" * 12, "gone": "ff"}
    (kept,) = rounds.kept().values()
    assert kept.nonzero().flatten().tolist() == [0]
    assert torch.is_tensor(kept)
