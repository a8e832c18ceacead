"""Makes run folders of phases that prune and that measure sensitivity, as the pipeline writes them, to look at their pages and to test them.

`python -m tests.tracking.fake_pruning FOLDER` writes a chain of prunings with a rollback, one of every odd case, and a deep model below FOLDER, and their
reports.
"""

import math
import random
import sys
from pathlib import Path
from typing import Any

from tests.tracking.fake_members import evaluation, teacher
from tests.tracking.fake_run import losses, manifest_phase, write

WHOLE = 22_713_986
ENCODER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LLAMA = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
CUBIC = {"shape": "cubic", "begin": 0.0, "end": 0.7, "initial_sparsity": 0.0}


def side(parameters: int, nonzeros: int, size_bytes: int, accuracy: float, speed: float = 1.0) -> dict[str, Any]:
    return {
        "size_bytes": size_bytes, "parameters": parameters, "nonzeros": nonzeros,
        "latency": {"batch_1": {"p50_ms": 9.42 * speed, "p95_ms": 12.1 * speed, "samples_per_s": 106.1 / speed, "repeats": 50, "threads": 1},
                    "batch_32": {"p50_ms": 121.0 * speed, "p95_ms": 140.2 * speed, "samples_per_s": 264.0 / speed, "repeats": 12, "threads": 1}},
        "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.002, "ece": 0.031, "nll": 1.2 - accuracy, "samples": 1494},
    }  # fmt: skip


def rounds_of(targets: list[float], size: int, whole: int, every: int = 20, fall: float = 0.08) -> list[dict[str, Any]]:
    """Rounds on targets, the first being the input; quality falls with the square of what is gone."""
    return [
        {"round": at, "step": at * every, "target": target, "sparsity": round(target - 0.0004 * at, 4), "remaining": round(whole - size * target),
         "metric": round(0.8521 - fall * target**4 + 0.002 * math.sin(3 * at), 4), "state": "kept"}
        for at, target in enumerate([0.0, *targets])
    ]  # fmt: skip


def cubic(final: float, count: int) -> list[float]:
    return [final * (1 - (1 - at / count) ** 3) for at in range(1, count + 1)]


def weights(layers: int = 6, matrices: tuple[str, ...] = ENCODER, prefix: str = "bert.encoder.layer") -> dict[str, Any]:
    """Global magnitude, rolled back in the last round."""
    rng = random.Random(layers)
    groups = []
    for layer in range(layers):
        for at, name in enumerate(matrices):
            units = 384 * 384 if at < 4 else 384 * 1536
            sparsity = round(min(0.97, 0.8 - 0.06 * at + 0.25 * layer / layers + 0.04 * rng.random()), 3)
            groups.append(
                {
                    "name": f"{prefix}.{layer}.{name}.weight",
                    "layer": layer,
                    "units": units,
                    "kept": round(units * (1 - sparsity)),
                    "sparsity": sparsity,
                }
            )
    rounds = rounds_of(cubic(0.9, 6), 10_600_000, WHOLE, fall=0.055)
    rounds[-1] |= {"metric": 0.7123, "state": "rolled_back"}
    kept = rounds[-2]
    return {
        "kind": "weights", "score": "magnitude", "schedule": CUBIC | {"final_sparsity": 0.9, "rounds": 6}, "monitor": "accuracy", "rounds": rounds,
        "groups": groups, "removed": [f"{g['name']}: {g['units'] - g['kept']:,} of {g['units']:,} weights" for g in groups],
        "rolled_back": {"round": 6, "step": 120, "metric": 0.7123, "bound": "accuracy >= 0.8", "sparsity": 0.8976, "handed_on": 5},
        "before": side(WHOLE, WHOLE, 4 * WHOLE, 0.8521), "after": side(WHOLE, kept["remaining"], 59_300_000, 0.8307, 1.01), "cut": False, "loads_plainly": False,
    }  # fmt: skip


def neurons(layers: int = 6) -> dict[str, Any]:
    groups = [
        {"name": f"layer {layer} neurons", "layer": layer, "units": 1536, "kept": 768, "sparsity": 0.5}
        for layer in range(layers)
    ]
    return {
        "kind": "neurons", "score": "mean_activation", "schedule": CUBIC | {"shape": "linear", "final_sparsity": 0.5}, "monitor": "accuracy",
        "rounds": rounds_of([0.1, 0.2, 0.3, 0.4, 0.5], 7_080_000, WHOLE), "groups": groups,
        "removed": [f"{group['name'].removesuffix(' neurons')}: 768 of 1,536 neurons" for group in groups], "rolled_back": None,
        "before": side(WHOLE, WHOLE, 4 * WHOLE, 0.8521), "after": side(19_173_000, 19_173_000, 4 * 19_173_000, 0.8489, 0.71), "cut": True, "loads_plainly": True,
    }  # fmt: skip


def layers_record(count: int = 6, keep: tuple[int, ...] = (0, 2, 5)) -> dict[str, Any]:
    gone = [layer for layer in range(count) if layer not in keep]
    groups = [
        {"name": f"layer {i}", "layer": i, "units": 1, "kept": int(i in keep), "sparsity": float(i not in keep)}
        for i in range(count)
    ]
    return {
        "kind": "layers", "score": "effect", "schedule": {"shape": "linear", "final_sparsity": len(gone) / count}, "monitor": "accuracy",
        "rounds": rounds_of([(at + 1) / count for at in range(len(gone))], 10_640_000, 19_173_000, every=160 // max(4, len(gone))), "groups": groups,
        "removed": [f"layer {layer} of {count}" for layer in gone], "rolled_back": None,
        "before": side(19_173_000, 19_173_000, 4 * 19_173_000, 0.8489, 0.71), "after": side(13_850_000, 13_850_000, 4 * 13_850_000, 0.8310, 0.38),
        "cut": True, "loads_plainly": True,
    }  # fmt: skip


def sensitivity(
    layers: int = 6, parts: tuple[str, ...] = ("neurons",), levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
) -> dict[str, Any]:
    rng = random.Random(9)
    groups = []
    for layer in range(layers):
        for part in parts:
            weight = (0.6 + rng.random()) * (2.5 if layer in (0, layers - 1) else 1)
            name = f"layer {layer} {part}" if parts == ("neurons",) else f"model.layers.{layer}.{part}.weight"
            values = [round(0.31 + 0.4 * weight * level**4 - 0.002 * rng.random(), 4) for level in levels]
            groups.append(
                {"name": name, "layer": layer, "values": values, "suggested": round(min(0.9, 0.55 / weight), 3)}
            )
    return {
        "kind": "neurons",
        "metric": "loss",
        "baseline": 0.31,
        "levels": list(levels),
        "groups": groups,
        "target": 0.5,
    }


def journal(phase: str, record: dict[str, Any], steps: int, rng: random.Random) -> list[dict[str, Any]]:
    """Lines of its training: the loss jumps where something is pruned and recovers."""
    events = [one for one in record["rounds"] if one["round"]]
    lines = losses(phase, steps, {"soft": (0.5, 0.25), "hard": (0.45, 0.36)}, rng, 5e-5)
    for line in lines:
        since = min((line["step"] - e["step"] for e in events if e["step"] <= line["step"]), default=None)
        for key in [key for key in line if key.startswith("loss")]:
            line[key] *= 1 + (0.5 * math.exp(-since / 6) if since is not None else 0)
    for one in events:
        told = {key: one[key] for key in ("round", "target", "sparsity", "remaining")}
        lines.append({"phase": phase, "step": one["step"], "time": 1.7e9, "event": "prune", **told})
    back = record["rolled_back"]
    if back:
        lines.append(
            {"phase": phase, "step": back["step"] + 15, "time": 1.7e9, "event": "rollback", "round": back["round"]}
        )
    return lines


def pruning_run(
    folder: Path, phases: dict[str, dict[str, Any]] | None = None, found: dict[str, Any] | None = None
) -> Path:
    """A teacher, what is given as prunings (a chain of weights, neurons and layers), and a sensitivity phase."""
    rng = random.Random(6)
    first, lines = teacher(folder, rng)
    entries = {"teacher": first}
    evaluations: dict[str, Any] = {}
    before = "teacher"
    for name, record in (phases or {"prune": weights(), "narrow": neurons(), "shorten": layers_record()}).items():
        after = record["after"]
        own = evaluation(after["metrics"]["accuracy"], after["parameters"], rng)
        own |= {
            "metrics": after["metrics"],
            "latency": after["latency"],
            "size": {key: after[key] for key in ("size_bytes", "parameters", "nonzeros")},
        }
        gate = (
            {"metric": "accuracy", "at_least": 0.8, "value": after["metrics"]["accuracy"], "passed": True}
            if record["rolled_back"]
            else None
        )
        inputs = {
            "model.phase": {"phase": before, "digest": "9f3c" * 16},
            "teachers.main.phase": {"phase": "teacher", "digest": "9f3c" * 16},
        }
        entries[name] = manifest_phase("prune", own, 160, inputs=inputs, pruning=record, gate=gate)
        evaluations[name], before = own, name
        lines += journal(name, record, 160, rng)
    entries["sensitivity"] = {"state": "finished", "kind": "sensitivity", "settings": {}, "seconds": 31.0,
                              "inputs": {"model.phase": {"phase": "teacher"}}, "sensitivity": found or sensitivity()}  # fmt: skip
    write(folder, folder.name, entries, lines, evaluations, {})
    return folder


def deep_run(folder: Path) -> Path:
    """48 layers of seven matrices, many rounds, layers and matrices measured one by one."""
    deep = weights(48, LLAMA, "model.layers")
    deep["rounds"] = rounds_of(cubic(0.97, 24), 21_000_000, WHOLE, every=6, fall=0.06)
    deep["rolled_back"] = None
    narrow = neurons(48)
    for at, group in enumerate(narrow["groups"]):
        group["kept"] = 200 + 27 * at
        group["sparsity"] = round(1 - group["kept"] / 1536, 4)
    cut = layers_record(48, tuple(i for i in range(48) if i % 3))
    found = sensitivity(48, LLAMA, (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))
    return pruning_run(folder, {"prune": deep, "narrow": narrow, "shorten": cut}, found)


def odd_run(folder: Path) -> Path:
    """Rolled back to the input; groups of no layer; one round; a language model's metrics; values that are missing or not finite; a long name."""
    shared = neurons(1)
    shared["groups"] = [{"name": "shared layer neurons", "layer": None, "units": 3072, "kept": 3072, "sparsity": 0.0}]
    shared |= {
        "removed": [],
        "rounds": rounds_of([0.5], 7_080_000, WHOLE),
        "cut": True,
        "loads_plainly": False,
        "schedule": {"shape": "one_shot", "final_sparsity": 0.5},
    }
    shared["rounds"][1] |= {"state": "rolled_back", "metric": 0.512}
    shared["rolled_back"] = {
        "round": 1,
        "step": 20,
        "metric": 0.512,
        "bound": "accuracy >= 0.8",
        "sparsity": 0.5,
        "handed_on": 0,
    }
    blocks = weights(12, ("attention.q_lin", "ffn.lin1"), "distilbert.transformer.layer")
    blocks |= {
        "kind": "blocks",
        "rolled_back": None,
        "monitor": "perplexity",
        "rounds": [one | {"metric": 20 + 9 * one["sparsity"] ** 3, "state": "kept"} for one in blocks["rounds"]],
    }
    for group in blocks["groups"]:
        group["sparsity"] = round(0.04 * group["sparsity"], 4)
    blocks["removed"] = [
        "<script>alert('planted')</script> of a name that has no place where it could break its line " + "x" * 90
    ]
    few = sensitivity(12, ("neurons", "heads"))
    few["groups"][3]["values"][3] = None
    few["groups"][5] |= {"layer": None, "name": "a projection of no layer", "suggested": None}
    few |= {"metric": "accuracy", "baseline": 0.85}
    for group in few["groups"]:
        group["values"] = [None if value is None else round(0.85 - (value - 0.31) / 3, 4) for value in group["values"]]
    return pruning_run(folder, {"prune-with-a-rather-long-name": shared, "blocks": blocks}, few)


RUNS = (pruning_run, deep_run, odd_run)

if __name__ == "__main__":
    from distill_system.tracking.report import write_report

    for make in RUNS:
        print(write_report(make(Path(sys.argv[1]) / make.__name__)))
