"""Every quantizer keeps the protocol: values are decoded codes to the bit, zeros stay zero, nothing is changed in place, configs are complete."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.config.instantiate import instantiate
from distill_system.models.grid import grouped
from distill_system.quantization.base import Draw, Moment
from distill_system.schema import check_parameters, signature_of_target
from tests.quantization.samples import CASES, CLASSES, DRAW, IDS, NOW, make, matrices, moved

ROOT = Path(__file__).parents[2]
YAMLS = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "quantization").glob("*.yaml"))
}
every_form = pytest.mark.parametrize(("name", "form"), CASES, ids=IDS)
every_class = pytest.mark.parametrize("name", CLASSES)


def test_there_is_a_config_for_each():
    assert set(YAMLS) == set(CLASSES)


@every_class
def test_config_shows_every_setting_with_its_default(name):
    node = YAMLS[name]
    assert type(instantiate(node)) is CLASSES[name]
    defaults = {key: p.default for key, p in inspect.signature(CLASSES[name]).parameters.items()}
    assert {key: value for key, value in node.items() if key != "_target_"} == defaults


@every_class
def test_config_checks_read_what_it_is(name):
    quantizer, signature = make(name), signature_of_target(YAMLS[name]["_target_"])
    for attribute in ("has_zero", "names", "trained", "curvature"):
        if (name, attribute) != ("loss_aware", "has_zero"):  # it depends on its states
            assert signature.attributes[attribute] == getattr(quantizer, attribute)


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("kbit", "bits", 0),
        ("kbit", "bits", 33),
        ("kbit", "schedule", [8, 1]),
        ("kbit", "schedule_until", 1.0),
        ("loss_aware", "bits", 2),
        ("loss_aware", "states", "tenary"),
        ("ternary_connect", "threshold", 0.0),
        ("ternary_connect", "threshold_negative", -0.5),
        ("trained_ternary", "threshold", 1.0),
        ("binary_constants", "gap", 0.0),
        ("deterministic_binary", "clip", 0.0),
        ("bernoulli_ternary", "draws", 0),
        ("bernoulli_ternary", "granularity", "column"),
    ],
)
def test_wrong_setting_is_refused(name, key, wrong):
    node = YAMLS[name]
    signature = signature_of_target(node["_target_"])
    assert check_parameters(node, signature, "") == []
    (problem,) = check_parameters(node | {key: wrong}, signature, "")
    assert problem.key.startswith(key)


@every_form
@settings(max_examples=60, deadline=None)
@given(
    weight_GN=matrices(),
    kind=st.sampled_from(["tensor", "row", "group"]),
    training=st.booleans(),
    progress=st.sampled_from([0.0, 0.5, 1.0]),
    by=st.sampled_from([0.0, 0.1, 3.0]),
    seed=st.integers(0, 100),
)
def test_value_is_the_decoded_code_to_the_bit(name, form, weight_GN, kind, training, progress, by, seed):
    quantizer = make(name, granularity=kind, group_size=1 if weight_GN.shape[1] % 2 else 2, **form)
    weight_GN = grouped(weight_GN, quantizer.granularity)
    own = moved(quantizer, quantizer.initial(weight_GN), seed, by)
    moment, draw = Moment(step=seed, progress=progress), Draw(0, seed, 0, training)
    code_GN, grid = quantizer.encode(weight_GN, own, moment, draw)
    value_GN = quantizer.quantize(weight_GN, own, moment, draw)
    assert code_GN.dtype == torch.uint8
    assert code_GN.shape == value_GN.shape == weight_GN.shape
    assert int(code_GN.max()) < grid.count == quantizer.levels(progress)
    assert value_GN.dtype == torch.float32
    assert value_GN.isfinite().all()
    assert torch.equal(grid.decode(code_GN), value_GN)
    assert torch.equal(grid.decode(grid.encode_exactly(value_GN)), value_GN)
    if quantizer.has_zero:
        assert (value_GN[weight_GN == 0] == 0).all()


@every_form
@settings(max_examples=20, deadline=None)
@given(weight_GN=matrices(), by=st.sampled_from([0.0, 0.1, 3.0]), seed=st.integers(0, 100))
def test_gradients_have_the_shapes_of_what_is_trained_and_nothing_is_changed_in_place(name, form, weight_GN, by, seed):
    quantizer = make(name, **form)
    first = quantizer.initial(weight_GN)
    assert set(first) == set(quantizer.names)
    own, upstream_GN = moved(quantizer, first, seed, by), torch.randn(weight_GN.shape)
    before = {"weight": weight_GN.clone(), "upstream": upstream_GN.clone()} | {k: t.clone() for k, t in own.items()}
    quantizer.encode(weight_GN, own, NOW, DRAW)
    quantizer.quantize(weight_GN, own, NOW, DRAW)
    gradient_GN, found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)
    after = {"weight": weight_GN, "upstream": upstream_GN} | own
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert gradient_GN.shape == weight_GN.shape
    assert gradient_GN.isfinite().all()
    assert set(found) == set(quantizer.trained)
    assert all(t.shape == (len(weight_GN), 1) and t.isfinite().all() for t in [*found.values(), *first.values()])


@every_form
def test_rows_of_zeros_are_zero_at_first(name, form):
    quantizer = make(name, **form)
    weight_GN = torch.zeros(2, 3)
    value_GN = quantizer.quantize(weight_GN, quantizer.initial(weight_GN), NOW, DRAW)
    assert torch.equal(value_GN, torch.ones(2, 3) if form == {"scaled": False} else weight_GN)


@every_form
def test_row_is_quantized_alike_whatever_stands_beside_it_and_however_it_lies(name, form):
    quantizer = make(name, **form)
    weight_GN = torch.randint(-64, 65, (6, 8), generator=torch.Generator().manual_seed(0)) / 64  # sums are exact
    strided_GN = weight_GN.t().contiguous().t()
    own = quantizer.initial(weight_GN)
    whole_GN = quantizer.quantize(weight_GN, own, NOW, DRAW)
    assert not strided_GN.is_contiguous()
    assert torch.equal(quantizer.quantize(strided_GN, own, NOW, DRAW), whole_GN)
    own = {key: tensor[:2] for key, tensor in own.items()}
    assert torch.equal(quantizer.quantize(weight_GN[:2], own, NOW, DRAW), whole_GN[:2])


@every_form
def test_dtype_of_the_weights_is_kept(name, form):
    quantizer = make(name, **form)
    weight_GN = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    own = quantizer.initial(weight_GN)
    gradient_GN, found = quantizer.gradients(torch.ones_like(weight_GN), weight_GN, own, NOW, DRAW)
    value_GN = quantizer.quantize(weight_GN, own, NOW, DRAW)
    assert {t.dtype for t in (value_GN, gradient_GN, *own.values(), *found.values())} == {torch.bfloat16}
    code_GN, grid = quantizer.encode(weight_GN, own, NOW, DRAW)
    assert torch.equal(grid.decode(code_GN), value_GN)


@every_form
def test_pruned_weights_say_nothing_of_what_is_learned(name, form):
    quantizer = make(name, **form)
    generator = torch.Generator().manual_seed(0)
    weight_GN, upstream_GN = torch.randn(2, 4, 16, generator=generator).unbind()
    weight_GN[:, ::2] = 0
    own = quantizer.initial(weight_GN)
    _, found = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)
    upstream_GN[:, ::2] = 1e3
    _, again = quantizer.gradients(upstream_GN, weight_GN, own, NOW, DRAW)
    alike = all(torch.equal(found[key], again[key]) for key in quantizer.trained)
    assert alike == (quantizer.has_zero or not quantizer.trained)
