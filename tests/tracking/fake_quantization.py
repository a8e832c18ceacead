"""Makes run folders of phases that quantize, alone and at the end of a chain, as the pipeline writes them, to look at their pages and to test them.

`python -m tests.tracking.fake_quantization FOLDER` writes a whole chain, a fall of bits in a deep model, and one of every odd case below FOLDER, and their
reports.
"""

import random
import sys
from pathlib import Path
from typing import Any

from tests.tracking.fake_members import evaluation, teacher
from tests.tracking.fake_pruning import ENCODER, LLAMA, journal, neurons, side
from tests.tracking.fake_run import losses, manifest_phase, write

WHOLE, SMALL = 22_713_986, 13_850_000
PARTS = {"codes": 2_391_040, "bitmaps": 0, "scales": 214_016, "whole": 121_344, "header": 18_960}


def tensor(
    name: str, shape: list[int], zeros: float, levels: int = 3, bits: float = 1.6, **more: Any
) -> dict[str, Any]:
    kind = "embedding" if "embeddings" in name or "embed_" in name else "linear"
    quantizer = "trained_ternary" if kind == "linear" else "kbit"
    return {
        "name": name, "kind": kind, "quantizer": quantizer, "shape": shape, "levels": levels, "bits": bits, "groups": shape[0], "zeros": zeros, **more
    }  # fmt: skip


def packed(size: int = sum(PARTS.values()), speed: float = 0.24, **more: Any) -> dict[str, Any]:
    latency = side(1, 1, 1, 0.8, speed)["latency"]
    parts = PARTS | {"codes": size - sum(PARTS.values()) + PARTS["codes"]}
    return {"bytes": size, "dense_bytes": 4 * SMALL, **parts, "largest_difference": 2.4e-7, "latency": latency, **more}


def ternary(layers: int = 2) -> dict[str, Any]:
    """Three values in the body, 4-bit embeddings."""
    rng = random.Random(layers)
    tensors = []
    for layer in range(layers):
        for at, name in enumerate(ENCODER):
            shape = [384, 384] if at < 4 else [1536, 384] if at == 4 else [384, 1536]
            tensors.append(
                tensor(f"bert.encoder.layer.{layer}.{name}.weight", shape, round(0.3 + 0.3 * rng.random(), 4))
            )
    for name, rows in (("word", 30_522), ("position", 512), ("token_type", 2)):
        tensors.append(tensor(f"bert.embeddings.{name}_embeddings.weight", [rows, 384], 0.0611, levels=16, bits=4))
    before, after = side(SMALL, SMALL, 4 * SMALL, 0.8310, 0.38), side(SMALL, 9_100_000, 4 * SMALL, 0.8244, 0.39)
    return {
        "quantizer": "trained_ternary", "granularity": {"kind": "row", "size": 64}, "tensors": tensors,
        "settings": {"threshold": 0.05}, "activations": None, "schedule": None, "mixing": {"begin": 0.0, "until": 0.0}, "calibration": None,
        "packed": packed(), "before": before, "after": after,
    }  # fmt: skip


def falling(layers: int = 16) -> dict[str, Any]:
    """8, 4, 2 bits in groups of 64, inputs rounded too, packed slower than its input."""
    tensors = []
    for layer in range(layers):
        for name in LLAMA:
            tensors.append(
                tensor(
                    f"model.layers.{layer}.{name}.weight",
                    [576, 576],
                    0.21,
                    levels=4,
                    bits=2,
                    groups=5184,
                    quantizer="kbit",
                )
            )
    before, after = side(WHOLE, WHOLE, 4 * WHOLE, 0.85), side(WHOLE, WHOLE, 4 * WHOLE, 0.79)
    for one, perplexity in ((before, 19.8), (after, 24.31)):
        one["metrics"] = {"perplexity": perplexity, "nll": 3.0, "tokens": 4000}
    return ternary() | {
        "quantizer": "kbit", "granularity": {"kind": "group", "size": 64}, "tensors": tensors, "schedule": [8, 4, 2],
        "mixing": {"begin": 0.1, "until": 0.4}, "activations": {"bits": 8, "range": "learned", "scale_lr": 1.0},
        "packed": packed(WHOLE // 4, 1.2, largest_difference=0.0), "before": before, "after": after,
    }  # fmt: skip


def files(folder: Path, size: int, name: str = "model.safetensors") -> None:
    """A file of so many bytes, without writing them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "wb") as file:
        file.truncate(size)


def quantize_entry(record: dict[str, Any], before: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """(manifest, evaluation) of a phase."""
    after = record["after"]
    own = evaluation(0.8244, SMALL, rng)
    if after:
        own |= {
            "metrics": after["metrics"],
            "latency": after["latency"],
            "size": {key: after[key] for key in ("size_bytes", "parameters", "nonzeros")},
        }
    inputs = {
        "model.phase": {"phase": before, "digest": "9f3c" * 16},
        "teachers.main.phase": {"phase": "teacher", "digest": "9f3c" * 16},
    }
    return manifest_phase("quantize", own, 120, inputs=inputs, quantization=record), own


def chain_run(folder: Path) -> Path:
    """Teacher, assistant, student, pruned neurons, three values a weight, packed."""
    rng = random.Random(4)
    first, lines = teacher(folder, rng)
    entries, evaluations = {"teacher": first}, {}
    files(folder / "teacher" / "model", 4 * WHOLE + 9_000)
    before = "teacher"
    for name, accuracy, parameters in (("assistant", 0.8479, 19_170_000), ("student", 0.8331, 17_400_000)):
        own = evaluation(accuracy, parameters, rng)
        key = {"phase": before, "digest": "9f3c" * 16}
        entries[name] = manifest_phase("distill", own, 120, inputs={"model.phase": key, "teachers.main.phase": key})
        evaluations[name], before = own, name
        lines += losses(name, 120, {"soft": (1.1, 0.3)}, rng, 3e-4)
    record = neurons(2)
    record["after"] = side(SMALL, SMALL, 4 * SMALL, 0.8310, 0.38)
    own = evaluation(0.8310, SMALL, rng) | {"metrics": record["after"]["metrics"]}
    inputs = {"model.phase": {"phase": "student"}, "teachers.main.phase": {"phase": "teacher"}}
    entries["neurons"] = manifest_phase("prune", own, 100, inputs=inputs, pruning=record)
    evaluations["neurons"] = own
    lines += journal("neurons", record, 100, rng)
    entries["quantize"], evaluations["quantize"] = quantize_entry(ternary(), "neurons", rng)
    lines += losses("quantize", 120, {"soft": (1.4, 0.5)}, rng, 2e-4)
    files(folder / "quantize" / "model", 4 * SMALL)
    files(folder / "quantize" / "packed", sum(PARTS.values()), "packed.safetensors")
    write(folder, folder.name, entries, lines, evaluations, {})
    return folder


def single_run(folder: Path, record: dict[str, Any] | None = None) -> Path:
    """A teacher and its quantized copy; bits fall on the way."""
    rng = random.Random(8)
    first, lines = teacher(folder, rng)
    entry, own = quantize_entry(record or falling(), "teacher", rng)
    lines += losses("quantize", 120, {"soft": (1.4, 0.5)}, rng, 2e-4)
    for step, levels in ((40, [16]), (80, [4])):
        lines.append({"phase": "quantize", "step": step, "time": 1.7e9, "event": "quantize", "levels": levels})
    write(folder, folder.name, {"teacher": first, "quantize": entry}, lines, {"quantize": own}, {})
    return folder


def odd_run(folder: Path) -> Path:
    """Names that are no names, no packed file, an input that wasn't measured, many kinds of matrix, one layer."""
    planted = "<script>alert('planted')</script>"
    record = ternary(1)
    record["tensors"] += [tensor(f"{planted}.{word}.weight", [8, 8], 0.0, levels=2, bits=1) for word in "abcdefghij"]
    return single_run(folder, record | {"packed": None, "before": None, "quantizer": planted})


RUNS = (chain_run, single_run, odd_run)

if __name__ == "__main__":
    from distill_system.tracking.report import write_report

    for make in RUNS:
        print(write_report(make(Path(sys.argv[1]) / make.__name__)))
