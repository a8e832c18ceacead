"""The recurrent classifier: torch's LSTM to rounding, padding that changes nothing, folders that load anywhere, matrices that are swapped like any other."""

import math
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import distill_system
from distill_system.errors import Refusal
from distill_system.export.dense import named_tensors, save_model, verify
from distill_system.export.onnx import export_onnx
from distill_system.export.sparse import write_sparse
from distill_system.models.anatomy import find_anatomy
from distill_system.models.from_config import FromConfig
from distill_system.models.from_layers import FromLayers
from distill_system.models.from_phase import FromPhase
from distill_system.models.grid import Granularity, Grid
from distill_system.models.lstm import Direction, LstmConfig, LstmForSequenceClassification
from distill_system.models.parts import matrices
from distill_system.quantization.base import Moment
from distill_system.quantization.swap import Site, swap
from tests.distributed.launch import ROOT
from tests.models import tiny
from tests.quantization.toys import decoded

LENGTHS = [5, 9, 1]


def recipe(**more):
    return FromConfig("lstm", tokenizer="bytes", dropout=0.1, **{"hidden_size": 7, "embedding_size": 14} | more)


def build(**more):
    return recipe(**more).build(task="classification", label_names=tiny.LABELS, seed=3)


def texts(lengths=LENGTHS, width=None):
    """(ids, mask), padded on the right."""
    width = width or max(lengths)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 259, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def peer(model):
    """torch's own LSTM with the same weights; its second bias is zero."""
    config = model.config
    lstm = nn.LSTM(
        config.embedding_size,
        config.hidden_size,
        config.num_hidden_layers,
        batch_first=True,
        bidirectional=config.bidirectional,
    ).to(model.dtype)
    with torch.no_grad():
        for number, layer in enumerate(model.lstm.layers):
            for suffix, part in (("", layer.forwards), ("_reverse", layer.backwards)):
                if part is not None:
                    getattr(lstm, f"weight_ih_l{number}{suffix}").copy_(part.input.weight)
                    getattr(lstm, f"weight_hh_l{number}{suffix}").copy_(part.recurrent.weight)
                    getattr(lstm, f"bias_ih_l{number}{suffix}").copy_(part.input.bias)
                    getattr(lstm, f"bias_hh_l{number}{suffix}").zero_()
    return lstm


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_torchs_lstm(bidirectional, layers):
    model, _ = build(bidirectional=bidirectional, num_hidden_layers=layers)
    model = model.double()
    lstm = peer(model)
    ids, mask = texts()
    packed = pack_padded_sequence(model.lstm.embeddings(ids), LENGTHS, batch_first=True, enforce_sorted=False)
    states, (last, _) = lstm(packed)
    expected_BTE, _ = pad_packed_sequence(states, batch_first=True)
    sides = 2 if bidirectional else 1
    last_BE = torch.cat(list(last[-sides:]), -1)
    found = model(ids, mask, output_hidden_states=True)
    found_BTE = found.hidden_states[-1] * mask.unsqueeze(-1)
    torch.testing.assert_close(found_BTE, expected_BTE, rtol=0, atol=1e-14)
    assert len(found.hidden_states) == layers + 1
    mean_BE = expected_BTE.sum(1) / torch.tensor(LENGTHS)[:, None]
    torch.testing.assert_close(found.logits, model.classifier(mean_BE), rtol=0, atol=1e-14)
    model.config.pooling = "last"
    torch.testing.assert_close(model(ids, mask).logits, model.classifier(last_BE), rtol=0, atol=1e-14)

    (last_BE**2).sum().backward()
    (model.lstm(ids, mask).last_hidden_state ** 2).sum().backward()
    for number, layer in enumerate(model.lstm.layers):
        for name, own in (("weight_ih", layer.forwards.input.weight), ("weight_hh", layer.forwards.recurrent.weight)):
            torch.testing.assert_close(own.grad, getattr(lstm, f"{name}_l{number}").grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(pooling, side):
    model, _ = build(pooling=pooling, num_hidden_layers=2)
    model = model.double()
    ids, mask = texts()
    together = ids, mask
    if side == "left":
        together = tuple(
            torch.stack([row.roll(row.shape[0] - n) for row, n in zip(part, LENGTHS, strict=True)])
            for part in (ids, mask)
        )
    logits = model(*together).logits
    rubbish = torch.where(together[1].bool(), together[0], 77)
    torch.testing.assert_close(model(rubbish, together[1]).logits, logits, rtol=0, atol=0)
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length])  # without a mask
        torch.testing.assert_close(logits[row : row + 1], alone.logits, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_text_without_tokens_gets_the_heads_bias(pooling):
    model, _ = build(pooling=pooling)
    ids, mask = texts([4, 0])
    torch.testing.assert_close(model(ids, mask).logits[1], model.classifier.bias, rtol=0, atol=0)


def test_a_value_worked_by_hand():
    """One unit, x = 1, 1, all weights 1 but the output gate's, which are 0; no biases: o = 1/2 throughout."""
    direction = Direction(1, 1, backwards=False).double()
    with torch.no_grad():
        for linear in (direction.input, direction.recurrent):
            linear.weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
        direction.input.bias.zero_()
        states, last = direction(torch.ones(1, 2, 1, dtype=torch.float64), None)
    gate = 1 / (1 + math.exp(-1))
    first = 0.5 * math.tanh(gate * math.tanh(1))
    opened = 1 / (1 + math.exp(-1 - first))
    second = 0.5 * math.tanh(opened * gate * math.tanh(1) + opened * math.tanh(1 + first))
    assert states[0, :, 0].tolist() == pytest.approx([first, second], abs=1e-15)
    assert last.item() == states[0, 1, 0].item()


class Signs:
    """One bit, without scales."""

    granularity, scale_lr, has_zero, names, trained, curvature = Granularity("row"), 1.0, False, (), (), False

    def levels(self, progress):
        return 2

    def initial(self, weight_GN):
        return {}

    def encode(self, weight_GN, given, moment, draw):
        one_G1 = torch.ones(len(weight_GN), 1, dtype=weight_GN.dtype)
        return (weight_GN >= 0).to(torch.uint8), Grid(2, 2 * one_G1, one_G1 * 0.5)

    def quantize(self, weight_GN, given, moment, draw):
        return decoded(self, weight_GN, given, moment, draw)

    def gradients(self, upstream_GN, weight_GN, given, moment, draw):
        return upstream_GN, {}


def test_swapped_linears_act_once_a_forward():
    model, _ = build(num_hidden_layers=2)
    plain, _ = build(num_hidden_layers=2)
    names = [f"lstm.layers.{i}.{way}.{what}" for i in (0, 1) for way in WAYS for what in ("input", "recurrent")]
    assert [(name, module, axis) for name, module, axis in matrices(model)] == [(f"{n}.weight", n, 1) for n in names]
    with torch.no_grad():
        for parameter, name, _ in matrices(plain):
            weight = plain.get_parameter(parameter)
            weight.copy_(torch.where(weight >= 0, 1.0, -1.0))
            swap(model.get_submodule(name), Site(Signs(), Moment(), 0))
    calls = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    ids, mask = texts()
    logits = model(ids, mask).logits
    assert calls == names
    assert torch.equal(logits, plain(ids, mask).logits)
    logits.square().sum().backward()
    plain(ids, mask).logits.square().sum().backward()
    for name in names:  # straight through
        found, expected = (m.get_submodule(name).weight.grad for m in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


WAYS = ("forwards", "backwards")


def test_how_weights_begin():
    model, _ = build(hidden_size=16)
    again, _ = build(hidden_size=16)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    for way in WAYS:
        direction = getattr(model.lstm.layers[0], way)
        assert direction.input.bias.view(4, 16).tolist() == [[float(gate == 1)] * 16 for gate in range(4)]
        assert direction.recurrent.bias is None
        square = direction.recurrent.weight.T @ direction.recurrent.weight
        torch.testing.assert_close(square, torch.eye(16), rtol=0, atol=1e-5)
        assert direction.recurrent.weight_only
    assert not torch.equal(model.lstm.layers[0].forwards.input.weight, model.lstm.layers[0].backwards.input.weight)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert model.config.vocab_size == 260


def test_a_saved_folder_loads_here_and_where_nothing_but_transformers_is(tmp_path):
    model, tokenizer = build(num_hidden_layers=2)
    save_model(tmp_path / "model", model, tokenizer)
    inputs = tiny.batch(tokenizer)
    logits = tiny.logits(model, inputs)
    assert verify(tmp_path / "model", "classification", inputs, logits, tokenizer=tokenizer) == 0
    loaded = distill_system.load(tmp_path / "model")
    assert type(loaded) is LstmForSequenceClassification
    assert not hasattr(loaded.config, "auto_map")
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('model', trust_remote_code=True)\n"
        "model = AutoModelForSequenceClassification.from_pretrained('model', trust_remote_code=True).eval()\n"
        "inputs = tokenizer(['a fine film', 'dull'], padding=True, return_tensors='pt')\n"
        "assert not any(name.startswith('distill_system') for name in sys.modules)\n"
        "torch.save(model(**inputs).logits, 'logits.pt')\n"
        "model.save_pretrained('again')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
    again = distill_system.load(tmp_path / "again")  # as others save it
    assert torch.equal(tiny.logits(again, inputs), logits)
    refused = code.replace("model', trust_remote_code=True)", "model', trust_remote_code=False)")
    done = subprocess.run([sys.executable, "-c", refused], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "trust_remote_code=True" in done.stderr


def test_its_code_goes_with_it(tmp_path):
    model, tokenizer = build()
    save_model(tmp_path, model, tokenizer)
    assert (tmp_path / "modeling_lstm.py").read_text() == (ROOT / "distill_system/models/lstm.py").read_text()
    other, tokenizer = tiny.build("bert")
    save_model(tmp_path, other, tokenizer)
    assert not (tmp_path / "modeling_lstm.py").exists()


@pytest.fixture
def folder(tmp_path):
    """Three layers of equal sizes."""
    model, tokenizer = build(num_hidden_layers=3)
    save_model(tmp_path / "model", model, tokenizer)
    return tmp_path / "model"


def test_later_phases_build_from_it(folder):
    whole = distill_system.load(folder)
    model, tokenizer = FromPhase("first", dropout=0.3).build(
        task="classification", label_names=tiny.LABELS, artifacts={"first": folder}
    )
    inputs = tiny.batch(tokenizer)
    assert torch.equal(tiny.logits(model, inputs), tiny.logits(whole, inputs))
    assert model.dropout.p == 0.3
    assert find_anatomy(model).layers == "lstm.layers"
    fewer, _ = FromLayers(phase="first", layers=[0, 2]).build(
        task="classification", label_names=tiny.LABELS, artifacts={"first": folder}
    )
    assert torch.equal(fewer.lstm.layers[1].forwards.recurrent.weight, whole.lstm.layers[2].forwards.recurrent.weight)
    assert torch.equal(fewer.lstm.embeddings.weight, whole.lstm.embeddings.weight)
    assert recipe().max_positions({}) is None


def test_a_sparse_one(folder, tmp_path):
    model = distill_system.load(folder)
    with torch.no_grad():
        model.lstm.layers[0].forwards.recurrent.weight[3:] = 0.0
    write_sparse(tmp_path / "sparse", named_tensors(model), {}, model.config, recipe().load_tokenizer())
    inputs = tiny.batch(recipe().load_tokenizer())
    loaded = distill_system.load(tmp_path / "sparse")
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(model, inputs))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling": "max"}, "m.pooling: is 'max', must be one of mean, last"),
        ({"hidden_sizes": 4}, "m.hidden_sizes: is not a setting of lstm (did you mean 'hidden_size'?)"),
        ({"embedding_size": 0}, "m.embedding_size: is 0, must be >= 1"),
        ({"bidirectional": 1.5}, "m.bidirectional: is 1.5, must be"),
    ],
)
def test_settings(settings, expected):
    (problem,) = recipe(**settings).problems("m", task="classification", artifacts_known=set())
    assert expected in str(problem)


def test_what_it_is_not_made_for(tmp_path):
    (problem,) = recipe().problems("m", task="causal_lm", artifacts_known=set())
    assert "has no model for causal_lm" in problem.message
    with pytest.raises(ValueError, match="pooling is 'sum', must be mean or last"):
        LstmForSequenceClassification(LstmConfig(pooling="sum"))
    with pytest.raises(Refusal, match="pooling"):
        recipe(pooling="sum").build(task="classification", num_labels=2)
    model, tokenizer = build()
    with pytest.raises(ValueError, match="LstmForSequenceClassification can't be exported to ONNX"):
        export_onnx(model, tmp_path / "model.onnx", tiny.batch(tokenizer))


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_on_whole_texts(task, tmp_path):
    labels = tiny.LABELS if task == "multi_label" else []
    model, tokenizer = recipe().build(task=task, label_names=labels)
    save_model(tmp_path, model, tokenizer)
    inputs = tiny.batch(tokenizer)
    assert verify(tmp_path, task, inputs, tiny.logits(model, inputs)) < 1e-7


def test_the_config_file():
    settings = yaml.safe_load((ROOT / "conf" / "models" / "small_lstm.yaml").read_text())
    assert settings.pop("_target_").endswith(".FromConfig")
    model, _ = FromConfig(**settings).build(task="classification", num_labels=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 82_946
