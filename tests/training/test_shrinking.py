"""What a layer is worth to the output: effects against float64, and layers that hand on what they are given."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill_system.models.from_config import FromConfig
from distill_system.signals import Targets
from distill_system.training.shrinking import bypassed, changes, effect, forms


def targets(labels, valid, task="classification"):
    return Targets(torch.tensor(labels), torch.tensor(valid), task=task)


def test_kl_and_loss_against_the_formula():
    torch.manual_seed(0)
    whole, other = torch.randn(4, 3), torch.randn(4, 3)
    given = targets([0, 2, 1, 0], [True, True, False, True])
    p, q = whole.double().softmax(-1), other.double().softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    assert effect(whole, other, given, "classification", "kl") == pytest.approx(float(kl[[0, 1, 3]].sum()), rel=1e-9)
    rows = torch.tensor([0, 1, 3])
    labels = given.labels[rows]
    rise = F.cross_entropy(other.double()[rows], labels, reduction="sum") - F.cross_entropy(
        whole.double()[rows], labels, reduction="sum"
    )
    assert effect(whole, other, given, "classification", "loss") == pytest.approx(float(rise), rel=1e-9)


def test_nothing_changed_is_nothing():
    logits = torch.randn(2, 5, 300)
    given = Targets(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool), task="causal_lm")
    assert effect(logits, logits, given, "causal_lm", "kl") == pytest.approx(0, abs=1e-12)


def test_tasks_without_a_softmax():
    whole, other = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, -2.0]])
    given = Targets(torch.tensor([[1.0, 0.0]]), torch.tensor([True]), task="multi_label")
    p, q = torch.tensor(1.0).double().sigmoid(), 0.5
    wanted = float(p * (p / q).log() + (1 - p) * ((1 - p) / q).log())
    assert effect(whole, other, given, "multi_label", "kl") == pytest.approx(wanted, rel=1e-9)
    assert effect(whole, other, given, "regression", "kl") == pytest.approx(1.0)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_bypassed_layer_is_a_layer_less(architecture):
    """Against the same model without that layer in its list."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
    if architecture == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 3, "n_head": 4}
    recipe = FromConfig(architecture=architecture, tokenizer="bytes", dropout=0.0, **sizes)
    model = recipe.build(task="classification", label_names=["a", "b"], artifacts={}, seed=1)[0].eval()
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)
    ids = torch.randint(5, 200, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {} if architecture == "bert" else {"use_cache": False}
    )
    with torch.no_grad():
        with forms(layers) as gives_tuple:
            before = model(**inputs).logits
        with bypassed(layers[1], gives_tuple=gives_tuple[1]):
            given = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)  # and it is back
        middle = layers[1]
        del layers[1]
        model.config.num_hidden_layers = 2
        expected = model(**inputs).logits
    assert not torch.equal(given, before)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-7)
    assert middle is not None


class Turn(nn.Module):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, hidden_states):
        return (hidden_states * self.sign,)


def test_similarity_counts_real_tokens_only():
    layers = nn.ModuleList([Turn(2.0), Turn(-1.0)])
    real = torch.tensor([[True, True, False]])
    x = torch.randn(1, 3, 4)
    with changes(layers, [0, 1], real) as found:
        for layer in layers:
            x = layer(x)[0]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] == pytest.approx(4.0)  # two real tokens, each turned round: 1 - cos = 2


def test_similarity_of_pictures_is_the_mean_of_patches():
    layers = nn.ModuleList([Turn(-1.0)])
    with changes(layers, [0], torch.tensor([[True], [False]])) as found:
        layers[0](torch.randn(2, 5, 4))
    assert found[0] == pytest.approx(2.0)
