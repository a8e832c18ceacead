"""Each check of `distill doctor` passes on what is sound, and fails on what it is there to find."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill_system.commands import examine
from distill_system.losses.logits import SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.settings import Training
from distill_system.training.objective import Objective
from distill_system.training.teachers import Teacher
from tests.models.tiny import build

CONTEXT = SimpleNamespace(training=Training(), device=torch.device("cpu"))


class Mean(nn.Module):
    """A classifier of the mean embedding, over real tokens or (wrongly) over all."""

    def __init__(self, masked=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.unused.requires_grad_(False)
        self.masked = masked

    def forward(self, input_ids, attention_mask):
        mask = attention_mask if self.masked else torch.ones_like(attention_mask)
        hidden = self.embedding(input_ids) * mask.unsqueeze(-1)
        return SimpleNamespace(logits=self.head(hidden.sum(1) / mask.sum(1, keepdim=True)))


def batch(rows=4, length=6):
    torch.manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1, 3:] = 0
    return {
        "input_ids": torch.randint(1, 20, (rows, length)),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2, 1]),
        "valid": torch.ones(rows, dtype=torch.bool),
        "index": torch.arange(rows),
    }


def objective(student=None, **losses):
    return Objective(student or Mean(), losses or {"soft": SoftTarget(), "hard": HardLabel()}, task="classification")


def teacher():
    return Teacher(Mean().eval().requires_grad_(False), task="classification")


def heard(given):
    return {"main": teacher().signals(given)}


def advice(lines):
    lines = list(lines) if not isinstance(lines, examine.Line) else [lines]
    return [line.advice for line in lines if line.advice]


def test_a_sound_phase_gives_no_advice():
    one = objective()
    assert advice(examine.check_teacher("p", teacher(), one, CONTEXT)) == []
    assert advice(examine.check_padding("p", one, batch(), 0)) == []
    assert advice(examine.check_filler("p", one, batch(), heard)) == []
    assert advice(examine.check_temperature("p", dict(one.losses))) == []
    assert advice(examine.check_gradients("p", one, batch(), heard)) == []


def test_a_teacher_in_train_mode():
    wrong = teacher()
    wrong.module.train()
    assert advice(examine.check_teacher("p", wrong, objective(), CONTEXT)) == ["dropout would blur what it teaches"]


def test_a_teacher_that_would_be_trained():
    student = Mean()
    same = Teacher(student.eval(), task="classification")
    assert advice(examine.check_teacher("p", same, objective(student), CONTEXT)) == ["it would be trained"]


@pytest.mark.parametrize(("masked", "sound"), [(True, True), (False, False)])
def test_a_model_that_ignores_its_mask(masked, sound):
    line = examine.check_padding("p", objective(Mean(masked)), batch(), 0)
    assert (line.advice == "") is sound
    assert sound or "padding changes what the model says" in line.advice


def test_padding_of_a_language_model():
    model, _ = build("llama", "causal_lm")
    rows = {"input_ids": torch.randint(4, 200, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    rows |= {"labels": rows["input_ids"].clone(), "valid": torch.ones(2, dtype=torch.bool), "index": torch.arange(2)}
    one = Objective(model, {"hard": HardLabel()}, task="causal_lm")
    assert advice(examine.check_padding("p", one, rows, 0)) == []
    assert advice(examine.check_gradients("p", one, rows, None)) == []


def test_a_loss_that_counts_filler():
    class Careless(HardLabel):
        def count(self, targets):
            return torch.tensor(float(targets.labels.numel()))

    assert advice(examine.check_filler("p", objective(hard=Careless()), batch(), None)) == [
        "a loss doesn't respect `valid`"
    ]


def test_a_loss_without_the_squared_temperature():
    class Plain(SoftTarget):
        def forward(self, student, teacher, targets):
            total, count = super().forward(student, teacher, targets)
            return total / self.temperature**2, count

    lines = list(examine.check_temperature("p", {"soft": Plain(), "hard": HardLabel()}))
    assert [line.what for line in lines] == ["p: T^2 scaling of losses.soft"]
    assert "T^2 is missing or doubled" in lines[0].advice


def test_a_tensor_that_no_gradient_reaches():
    student = Mean()
    student.unused.requires_grad_(True)
    line = examine.check_gradients("p", objective(student), batch(), heard)
    assert line.finding == "reach 3 of 5 trainable tensors"
    assert line.advice.startswith("no gradient reaches roles.student.unused.weight and 1 more")


def test_a_loss_that_is_no_number():
    student = Mean()
    with torch.no_grad():
        student.head.bias.fill_(float("nan"))
    line = examine.check_gradients("p", objective(student), batch(), heard)
    assert line.finding == "the first loss is nan"
    assert line.advice
