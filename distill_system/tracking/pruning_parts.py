"""Reads what a prune or sensitivity phase recorded: its groups as parts of layers, its gate's bound, its metric's direction.

Records may lack any optional key (of an older version, of a phase that stopped), so nothing here takes one for granted.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_system.tracking.figures import METRICS, is_number

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

Record = dict[str, Any]
RECORDS = ("pruning", "sensitivity", "quantization")  # keys of a phase in the manifest
SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


@dataclass(frozen=True)
class Part:
    """A group of the record: units of one kind in one layer, and the share of them that was removed."""

    layer: int | None
    stem: str  # its name without the layer; experts and other numbered copies in a layer share one
    units: float
    share: float


def records(run: "Run", key: str) -> dict[str, Record]:
    """What each phase recorded under `key`, by the phase's name."""
    return {name: phase[key] for name, phase in run.phases.items() if isinstance(phase.get(key), dict)}


def list_of(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def groups_of(record: Record) -> list[Record]:
    return [group for group in list_of(record, "groups") if isinstance(group, dict)]


def layer_of(group: Record) -> int | None:
    layer = group.get("layer")
    return int(layer) if is_number(layer) else None


def part_of(group: Record, key: str = "sparsity") -> Part | None:
    share, units, kept = group.get(key), group.get("units"), group.get("kept")
    if not is_number(share) and is_number(units) and is_number(kept) and units:
        share = 1 - kept / units
    if not is_number(share):
        return None
    layer = layer_of(group)
    weight = float(units) if is_number(units) and units > 0 else 1.0
    return Part(layer, stem_of(str(group.get("name") or ""), layer), weight, min(1.0, max(0.0, float(share))))


def stem_of(name: str, layer: int | None) -> str:
    """A group's name without its layer.

    >>> stem_of("bert.encoder.layer.3.attention.self.query.weight", 3), stem_of("layer 3 neurons", 3)
    ('bert.encoder.layer.attention.self.query', 'neurons')
    >>> stem_of("model.layers.3.mlp.experts.17.up_proj.weight", 3), stem_of("shared layer neurons", None)
    ('model.layers.mlp.experts.*.up_proj', 'shared layer neurons')
    """
    name = name.removesuffix(".weight")
    if layer is None:
        return name
    if f".{layer}." in name:
        rest = name.replace(f".{layer}.", ".", 1)
    else:
        rest = re.sub(rf"\blayer {layer}\b\s*", "", name)
    return re.sub(r"\b\d+\b", "*", rest) or name


def short_stems(stems: list[str]) -> dict[str, str]:
    """Each name's end, as much of it as tells it from all others, without what all begin with.

    >>> names = ["h.attn.query", "h.attn.output.dense", "h.up.dense", "h.output.dense"]
    >>> list(short_stems(names).values())
    ['query', 'attn.output.dense', 'up.dense', 'output.dense']
    """
    split = [stem.split(".") for stem in stems]
    alike = [len(set(words)) == 1 for words in zip(*(words[:-1] for words in split), strict=False)]
    start = ([*alike, False]).index(False)
    inner = {".".join(words): ".".join(words[start:]) for words in split}
    found = {}
    for stem, rest in inner.items():
        words = rest.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [f".{other}" for other in inner.values() if other != rest]
        found[stem] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), rest)
    return found


def layers_that_stay(record: Record) -> dict[int, bool]:
    """Of a record of kind `layers`, which of the input's layers stay; empty where it doesn't say."""
    if record.get("kind") != "layers":
        return {}
    return {
        int(group["layer"]): group["kept"] > 0
        for group in groups_of(record)
        if is_number(group.get("layer")) and is_number(group.get("kept"))
    }


def monitor_of(record: Record) -> str:
    return str(record.get("monitor") or "").removeprefix("valid/")


def label_of(metric: str) -> str:
    if metric == "kl":
        return "KL divergence"
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def bound_of(record: Record, gate: Any) -> tuple[float, str] | None:
    """The gate's first number and its words: as the phase's gate has it, else as the rollback says."""
    if isinstance(gate, dict) and gate.get("metric") in (None, monitor_of(record)):
        sides = [(gate[key], key.replace("_", " ")) for key in ("at_least", "at_most") if is_number(gate.get(key))]
        if sides:
            return float(sides[0][0]), " and ".join(f"{words} {value:g}" for value, words in sides)
    back = record.get("rolled_back")
    words = asked_of(back)[1] if isinstance(back, dict) else ""
    number = re.search(r"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?", words)
    return (float(number[0]), words) if number else None


def asked_of(back: Record) -> tuple[str, str]:
    """The metric that a bound is on, and what it asks of it.

    >>> asked_of({"bound": "accuracy >= 0.8"}), asked_of({"bound": "valid/nll at most 0.7"})
    (('accuracy', 'at least 0.8'), ('nll', 'at most 0.7'))
    """
    text = str(back.get("bound") or "").strip()
    for sign, words in SIGNS.items():
        text = text.replace(f" {sign} ", f" {words} ")
    metric, _, asked = text.partition(" ")
    return (metric.removeprefix("valid/"), asked) if asked.startswith(tuple(SIGNS.values())) else ("", text)


def harm_sign(record: Record) -> int:
    """1 where a rising metric is harm, else -1; metrics that only sensitivity knows (loss, KL) are harm when they rise."""
    higher = record.get("higher_is_better")
    if not isinstance(higher, bool):
        name = str(record.get("metric") or "")
        higher = METRICS[name].higher_is_better if name in METRICS else False
    return -1 if higher else 1
