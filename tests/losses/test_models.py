"""Losses on the inside of real models: encoders, a causal model with grouped keys, pictures; padding and filler rows change nothing."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    ResNetConfig,
    ViTConfig,
)

from distill_system.errors import Refusal
from distill_system.training.emit import emit, prepare_for
from distill_system.training.objective import targets_of
from tests.losses.samples import make

INSIDE = ["hint", "attention_transfer", "relation", "relational"]


def sizes(layers, width, heads):
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 2 * width,
    }


def bert(*size):
    config = BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=3, **sizes(*size))
    return AutoModelForSequenceClassification.from_config(config)


def llama(*size):
    return AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=30, num_key_value_heads=size[2] // 2, **sizes(*size))
    )


def vit(*size):
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes(*size))
    return AutoModelForImageClassification.from_config(config)


def resnet(layers, width, downsample=False):
    config = ResNetConfig(
        num_channels=1,
        embedding_size=width,
        hidden_sizes=[width] * layers,
        depths=[1] * layers,
        layer_type="basic",
        downsample_in_first_stage=downsample,
        num_labels=3,
    )
    return AutoModelForImageClassification.from_config(config)


def batch_of(task, rows=4, padding=0):
    generator = torch.Generator().manual_seed(0)
    valid = torch.tensor([True, True, True, False])[:rows]
    if task == "pictures":
        pixels = torch.randn(4, 1, 8, 8, generator=generator)
        return {"pixel_values": pixels[:rows], "labels": torch.tensor([0, 1, 2, 0])[:rows], "valid": valid}
    ids = torch.randint(5, 30, (4, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 2])[:, None]
    ids, mask = (torch.nn.functional.pad(part.long(), (0, padding)) for part in (ids, mask))
    labels = torch.tensor([0, 1, 2, 0]) if task == "classification" else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids[:rows], "attention_mask": mask[:rows], "labels": labels[:rows], "valid": valid}


def value(loss, student, teacher, batch, task):
    needs = frozenset(loss.needs)
    total, count = loss(emit(student, batch, task, needs), emit(teacher, batch, task, needs), targets_of(batch, task))
    return total, count


def pair(make_model, name, seed=0, **settings):
    torch.manual_seed(seed)
    student, teacher = make_model(2, 16, 2).eval(), make_model(3, 32, 4).eval()
    loss = make(name, **settings)
    for model in (student, teacher):
        prepare_for(model, frozenset(loss.needs), "k")
    return student, teacher, loss


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(
    ("make_model", "task"),
    [(bert, "classification"), (llama, "causal_lm"), (vit, "pictures")],
    ids=["bert", "llama", "vit"],
)
def test_on_transformers(name, make_model, task):
    settings = {"relation_heads": 4} if name == "relation" else {}
    student, teacher, loss = pair(make_model, name, **settings)
    kind, needs = "causal_lm" if task == "causal_lm" else "classification", frozenset(loss.needs)
    batch = batch_of(task)
    with torch.no_grad():
        told = loss.bind(emit(student, batch, kind, needs), emit(teacher, batch, kind, needs), key="k", seed=0)
    if name in ("hint", "attention_transfer"):
        assert told["pairs"] == [[0, 1], [1, 2]]
    total, count = value(loss, student, teacher, batch, kind)
    total.backward()
    assert total > 0
    assert count.item() == 3
    assert any(p.grad is not None and torch.count_nonzero(p.grad) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    for p in loss.parameters():
        assert torch.count_nonzero(p.grad) > 0
    fewer, _ = value(loss, student, teacher, batch_of(task, rows=3), kind)
    torch.testing.assert_close(fewer, total, rtol=1e-4, atol=1e-6)
    if task != "pictures":
        longer, _ = value(loss, student, teacher, batch_of(task, padding=3), kind)
        torch.testing.assert_close(longer, total, rtol=1e-4, atol=1e-6)


def test_hints_between_cnns_whose_maps_differ_in_size():
    torch.manual_seed(0)
    student, teacher = resnet(2, 4, downsample=True).eval(), resnet(2, 6).eval()
    loss, batch = make("hint"), batch_of("pictures")
    sides = [emit(model, batch, "classification", frozenset({"hidden"})) for model in (student, teacher)]
    assert sides[0].hidden[1].shape[2:] != sides[1].hidden[1].shape[2:]
    assert loss.bind(*sides, key="k", seed=0) == {"pairs": [[0, 0], [1, 1]], "projectors": 2}
    total, count = value(loss, student, teacher, batch, "classification")
    total.backward()
    assert (total > 0, count.item()) == (True, 3)
    assert torch.count_nonzero(student.resnet.embedder.embedder.convolution.weight.grad) > 0


def test_a_cnn_and_a_transformer_have_no_tokens_in_common():
    torch.manual_seed(0)
    batch = batch_of("pictures")
    sides = [emit(model, batch, "classification", frozenset({"hidden"})) for model in (resnet(2, 4), vit(2, 16, 2))]
    with pytest.raises(Refusal, match="token by token"):
        make("hint").bind(*sides, key="k", seed=0)
