"""Members as one model: the same logits and gradients as one by one, and words where it can't be."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from distill_system.training.batched import Batched
from distill_system.training.emit import emit
from distill_system.training.folded import CantBatch
from tests.models import tiny as models

TEXT = {"dropout": 0.0}


def members(architecture, task="classification", count=3, **settings):
    return {f"m{i}": models.build(architecture, task, seed=i, **settings)[0].train() for i in range(count)}


def text(rows=4, length=7):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 200, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def without_dropout(found):
    for model in found.values():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for key, value in vars(model.config).items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
                setattr(model.config, key, 0.0)
        for module in model.modules():
            for name in ("attention_dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    return found


def vit(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).train()


def same_as_alone(found, task, batch):
    together = Batched(found, task)(batch)
    sum(logits.square().mean() * (i + 1) for i, logits in enumerate(together.values())).backward()
    gradients = {
        (n, k): p.grad.clone() for n, m in found.items() for k, p in m.named_parameters() if p.grad is not None
    }
    for i, (name, model) in enumerate(found.items()):
        model.zero_grad(set_to_none=True)
        logits = emit(model, batch, task).logits
        torch.testing.assert_close(together[name], logits, rtol=1e-6, atol=1e-6)
        (logits.square().mean() * (i + 1)).backward()
        for key, parameter in model.named_parameters():
            assert ((name, key) in gradients) == (parameter.grad is not None), key
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name, key], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("architecture", "task"), models.TASKS)
def test_logits_and_gradients_are_those_of_the_members(architecture, task):
    batch = text()
    batch["input_ids"][1, 4:] = 0
    batch["input_ids"][2, 3] = 0  # a padding token that is attended to: its vector gets no gradient
    same_as_alone(without_dropout(members(architecture, task)), task, batch)


def test_pictures_too():
    pictures = {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    same_as_alone({f"m{i}": vit(i) for i in range(3)}, "classification", pictures)


def test_frozen_layers_stay_without_a_gradient():
    found = without_dropout(members("bert", count=2))
    for model in found.values():
        model.bert.embeddings.requires_grad_(False)
    same_as_alone(found, "classification", text())


def test_one_compilation_serves_all_lengths(monkeypatch):
    """Graphs that are traced but not turned into code show as well how often lengths make torch start anew."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: whole(f, backend=backend, **settings))
    found = without_dropout(members("bert", count=2, num_hidden_layers=1))
    batched = Batched(found, "classification", compiled=True)
    batched(text(length=7))
    first = len(compiled)
    for length in (9, 5, 12):
        torch.testing.assert_close(
            batched(text(length=length))["m1"], found["m1"](**text(length=length)).logits, rtol=1e-5, atol=1e-6
        )
    assert len(compiled) == first


def test_a_layer_that_nobody_knows_is_told():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(32))

        def forward(self, x):
            return x * self.gain

    found = without_dropout(members("bert", count=2))
    for model in found.values():
        model.bert.pooler.activation = Scale()
    with pytest.raises(CantBatch, match="Scale holds weights that only it knows how to use"):
        Batched(found, "classification")


def test_members_differ_from_each_other():
    together = Batched(without_dropout(members("bert")), "classification")(text())
    assert not torch.allclose(together["m0"], together["m1"])


def test_other_sizes_and_dropout_are_told():
    found = without_dropout(members("bert", count=1)) | {"big": models.build("bert", num_hidden_layers=4)[0]}
    with pytest.raises(CantBatch, match="m0 and big differ in architecture"):
        Batched(found, "classification")
    with_dropout = {f"m{i}": models.build("bert", seed=i, hidden_dropout_prob=0.1)[0] for i in range(2)}
    with pytest.raises(CantBatch, match="dropout draws random numbers"):
        Batched(with_dropout, "classification")


def test_frozen_parameters_must_be_the_same():
    found = without_dropout(members("bert", count=2))
    next(found["m1"].parameters()).requires_grad_(False)
    with pytest.raises(CantBatch, match="which of them are frozen"):
        Batched(found, "classification")
