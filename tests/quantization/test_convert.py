"""What is handed on of a trained model: values on grids, nothing of the quantizers, shared weights once."""

import pytest
import torch

from distill_system.export.dense import named_tensors
from distill_system.models.grid import grouped
from distill_system.quantization.activations import STEP, Activations
from distill_system.quantization.base import Moment
from distill_system.quantization.binary import DeterministicBinary
from distill_system.quantization.convert import Conversion
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.loss_aware import LossAware
from distill_system.quantization.prepare import prepare, targets_of
from distill_system.quantization.trained_ternary import TrainedTernary
from tests.quantization.test_prepare import model_of


def converted(model, quantizer, embeddings=None, activations=None):
    targets = targets_of(model, quantizer, embeddings, (), (), "phases.q")
    prepare(model, targets, Moment(), activations)
    conversion = Conversion(model)
    return dict(conversion(named_tensors(model))), conversion


@pytest.mark.parametrize("quantizer", [TrainedTernary(), DeterministicBinary(), LossAware("ternary"), Kbit(bits=3)])
@pytest.mark.parametrize(("architecture", "task"), [("bert", "classification"), ("gpt2", "causal_lm")])
def test_the_model_s_own_names_with_values_on_grids(quantizer, architecture, task):
    plain = {name: tensor.clone() for name, tensor in named_tensors(model_of(architecture, task))}
    model = model_of(architecture, task)
    values, conversion = converted(model, quantizer, Kbit(bits=4, symmetric=False, range="weights"))
    assert values.keys() == plain.keys()
    assert {name: value.shape for name, value in values.items()} == {name: t.shape for name, t in plain.items()}
    for name, on in conversion.grids.items():
        on.codes(values[name])  # to the bit
        assert conversion.zeros[name] == int((values[name] == 0).sum())
    untouched = values.keys() - conversion.grids.keys()
    assert untouched
    assert all(torch.equal(values[name], plain[name]) for name in untouched)


def test_values_are_those_of_the_forward():
    torch.manual_seed(0)
    model = model_of("bert").eval()
    values, _ = converted(model, Kbit(bits=2))
    again = model_of("bert").eval()
    again.load_state_dict(values)
    ids = torch.arange(5, 12)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, again(input_ids=ids).logits, rtol=1e-6, atol=1e-6)


def test_what_was_trained_is_taken_from_the_stream():
    """Under ZeRO the module's own parameters may be empty: only the stream tells."""
    model = model_of("bert")
    prepare(model, targets_of(model, TrainedTernary(), None, (), (), "phases.q"), Moment())
    name = "bert.encoder.layer.0.output.dense"
    stream = dict(named_tensors(model))
    stream[f"{name}.weight_positive"] = torch.full((8, 1), 0.25)
    module = model.get_submodule(name)
    module.weight_positive.data.zero_()
    values = dict(Conversion(model)(stream.items()))
    assert set(values[f"{name}.weight"].unique().tolist()) >= {0.25}


def test_a_stream_that_lacks_what_was_trained_is_an_error():
    model = model_of("bert")
    prepare(model, targets_of(model, TrainedTernary(), None, (), (), "phases.q"), Moment())
    stream = {name: tensor for name, tensor in named_tensors(model) if not name.endswith("weight_negative")}
    with pytest.raises(AssertionError, match="nothing came of"):
        dict(Conversion(model)(stream.items()))


def test_a_tied_table_comes_once_and_steps_of_inputs_are_told():
    model = model_of("gpt2", "causal_lm")
    activations = Activations(8, learned=True)
    values, conversion = converted(model, Kbit(bits=4), Kbit(bits=4, symmetric=False, range="weights"), activations)
    assert "transformer.wte.weight" in conversion.grids
    assert "lm_head.weight" not in values
    assert not any(name.endswith(STEP) for name in values)
    assert conversion.steps.keys() == {
        f"transformer.h.{layer}.{part}"
        for layer in (0, 1)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert set(conversion.steps.values()) == {1.0}


def test_conv1d_groups_lie_along_the_inputs():
    model = model_of("gpt2", "causal_lm")
    values, conversion = converted(model, Kbit(bits=3, granularity="group", group_size=4))
    name = "transformer.h.0.mlp.c_fc.weight"
    on = conversion.grids[name]
    rows_GN = grouped(values[name], on.granularity, on.input_axis)
    assert rows_GN.shape == (8 * 32 // 4, 4)
    assert torch.equal(rows_GN[1], values[name][4:8, 0])
