"""Inputs of linears rounded by hooks: by hand, attached from a config, taken away again."""

import pytest
import torch
from torch import nn
from transformers import BertConfig

from distill_system.export.dense import load, save_model
from distill_system.models.input_steps import attach_steps, detach_steps, limits, quantized_input
from distill_system.phases.teachers import make
from tests.quantization.test_prepare import model_of


def test_by_hand():
    assert limits(3) == (-4, 3)
    x = torch.tensor([-9.0, -0.3, 0.2, 0.3, 1.1, 9.0])
    assert quantized_input(x, torch.tensor(0.5), 3).tolist() == [-2.0, -0.5, 0.0, 0.5, 1.0, 1.5]


def test_attached_and_detached():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    x = torch.tensor([[0.3, -0.7]])
    plain = model(x)
    attach_steps(model, 2, {"0": 0.5})
    rounded = model[1](nn.functional.linear(torch.tensor([[0.5, -0.5]]), model[0].weight, model[0].bias))
    torch.testing.assert_close(model(x), rounded)
    detach_steps(model)
    torch.testing.assert_close(model(x), plain)
    with pytest.raises(ValueError, match="quantizes inputs of 7, which the model doesn't have"):
        attach_steps(model, 2, {"7": 0.5})


def test_a_folder_and_a_teacher_that_is_built_empty_round_alike(tmp_path):
    model = model_of("bert")
    name = "bert.encoder.layer.0.attention.self.query"
    model.config.quantized = {"quantizer": "kbit", "activations": {"bits": 2, "steps": {name: 0.7}}}
    save_model(tmp_path, model, None)
    loaded = load(tmp_path, "classification")
    built = make(BertConfig.from_pretrained(tmp_path), "classification").eval()
    built.load_state_dict(loaded.state_dict())
    ids = torch.arange(5, 13)[None]
    attach_steps(model.eval(), 2, {name: 0.7})
    wanted = model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted)
    torch.testing.assert_close(built(input_ids=ids).logits, wanted)
