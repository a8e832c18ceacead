"""What models show of themselves: logits alone unless asked, hidden states, attention, and the three projections of each layer, for real architectures."""

import pytest
import torch
from torch import nn

from distill_system.errors import Refusal
from distill_system.training.emit import emit, prepare_for, projection_names, shown
from tests.models import tiny as models

EVERYTHING = frozenset({"logits", "hidden", "attention", "projections"})


def text(rows=2, length=6):
    ids = torch.randint(4, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "classification"), ("distilbert", "classification"), ("llama", "causal_lm"), ("gpt2", "causal_lm")],
)
def test_the_inside_has_the_shapes_that_losses_expect(architecture, task):
    model, _ = models.build(architecture, task)
    note = prepare_for(model, EVERYTHING, "losses.x")
    assert note is None or "eager" in note
    signals = shown(model, text(), task, EVERYTHING)
    layers = model.config.num_hidden_layers
    assert len(signals.hidden) == layers + 1
    assert len(signals.attention) == len(signals.projections) == layers
    assert signals.hidden[0].shape == (2, 6, model.config.hidden_size)
    assert signals.attention[0].shape[-2:] == (6, 6)
    torch.testing.assert_close(signals.attention[0].sum(-1), torch.ones(signals.attention[0].shape[:-1]))
    assert [part.shape[:2] for part in signals.projections[0]] == [(2, 6)] * 3


def test_projections_are_those_that_attention_is_made_of():
    model, _ = models.build("bert")
    prepare_for(model, EVERYTHING, "x")
    signals = shown(model, text(), "classification", EVERYTHING)
    heads = model.config.num_attention_heads
    queries, keys = (part.view(2, 6, heads, -1).transpose(1, 2) for part in signals.projections[1][:2])
    expected = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(signals.attention[1], expected, rtol=1e-5, atol=1e-6)


def test_what_nobody_asks_for_is_not_computed():
    model, _ = models.build("bert")
    signals = emit(model.eval(), text(), "classification")
    assert (signals.hidden, signals.attention, signals.projections) == (None, None, None)
    assert model.config._attn_implementation != "eager"


def test_hooks_are_gone_afterwards():
    model, _ = models.build("bert")
    shown(model, text(), "classification", frozenset({"projections"}))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_mode_is_put_back():
    model, _ = models.build("bert")
    model.train()
    shown(model, text(), "classification", frozenset({"logits"}))
    assert model.training


def test_a_model_that_hides_its_projections_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(Refusal, match=r"losses\.relation: reads queries, keys and values"):
        projection_names(Odd(), "losses.relation")
