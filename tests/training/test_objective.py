"""What the objective reads from a batch, and what it must not let change the loss."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill_system.losses.logits import LogitRegression, SoftTarget
from distill_system.losses.task import HardLabel
from distill_system.training.emit import model_inputs
from distill_system.training.objective import Objective, logits_of, targets_of
from tests.models.tiny import build
from tests.training.tiny import Net, batch, heard

BOTH = {"soft": SoftTarget(2.0), "hard": HardLabel()}


class Fixed(nn.Module):
    """A language model over three words that always says the same: word t + 1 (mod 3) is likely after position t."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        assert use_cache is False
        table_TC = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        return SimpleNamespace(logits=table_TC.expand(len(input_ids), -1, -1))


def language_batch():
    return {
        "input_ids": torch.tensor([[0, 1, 2, 0], [0, 2, 1, 1]]),
        "labels": torch.tensor([[0, 1, 2, 0], [0, 2, -100, -100]]),
        "valid": torch.tensor([True, True]),
    }


def test_language_modelling_speaks_of_the_next_word():
    objective = Objective(Fixed(), {"hard": HardLabel()}, task="causal_lm")
    assert objective.count(language_batch()).tolist() == [4.0]
    loss, sums = objective(language_batch(), None, torch.tensor([1.0]))
    likely, unlikely = -math.log(math.exp(2) / (math.exp(2) + 2)), -math.log(1 / (math.exp(2) + 2))
    # Row one: 1, 2 and 0 follow as foretold. Row two: 2 follows where 1 was foretold; the rest is padding.
    assert float(loss.detach()) == pytest.approx(3 * likely + unlikely, rel=1e-6)
    assert sums.tolist() == pytest.approx([3 * likely + unlikely], rel=1e-6)
    assert logits_of(Fixed(), language_batch(), "causal_lm").shape == (2, 3, 3)


def test_a_filler_row_in_language_modelling_has_no_target():
    filler = language_batch() | {"valid": torch.tensor([True, False])}
    targets = targets_of(filler, "causal_lm")
    assert targets.valid.tolist() == [[True] * 3, [False] * 3]
    assert Objective(Fixed(), {"hard": HardLabel()}, task="causal_lm").count(filler).tolist() == [3.0]


def test_counts_tell_labelled_rows_from_real_ones():
    given = {
        "labels": torch.tensor([0, -100, 2, -100, -100]),
        "valid": torch.tensor([True, True, True, True, False]),
    }
    assert Objective(Net(), BOTH, task="classification").count(given).tolist() == [4.0, 2.0]


def test_the_loss_is_scaled_by_loss_and_sums_are_not():
    objective = Objective(Net(dropout=0.0), BOTH, task="classification")
    whole = batch(0)
    loss, sums = objective(whole, heard(whole), torch.tensor([0.25, 3.0]))
    assert float(loss.detach()) == pytest.approx(float(0.25 * sums[0] + 3.0 * sums[1]), rel=1e-6)
    assert sums.dtype == torch.float64
    assert not sums.requires_grad
    assert min(sums.tolist()) > 0


@pytest.mark.parametrize("losses", [BOTH, {"regression": LogitRegression()}])
def test_filler_rows_change_nothing(losses):
    objective = Objective(Net(dropout=0.0), losses, task="classification")
    whole = batch(0)
    padded = {name: torch.cat([tensor, tensor[:3]]) for name, tensor in whole.items()}
    padded["valid"][-3:] = False
    padded["labels"][-3:] = -100
    scale_L = torch.ones(len(losses))
    gradients = []
    for given in (whole, padded):
        objective.zero_grad()
        loss, sums = objective(given, heard(given), scale_L)
        loss.backward()
        gradients.append((float(loss.detach()), sums, objective.student.head.weight.grad.clone()))
    assert torch.equal(objective.count(padded), objective.count(whole))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0][2], gradients[1][2], rtol=1e-5, atol=1e-7)


def test_without_a_scale_it_gives_logits_alone():
    whole = batch(0)
    objective = Objective(Net(dropout=0.0), BOTH, task="classification")
    assert objective(whole).shape == (8, 3)


def test_each_model_gets_what_its_forward_knows():
    whole = {"input_ids": 1, "attention_mask": 2, "token_type_ids": 3, "labels": 4, "index": 5, "valid": 6}
    expected = {
        ("bert", "classification"): {"input_ids", "attention_mask", "token_type_ids"},
        ("distilbert", "classification"): {"input_ids", "attention_mask"},
        ("llama", "causal_lm"): {"input_ids", "attention_mask", "use_cache"},
    }
    for (architecture, task), names in expected.items():
        model, _ = build(architecture, task)
        assert model_inputs(model, whole).keys() == names, architecture
