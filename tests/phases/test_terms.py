"""Who hears whom: terms of one student, several students, several teachers, peers; and gradients that stay where they belong."""

import pytest
import torch
from torch import nn

from distill_system.errors import Refusal
from distill_system.losses.base import Loss
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.phases.terms import loss_name, rehearse, write_script
from distill_system.settings import Ensemble
from distill_system.signals import Signals
from distill_system.training.ensemble import TOGETHER
from distill_system.training.objective import Objective
from tests.training.tiny import Net, batch, heard


class Inside(Loss):
    """Reads hidden states."""

    needs_teacher = True
    needs = ("hidden",)

    def bind(self, student, teacher, *, key, seed):
        return {"key": key, "seed": seed}


LOSSES = {"soft": SoftTarget(), "hard": HardLabel()}


def said(script):
    return [(term.name, term.role, term.source, term.factor) for term in script.terms]


def test_one_student_and_one_teacher():
    script = write_script(["student"], LOSSES, teachers={"main": 2.0})
    assert said(script) == [("soft", "student", "main", 1.0), ("hard", "student", None, 1.0)]
    assert script.sources == {"main": frozenset({"logits"})}
    assert script.losses["soft"] is not LOSSES["soft"]


def test_several_teachers_together_and_apart():
    both = {"a": 1.0, "b": 3.0}
    together = write_script(["student"], LOSSES | {"hint": Inside()}, teachers=both)
    assert said(together) == [
        ("soft", "student", TOGETHER, 1.0),
        ("hard", "student", None, 1.0),
        ("hint/a", "student", "a", 0.25),
        ("hint/b", "student", "b", 0.75),
    ]
    apart = write_script(["student"], LOSSES, teachers=both, ensemble=Ensemble(combine="losses"))
    assert said(apart)[:2] == [("soft/a", "student", "a", 0.25), ("soft/b", "student", "b", 0.75)]
    trusted = Ensemble(combine="losses", weighting="confidence")
    assert [term.factor for term in write_script(["student"], LOSSES, teachers=both, ensemble=trusted).terms] == [
        1,
        1,
        1,
    ]


def test_several_students_have_losses_of_their_own():
    script = write_script(["s", "m"], LOSSES, teachers={"main": 1.0})
    assert [name for name, *_ in said(script)] == ["s/soft", "s/hard", "m/soft", "m/hard"]
    assert script.losses["s/soft"] is not script.losses["m/soft"]
    assert loss_name(script.terms[0]) == "soft"


def test_peers_count_as_a_mean():
    script = write_script(["a", "b", "c"], {"hard": HardLabel()}, peer_losses={"peer": SoftTarget()})
    assert said(script)[:3] == [
        ("a/hard", "a", None, 1.0),
        ("a/peer/b", "a", "b", 0.5),
        ("a/peer/c", "a", "c", 0.5),
    ]
    assert len(script.terms) == 9
    assert script.sources == {}
    assert script.needs("a") == frozenset({"logits"})


@pytest.mark.parametrize("member", ["a", "b"])
def test_a_member_s_loss_gives_exactly_no_gradient_to_its_peers(member):
    script = write_script(["a", "b"], {"hard": HardLabel()}, peer_losses={"peer": SoftTarget()})
    objective = Objective({"a": Net(1), "b": Net(2)}, script.losses, task="classification", terms=script.terms)
    weights = torch.tensor([float(term.role == member) for term in script.terms])
    loss, _ = objective(batch(0), None, weights)
    loss.backward()
    for role, model in objective.roles.items():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if role == member:
            assert max(float(g.abs().max()) for g in gradients) > 0
        else:
            assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


class Leaky(SoftTarget):
    """A loss that forgets to cut its teacher's gradient."""

    def forward(self, student, teacher, targets):
        return (student.logits - teacher.logits).square().sum(), self.count(targets)


def test_a_loss_that_would_leak_can_t():
    script = write_script(["a", "b"], {"hard": HardLabel()}, peer_losses={"peer": Leaky()})
    objective = Objective({"a": Net(1), "b": Net(2)}, script.losses, task="classification", terms=script.terms)
    loss, _ = objective(batch(0), None, torch.tensor([float(term.role == "a") for term in script.terms]))
    loss.backward()
    assert objective.roles["a"].head.weight.grad.abs().max() > 0
    assert not any(p.grad is not None and p.grad.any() for p in objective.roles["b"].parameters())


def test_a_teacher_s_trust_weighs_its_loss_row_by_row():
    script = write_script(["student"], {"soft": SoftTarget(1.0)}, teachers={"main": 1.0})
    objective = Objective({"student": Net(1, dropout=0.0)}, script.losses, task="classification", terms=script.terms)
    given = batch(0)
    said = heard(given)["main"]
    trust = torch.linspace(0, 1, len(given["index"]))
    _, sums = objective(given, {"main": Signals(said.logits, trust=trust)}, torch.ones(1))
    p, q = said.logits.double().softmax(-1), objective(given).double().softmax(-1)
    expected = (trust * (p * (p.log() - q.log())).sum(-1)).sum()
    assert float(sums[0]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(objective.count(given)) == len(trust)  # trust is shared out, rows still count


def test_members_say_what_they_say_alone():
    """A member's terms in a cohort are those of the two models run by hand."""
    script = write_script(["a", "b"], {"hard": HardLabel()}, peer_losses={"peer": SoftTarget(1.0)})
    models = {"a": Net(1, dropout=0.0), "b": Net(2, dropout=0.0)}
    objective = Objective(models, script.losses, task="classification", terms=script.terms)
    given = batch(0)
    _, sums = objective(given, None, torch.ones(4))
    logits = {name: model(given["input_ids"], given["attention_mask"]).logits for name, model in models.items()}
    p, q = logits["b"].double().softmax(-1), logits["a"].double().softmax(-1)
    expected = (p * (p.log() - q.log())).sum()
    assert float(sums[1]) == pytest.approx(float(expected), rel=1e-6)


def test_a_teacher_of_some_classes_teaches_those_and_their_rows():
    known = torch.tensor([True, True, False])
    script = write_script(["student"], {"soft": SoftTarget(1.0)}, teachers={"main": 1.0})
    objective = Objective(
        {"student": Net(1, dropout=0.0)},
        script.losses,
        task="classification",
        terms=script.terms,
        known={"main": known},
    )
    given = batch(0)
    teacher = heard(given)["main"].logits.masked_fill(~known, -torch.inf)
    loss, sums = objective(given, {"main": Signals(teacher)}, torch.ones(1))
    rows = given["labels"] != 2  # unlabelled ones stay in
    assert float(objective.count(given)) == int(rows.sum()) < len(rows)
    student = objective(given)
    p, q = teacher[rows, :2].double().softmax(-1), student[rows, :2].double().softmax(-1)
    assert float(sums[0]) == pytest.approx(float((p * (p.log() - q.log())).sum()), rel=1e-5)
    loss.backward()
    assert objective.student.head.weight.grad.isfinite().all()


def test_losses_are_fitted_to_each_pair_with_seeds_of_their_own():
    class Shows(Net):
        def forward(self, input_ids, attention_mask, output_hidden_states=False):
            out = super().forward(input_ids, attention_mask)
            out.hidden_states = (out.logits,)
            return out

    script = write_script(["s", "m"], {"hint": Inside(), "hard": HardLabel()}, teachers={"main": 1.0})

    class Loud(nn.Module):
        module = Shows(3)
        known = None

        def signals(self, given, needs):
            return Signals(torch.zeros(2, 3), hidden=(torch.zeros(2, 3),))

    rehearse(
        script, {"s": Shows(1), "m": Shows(2)}, {"main": Loud()}, batch(0), task="classification", seed=5, phase="p"
    )
    assert set(script.mapping) == {"s/hint", "m/hint"}
    assert script.mapping["s/hint"]["key"] == "phases.p.losses.hint"
    assert script.mapping["s/hint"]["seed"] != script.mapping["m/hint"]["seed"]


def test_the_inside_of_a_peer_that_lives_elsewhere_is_refused():
    script = write_script(["a", "b"], {"hard": HardLabel()}, peer_losses={"hint": Inside()})

    class Shows(Net):
        def forward(self, input_ids, attention_mask, output_hidden_states=False):
            out = super().forward(input_ids, attention_mask)
            out.hidden_states = (out.logits,)
            return out

    with pytest.raises(Refusal, match="lives elsewhere"):
        rehearse(script, {"a": Shows(1)}, {}, batch(0), task="classification", seed=5, phase="p")
