"""Cut models: equal to masked ones in every family, readable in a process that knows transformers only, and loud where something can't be."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import distill_system
from distill_system.models.anatomy import UnknownAnatomy
from distill_system.models.from_layers import cut_model
from distill_system.models.parts import matrices
from distill_system.pruning.base import Surgery
from distill_system.pruning.cut import Source, cut, kept_lines, listed, sources, unit_groups
from distill_system.pruning.masks import add_mask
from tests.models import cuttable

PLAIN_HEADS = {"llama", "qwen2", "vit"}  # whose config can say that there are fewer heads
CHECK = """
import json, sys, torch, transformers
jobs = json.load(open(sys.argv[1]))
for job in jobs:
    saved = torch.load(job["expected"], weights_only=True)
    auto = getattr(transformers, job["auto"])
    try:
        model = auto.from_pretrained(job["folder"])
        assert job["plain"], f"{job}: loads, but as what?"
    except RuntimeError as error:
        assert not job["plain"] and "mismatch" in str(error), error
        model = auto.from_pretrained(job["folder"], trust_remote_code=True)
    with torch.no_grad():
        got = model.eval()(**saved["inputs"]).logits
    assert (got - saved["logits"]).abs().max() <= 1e-5, job
    if "text" in saved:
        text = model.generate(**saved["inputs"], max_new_tokens=4, do_sample=False)
        assert torch.equal(text, saved["text"]), job
assert not any(name.startswith("distill_system") for name in sys.modules)
print(len(jobs), "loaded")
"""


def text(model, family):
    return model.generate(**cuttable.inputs(family), max_new_tokens=4, do_sample=False)


def loads_plainly(family: str, kind: str) -> bool:
    return kind != "heads" or family in PLAIN_HEADS


@pytest.mark.parametrize(("family", "kind"), cuttable.CUTS)
def test_a_cut_model_is_the_masked_one(family, kind):
    model = cuttable.build(family)
    before = copy.deepcopy(model)
    surgery = cuttable.surgery(model, kind)
    if kind == "layers":
        expected = cuttable.logits(cut_model(model, [0, 2], task=cuttable.FAMILIES[family][1]), family)
    else:
        groups = unit_groups(model, kind)
        assert len(groups) == (1 if family == "albert" else 3)
        expected = cuttable.logits(cuttable.masked(model, groups, surgery.keep), family)
    origin = sources(model, surgery)
    report = cut(model, surgery)
    assert (cuttable.logits(model, family) - expected).abs().max() <= 1e-5
    assert (cuttable.logits(before, family) - expected).abs().max() > 1e-3
    state = before.state_dict()
    for name, tensor in model.state_dict().items():
        source = origin(name)
        assert source.shape == state[source.name].shape
        assert torch.equal(source.take(state[source.name]), tensor)
    assert origin("no.such.weight") is None
    assert report.loads_plainly == loads_plainly(family, kind)
    assert len(report.lines) == (1 if kind == "layers" else len(groups))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in before.parameters())


def test_every_cut_is_read_by_transformers_alone(tmp_path):
    import json

    jobs = []
    for family, kind in cuttable.CUTS:
        model = cuttable.build(family)
        cut(model, cuttable.surgery(model, kind))
        folder = cuttable.save(tmp_path / f"{family}_{kind}", model)
        saved = {"inputs": cuttable.inputs(family), "logits": cuttable.logits(model, family)}
        auto = "AutoModelForCausalLM" if model.can_generate() else "AutoModelForSequenceClassification"
        if model.can_generate():
            saved["text"] = text(model, family)
        if family == "vit":
            auto = "AutoModelForImageClassification"
        torch.save(saved, f"{folder}.pt")
        plain = loads_plainly(family, kind)
        assert (folder / "modeling_cut.py").is_file() == (not plain)
        jobs.append({"folder": str(folder), "expected": f"{folder}.pt", "auto": auto, "plain": plain})
        loaded = distill_system.load(folder)
        assert type(loaded).__name__ == type(model).__name__
        assert not loaded.training
        assert torch.equal(cuttable.logits(loaded, family), saved["logits"])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHECK, str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.stdout.strip() == f"{len(jobs)} loaded", done.stderr[-2000:]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_cuts_follow_one_another(family, tmp_path):
    """Neurons, heads, layers; ragged first, and plain again when what was ragged is gone."""
    model = cuttable.build(family)
    groups = unit_groups(model, "neurons")
    ragged = cuttable.surgery(model, "neurons", ragged=True)
    expected = cuttable.logits(cuttable.masked(model, groups, ragged.keep), family)
    assert not cut(model, ragged).loads_plainly
    assert set(model.config.reshape["modules"]) >= {s.name.removesuffix(".weight") for s in groups[0].slices}
    assert (cuttable.logits(model, family) - expected).abs().max() <= 1e-5
    again = distill_system.load(cuttable.save(tmp_path / "ragged", model))
    assert torch.equal(cuttable.logits(again, family), cuttable.logits(model, family))
    heads = cuttable.surgery(again, "heads")
    expected = cuttable.logits(cuttable.masked(again, unit_groups(again, "heads"), heads.keep), family)
    assert not cut(again, heads).loads_plainly
    assert (cuttable.logits(again, family) - expected).abs().max() <= 1e-5
    again = distill_system.load(cuttable.save(tmp_path / "heads", again))
    report = cut(again, Surgery("layers", {"layers": [1, 2]}))
    assert report.loads_plainly == (family == "llama")
    assert report.lines == ["layers: 1 of 3 removed (0); 1, 2 remain"]
    final = distill_system.load(cuttable.save(tmp_path / "layers", again))
    assert torch.equal(cuttable.logits(final, family), cuttable.logits(again, family))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_choice_of_units_equals_its_mask(data):
    family, kind = data.draw(st.sampled_from([(f, k) for f, k in cuttable.CUTS if k != "layers"]))
    model = cuttable.build(family).double()
    groups = unit_groups(model, kind)
    keep = {
        group.name: sorted(data.draw(st.sets(st.integers(0, group.units - 1), min_size=1)))
        for group in data.draw(
            st.sets(st.sampled_from(range(len(groups))), min_size=1).map(lambda s: [groups[i] for i in s])
        )
    }
    if all(len(keep[group.name]) == group.units for group in groups if group.name in keep):
        with pytest.raises(ValueError, match="takes nothing out"):
            cut(model, Surgery(kind, keep))
        return
    batch = cuttable.inputs(family)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    with torch.no_grad():
        expected = cuttable.masked(model, groups, keep)(**batch).logits
        cut(model, Surgery(kind, keep))
        assert (model(**batch).logits - expected).abs().max() <= 1e-10


def test_a_literal_cut():
    before = torch.arange(12).view(3, 4)
    assert Source("w", (3, 4), {0: torch.tensor([0, 2]), 1: torch.tensor([1, 3])}).take(before).tolist() == [
        [1, 3],
        [9, 11],
    ]
    model = cuttable.build("llama")  # 4 heads of 8 features, 2 of them for each of the 2 key-value heads
    lines = kept_lines(model, Surgery("heads", {"layer 1 heads": [1]}))
    place = "model.layers.1.self_attn."
    assert {name: (axis, found[0].item(), len(found)) for name, by in lines.items() for axis, found in by.items()} == {
        f"{place}q_proj.weight": (0, 16, 16),
        f"{place}k_proj.weight": (0, 8, 8),
        f"{place}v_proj.weight": (0, 8, 8),
        f"{place}o_proj.weight": (1, 16, 16),
    }
    fused = kept_lines(cuttable.build("gpt2"), Surgery("heads", {"layer 0 heads": [3]}))[
        "transformer.h.0.attn.c_attn.weight"
    ]
    assert fused[1].tolist() == [*range(24, 32), *range(56, 64), *range(88, 96)]


def test_numbers_are_listed_in_runs():
    assert listed([0, 1, 2, 3, 5, 7, 8]) == "0 to 3, 5, 7, 8"
    assert listed([4]) == "4"
    assert listed(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, ... (20 in all)"


def test_masks_and_what_was_noted_on_parameters_are_cut_along():
    model = cuttable.build("bert")
    layer = model.bert.encoder.layer[0]
    up, down = layer.intermediate.dense, layer.output.dense
    add_mask(up, (48, 1))
    add_mask(down, down.weight.shape, learned=2.0)
    down.weight.requires_grad_(False)
    down.weight.note = "kept"
    across = model.bert.encoder.layer[1].intermediate.dense  # its mask is the same along what is cut
    add_mask(across, (1, 32))
    cut(model, Surgery("neurons", {"layer 0 neurons": [0, 5, 9], "layer 1 neurons": [1, 2]}))
    assert (across.weight.shape, across.weight_mask.shape) == ((2, 32), (1, 32))
    assert up.weight_mask.shape == (3, 1)
    assert down.weight_mask.shape == down.weight_score.shape == (32, 3)
    assert down.weight_score.lr_scale == 2.0
    assert not down.weight.requires_grad
    assert down.weight.note == "kept"
    assert (up.out_features, down.in_features) == (3, 3)


def test_a_cut_on_the_meta_device_has_the_sizes_of_a_real_one():
    real, empty = cuttable.build("llama"), cuttable.build("llama").to("meta")
    surgery = cuttable.surgery(real, "heads")
    cut(real, surgery), cut(empty, surgery)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (real, empty)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("surgery", "words"),
    [
        (Surgery("neurons", {}), "takes nothing out"),
        (Surgery("neurons", {"layer 0 neurons": list(range(48))}), "takes nothing out"),
        (Surgery("neurons", {"layer 7 neurons": [0]}), "no neurons to cut in 'layer 7 neurons'"),
        (Surgery("neurons", {"layer 0 neurons": []}), "all 48 would be cut"),
        (Surgery("heads", {"layer 0 heads": [1, 0]}), "ascending numbers from 0 to 3"),
        (Surgery("heads", {"layer 0 heads": [0, 0]}), "ascending"),
        (Surgery("heads", {"layer 0 heads": [0, 4]}), "ascending"),
        (Surgery("heads", {"layer 0 heads": [-1, 2]}), "ascending"),
        (Surgery("layers", {"layers": []}), "all 3 would be cut"),
        (Surgery("layers", {"layers": [0, 1, 2]}), "takes nothing out"),
        (Surgery("layers", {"layers": [3]}), "from 0 to 2"),
        (Surgery("layers", {}), "keeps"),
    ],
)
def test_an_impossible_cut_is_refused_and_changes_nothing(surgery, words):
    model = cuttable.build("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for do in (cut, sources):
        with pytest.raises(ValueError, match=words):
            do(model, surgery)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.config.num_hidden_layers == 3


def test_models_that_can_t_be_cut_say_why():
    with pytest.raises(UnknownAnatomy, match="shares weights"):
        cut(cuttable.build("albert"), Surgery("layers", {"layers": [0]}))
    by_depth = cuttable.build("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UnknownAnatomy, match=r"computes with a layer's place in the stack \(attn.scaling\): layer 2"):
        cut(by_depth, Surgery("layers", {"layers": [0, 2]}))
    assert len(by_depth.transformer.h) == 3
    with pytest.raises(UnknownAnatomy, match="no attention whose linears have known names"):
        unit_groups(cuttable.build("phi3"), "heads")


def test_a_record_of_another_model_is_refused(tmp_path):
    model = cuttable.build("bert")
    cut(model, cuttable.surgery(model, "heads"))
    folder = cuttable.save(tmp_path / "m", model)
    config = copy.deepcopy(model.config)
    for record, words in [
        ({"modules": {"bert.nothing": [1, 1]}}, "no linear"),
        (
            {"modules": {"bert.encoder.layer.0.output.dense": [32, 49]}},
            "gives bert.encoder.layer.0.output.dense 49 inputs",
        ),
        ({"attributes": {"bert": {"wings": 2}}}, "bert.wings"),
    ]:
        config.reshape = record
        config.save_pretrained(folder)
        with pytest.raises(ValueError, match=words):
            distill_system.load(folder)
    model.config.save_pretrained(folder)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = matrices(model)[0][0]
    save_file(weights | {name: weights[name][:8].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="mismatch"):
        distill_system.load(folder)
