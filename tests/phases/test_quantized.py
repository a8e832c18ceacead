"""A model that is made ready for a quantize phase: what is swapped, said and refused; what its config says at the end."""

from types import SimpleNamespace

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.export.dense import named_tensors
from distill_system.models.input_steps import HANDLES, attach_steps
from distill_system.models.lstm import LstmConfig, LstmForSequenceClassification
from distill_system.phases.quantized import Settings, quantize_model
from distill_system.pruning.masks import keep_zeros
from distill_system.quantization.binary import DeterministicBinary
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.swap import quantized_modules
from distill_system.quantization.trained_ternary import TrainedTernary
from distill_system.settings import Embeddings, Inputs
from tests.quantization.test_prepare import model_of

CONTEXT = SimpleNamespace(name="q", phase_seed=5)
FIRST = "bert.encoder.layer.0.attention.self.query"


def quantized(settings, model=None):
    return quantize_model(model or model_of("bert"), settings, CONTEXT)


def test_the_plan_says_what_will_happen():
    plan = quantized(Settings(TrainedTernary(), Embeddings(bits=4), Inputs(bits=8))).plan()
    assert plan == (
        f"quantize: 12 linears ({FIRST}.weight to bert.encoder.layer.1.output.dense.weight) by trained_ternary, 3 levels; "
        "3 embeddings at 4 bits; inputs at 8 bits"
    )
    assert "256 levels at first, 4 at the end" in quantized(Settings(Kbit(bits=2, schedule=[8, 2]))).plan()


def test_draws_hang_on_the_phase_s_seed():
    assert quantized(Settings(TrainedTernary())).moment.seed == 5


def test_embeddings_have_rows_or_groups():
    for size, groups in ((None, 1), (4, 2)):
        found = quantized(Settings(TrainedTernary(), Embeddings(bits=3, group_size=size)))
        table = next(target for target in found.targets if target.kind == "embedding")
        assert table.quantizer.granularity.shape(1, 8) == (groups, 8 // groups)
        assert table.quantizer.levels(1.0) == 8
    assert not any(target.kind == "embedding" for target in quantized(Settings(TrainedTernary())).targets)


def test_binary_weights_on_masks_are_refused():
    model = model_of("bert")
    model.get_parameter(f"{FIRST}.weight").data[0, 0] = 0.0
    keep_zeros(model, [f"{FIRST}.weight"])
    with pytest.raises(Refusal, match=rf"phases.q.quantizer: has no level for 0, but weights of {FIRST}.weight"):
        quantized(Settings(DeterministicBinary()), model)
    rest = Settings(DeterministicBinary(), exclude=[f"{FIRST}.weight"])
    assert len(quantized(rest, model).targets) == 11


def test_a_model_that_rounded_its_inputs_is_trained_without_the_old_steps():
    model = model_of("bert")
    attach_steps(model, 2, {FIRST: 100.0})
    found = quantized(Settings(Kbit(bits=8, range="weights")), model)
    assert HANDLES not in vars(found.model)
    ids = torch.arange(5, 12)[None]
    plain = model_of("bert").eval()(input_ids=ids).logits
    torch.testing.assert_close(found.model.eval()(input_ids=ids).logits, plain, rtol=0.05, atol=0.02)


def test_inputs_of_a_linear_that_is_asked_for_its_matrix():
    model = LstmForSequenceClassification(LstmConfig(vocab_size=30, embedding_size=8, hidden_size=8))
    model.config.num_labels = 2
    with pytest.raises(Refusal, match=r"phases.q.activations.bits: is 8, but .*recurrent is asked for its weight"):
        quantized(Settings(Kbit(), activations=Inputs(bits=8)), model)
    found = quantized(Settings(Kbit(), activations=Inputs(bits=8), exclude=["*recurrent*"]), model)
    assert all("input" in name for name, _ in quantized_modules(found.model))


def test_the_config_says_what_became_of_the_model():
    found = quantized(Settings(Kbit(bits=3), activations=Inputs(bits=8)))
    found.model.config.pruned = "sparse"
    conversion = found.conversion()
    names = [name for name, _ in conversion(named_tensors(found.model))]
    assert len(names) == len(set(names))
    said = found.model.config.quantized
    assert (said["quantizer"], said["activations"]["bits"], len(said["activations"]["steps"])) == ("kbit", 8, 12)
    assert found.model.config.pruned == "dense"
