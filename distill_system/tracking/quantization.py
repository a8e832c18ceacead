"""Quantization in words, for the report's page: what was swapped, how many bits its weights have, what it cost and saved."""

from typing import TYPE_CHECKING, Any

from distill_system.tracking.figures import is_number, megabytes, percent, quantity, short_number
from distill_system.tracking.pruning_parts import Record, records
from distill_system.tracking.quantization_parts import KEY, Alike, alike, packed_of, share_of_zeros, spent
from distill_system.tracking.secrets import mask_text
from distill_system.tracking.sides import ALIKE, figure_rows, latency_of

if TYPE_CHECKING:
    from distill_system.tracking.report import Run

SHOWN = 12  # kinds of matrix that are shown at once


def quantized(run: "Run") -> list[dict[str, Any]]:
    """What the page says of each phase that quantized."""
    found = []
    for phase, record in records(run, KEY).items():
        rows = [tensor_row(one) for one in alike(record)]
        found.append(
            {
                "phase": phase,
                "words": [mask_text(words) for words in summary(record)],
                "sides": sides(record),
                "rows": figures_of(record),
                "notes": [mask_text(words) for words in artifact_words(record)],
                "shown": rows if len(rows) <= SHOWN + 2 else rows[:SHOWN],
                "more": [] if len(rows) <= SHOWN + 2 else rows[SHOWN:],
            }
        )
    return found


def summary(record: Record) -> list[str]:
    """What has how many values, by which quantizer, and how training came there."""
    told = []
    rows = alike(record)
    for kind, noun in (("linear", "linear"), ("embedding", "embedding")):
        ways = dict.fromkeys((row.quantizer, row.levels, row.bits) for row in rows if row.kind == kind)
        for quantizer, levels, bits in ways:
            own = [r for r in rows if (r.kind, r.quantizer, r.levels, r.bits) == (kind, quantizer, levels, bits)]
            count, weights = sum(row.count for row in own), sum(row.weights for row in own)
            words = f"{count} {noun}{'' if count == 1 else 's'} ({quantity(weights)} weights)"
            verb = ("has", "is") if count == 1 else ("have", "are")
            words += f" {verb[0]} {_values(levels)}" if levels else f" {verb[1]} quantized"
            words += f", {_bits(bits)} a weight" if bits else ""
            told.append(words + (f", by {quantizer.replace('_', ' ')}" if quantizer else "") + ".")
    granularity = record.get("granularity")
    if isinstance(granularity, dict) and granularity.get("kind"):
        told.append(f"Weights of a linear share a scale {_granularity(granularity)}.")
    zeros = share_of_zeros([row for row in rows if row.kind == "linear"])
    if zeros:
        told.append(f"{percent(zeros)} of the linears’ weights are zero.")
    schedule = record.get("schedule")
    if isinstance(schedule, list) and len(schedule) > 1:
        told.append(f"Bits fell from {' to '.join(f'{bits:g}' for bits in schedule if is_number(bits))} on the way.")
    mixing = record.get("mixing")
    if isinstance(mixing, dict) and is_number(mixing.get("until")) and mixing["until"] > 0:
        begin = mixing["begin"] if is_number(mixing.get("begin")) else 0.0
        told.append(
            f"The forward went over to them between {percent(begin)} and {percent(mixing['until'])} of the steps."
        )
    inputs = record.get("activations")
    if isinstance(inputs, dict) and is_number(inputs.get("bits")):
        how = {"learned": ", with learned steps", "running": ", with steps from their running range"}
        told.append(f"Inputs of the linears have {inputs['bits']:g} bits{how.get(str(inputs.get('range')), '')}.")
    return told


def _values(levels: int) -> str:
    return f"{levels} value{'' if levels == 1 else 's'}"


def _bits(bits: float) -> str:
    return f"{bits:g} bit{'' if bits == 1 else 's'}"


def _granularity(granularity: Record) -> str:
    size = granularity.get("size")
    words = {"tensor": "in the whole matrix", "row": "along a row"}
    return words.get(str(granularity["kind"]), f"in groups of {size:g}" if is_number(size) else "in groups")


def tensor_row(one: Alike) -> dict[str, str]:
    """A row of the table of matrices."""
    zeros = share_of_zeros([one])
    shares = [share for share, _ in one.zeros]
    few, many = (percent(min(shares)), percent(max(shares))) if shares else ("", "")
    layers = len(set(one.layers))
    where = f"{layers} layers" if layers > 1 else f"layer {one.layers[0]}" if layers else ""
    return {
        "name": mask_text(one.stem),
        "where": f"{one.kind} · {where}" if where else one.kind,
        "by": one.quantizer.replace("_", " ") or "–",
        "weights": quantity(one.weights) if one.weights else "–",
        "values": str(one.levels) if one.levels else "–",
        "bits": f"{one.bits:g}" if one.bits else "–",
        "scales": quantity(one.scales) if one.scales else "–",
        "zeros": percent(zeros) if zeros is not None else "–",
        "range": f"{few} to {many}" if few != many else "",
    }


def sides(record: Record) -> list[str]:
    """Headings of the table of figures."""
    return ["before", "after", *(["packed"] if packed_of(record) else [])]


def figures_of(record: Record) -> list[dict[str, Any]]:
    """Rows of figures: of the input, of the plain folder, of the packed one; the ratio is of the last to the input."""
    found = [record[key] if isinstance(record.get(key), dict) else {} for key in ("before", "after")]
    packed = packed_of(record)
    return figure_rows(
        [*found, *([{"size_bytes": packed.get("bytes"), "latency": packed.get("latency")}] if packed else [])]
    )


def artifact_words(record: Record) -> list[str]:
    """How the two folders load, what the packed file holds, and whether it pays in time."""
    packed = packed_of(record)
    if not packed:
        return [
            "The folder model/ has the quantized values as full floats: it is as large as its input, and no faster."
        ]
    told = [
        "model/ has the quantized values as full floats, for a plain from_pretrained; distill_system.load reads packed/."
    ]
    parts = spent(record)
    if parts:
        told.append(f"The packed file: {', '.join(f'{megabytes(size)} {words}' for words, size in parts.items())}.")
    difference = packed.get("largest_difference")
    if is_number(difference):
        told.append(
            f"Logits of the two differ by up to {short_number(difference)}."
            if difference
            else "Both give the same logits, to the bit."
        )
    before, after = latency_of(record.get("before"), 1), latency_of(packed, 1)
    if before and after and after >= ALIKE * before:
        told.append("Packed, it is no faster than its input at one row: unpacking takes what smaller weights save.")
    if not record.get("before"):
        told.append("Its input was not measured in this run.")
    return told
