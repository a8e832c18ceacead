"""What can't be quantized as a config wants it is refused before anything runs, with the key and a fix."""

import importlib.util

import pytest

from distill_system.config.check import check
from distill_system.config.compose import compose

QUICK = ["experiment=quantize_quick", "run.name=x"]
PRUNED = ["+phases@phases.prune=prune", "phases.prune.model.phase=teacher", "phases.quantize.model.phase=prune"]


def problems(*overrides, base=QUICK):
    found = check(compose([*base, *overrides], None).config)
    return {problem.key: problem.message for problem in found}


def quantizer(name):
    return f"quantization@phases.quantize.quantizer={name}"


def reordered(config):
    """Phases with the pruning one before the quantizing one."""
    phases = config["phases"]
    config["phases"] = {name: phases[name] for name in ("teacher", "prune", "quantize")}
    return config


def test_what_ships_is_sound():
    names = [
        "deterministic_binary",
        "binary_constants",
        "ternary_connect",
        "bernoulli_ternary",
        "trained_ternary",
        "kbit",
        "loss_aware",
    ]
    for name in names:
        assert problems(quantizer(name)) == {}, name
    for name in ("full_chain", "full_chain_quick", "lm_chain", "vision_chain"):
        assert problems(base=[f"experiment={name}", "run.name=x"]) == {}, name


@pytest.mark.parametrize(
    ("overrides", "key", "text"),
    [
        ([quantizer("kbit"), "phases.quantize.quantizer.bits=0"], "quantizer.bits", "0"),
        ([quantizer("kbit"), "phases.quantize.quantizer.bits=33"], "quantizer.bits", "33"),
        (["phases.quantize.embeddings.bits=1"], "embeddings.bits", "1"),
        (["phases.quantize.activations.bits=16"], "activations.bits", "16"),
        (
            ["phases.quantize.quantizer.granularity=group", "phases.quantize.quantizer.group_size=100"],
            "quantizer.group_size",
            "is 100, which doesn't divide 384 inputs; nearest: 96",
        ),
        (["phases.quantize.quantizer.group_size=32"], "quantizer.group_size", "set granularity=group"),
        (["phases.quantize.embeddings.group_size=100"], "embeddings.group_size", "doesn't divide 384"),
        (
            ["phases.quantize.embeddings.bits=null", "phases.quantize.embeddings.group_size=64"],
            "embeddings.group_size",
            "embeddings stay as they are",
        ),
        ([quantizer("ternary_connect"), "phases.quantize.quantizer.threshold=1.5"], "quantizer.threshold", "1.5"),
        ([quantizer("ternary_connect"), "phases.quantize.quantizer.threshold=-0.5"], "quantizer.threshold", "-0.5"),
        ([quantizer("binary_constants"), "phases.quantize.quantizer.gap=0"], "quantizer.gap", "must be > 0"),
        (
            [quantizer("kbit"), "phases.quantize.quantizer.schedule=[2,4,8]", "phases.quantize.quantizer.bits=8"],
            "quantizer.schedule",
            "",
        ),
        ([quantizer("kbit"), "phases.quantize.quantizer.schedule=[8,4,3]"], "quantizer.schedule", ""),
        (["phases.quantize.mixing.begin=0.5", "phases.quantize.mixing.until=0.2"], "mixing.begin", "not below until"),
        (["phases.quantize.mixing.until=1.0"], "mixing.until", "nearest: 0.95"),
        (["phases.quantize.include=[nothing]"], "include[0]", "matches none of"),
        (["phases.quantize.exclude=['*querry*']"], "exclude[0]", "matches none of"),
        (["phases.quantize.exclude=['*']"], "include", "nothing to quantize"),
        (["phases.quantize.quantiser=kbit"], "quantiser", "did you mean"),
    ],
)
def test_refused(overrides, key, text):
    found = problems(*overrides)
    assert f"phases.quantize.{key}" in found, found
    assert text in found[f"phases.quantize.{key}"]


def with_pruning(kind, name):
    overrides = [*QUICK, *PRUNED, f"pruning@phases.prune.pruner={kind}", quantizer(name)]
    return {problem.key: problem.message for problem in check(reordered(compose(overrides, None).config))}


@pytest.mark.parametrize("kind", ["weights", "blocks"])
def test_binary_on_masks(kind):
    for name in ("deterministic_binary", "binary_constants"):
        message = with_pruning(kind, name)["phases.quantize.quantizer"]
        assert f"phase 'prune' pruned single {kind} that must stay zero" in message
    for name in ("trained_ternary", "kbit", "bernoulli_ternary", "loss_aware"):
        assert with_pruning(kind, name) == {}
    for unit in ("neurons", "layers"):
        assert with_pruning(unit, "deterministic_binary") == {}


@pytest.mark.parametrize(
    ("phase", "model"), [("prune", "from_phase"), ("distill", "from_layers"), ("finetune", "from_phase")]
)
def test_nothing_trains_or_cuts_a_quantized_model(phase, model):
    overrides = [
        f"+phases@phases.after={phase}",
        f"{'' if phase == 'prune' else '+'}models@phases.after.model={model}",
        "phases.after.model.phase=quantize",
    ]
    overrides += ["phases.after.model.num_layers=2"] if model == "from_layers" else []
    overrides += ["+phases.after.teachers.main.phase=teacher"] if phase == "distill" else []
    message = problems(*overrides)["phases.after.model.phase"]
    assert "is 'quantize', a quantized model" in message
    assert "put it before 'quantize'" in message


def test_a_quantized_model_may_teach_and_be_quantized_anew():
    again = ["+phases@phases.again=quantize", "phases.again.model.phase=quantize"]
    assert problems(*again) == {}
    student = [
        "+phases@phases.student=distill",
        "+models@phases.student.model=from_layers",
        "phases.student.model.phase=teacher",
        "phases.student.model.num_layers=2",
        "+phases.student.teachers.main.phase=quantize",
    ]
    assert problems(*student) == {}


def test_pruning_while_quantizing():
    base = ["experiment=prune_quick", "run.name=x", "+quantization@phases.prune.quantizer=kbit"]
    weights = ["pruning@phases.prune.pruner=weights"]
    assert problems(*weights, base=base) == {}
    assert "cut out" in problems(base=base)["phases.prune.quantizer"]
    binary = [*base[:2], "+quantization@phases.prune.quantizer=deterministic_binary", *weights]
    assert "no level for 0" in problems(base=binary)["phases.prune.quantizer"]
    learned = [*weights, "scores@phases.prune.pruner.score=movement", "phases.prune.pruner.score.mode=learned"]
    assert "take accumulated" in problems(*learned, base=base)["phases.prune.pruner.score.mode"]


def test_export_needs_a_quantized_model():
    found = problems("export=packed", base=["experiment=demo_quick", "run.name=x"])
    assert "leaves no quantized model" in found["export.format"]
    assert problems("export=onnx", base=["experiment=demo_quick", "run.name=x"]) == {}


def test_export_needs_packages(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torchao" else find(name, *more)
    )
    assert "needs torchao; install" in problems("export=torchao")["export.format"]


def test_a_packed_folder_is_not_trained(tmp_path):
    (tmp_path / "packed.safetensors").write_bytes(b"")
    found = problems("models@phases.teacher.model=hub", f"phases.teacher.model.name={tmp_path}")
    assert "a packed model, whose few bits can't be trained" in found["phases.teacher.model.name"]
