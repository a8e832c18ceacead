"""How fast and how small what comes out of a prune phase is: cut encoders, half the layers, block-sparse linears; bytes of the files.

Shapes: R, C rows and columns of blocks; O outputs, I inputs.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Figures, figure, interleaved
from benchmarks.pruning.models import batch, cut_by_magnitude, encoder, prune_by_magnitude
from distill_system.export.blocks import BlockSparseLinear
from distill_system.export.dense import named_tensors, save_model
from distill_system.export.sparse import write_sparse
from distill_system.pruning.base import Surgery
from distill_system.pruning.cut import cut

NEURONS, HEADS, ZEROS = 0.5, 1 / 3, 0.9  # shares that go
FEATURES, BLOCK = 1024, 32
# Bits of a weight of which a tenth is kept: its entropy tells where, 32 bits each of those that stay say what.
LEAST_SPARSE = 0.1 + 0.469 / 32


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of this thread, the mean of some calls in a row."""
    with torch.inference_mode():
        began = time.thread_time()
        for _ in range(repeats):
            call()
        return (time.thread_time() - began) / repeats


def against(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int, rounds: int) -> tuple[float, float]:
    """Median seconds of both, a call of each after the other; the first is peer times the median of rounds' ratios."""
    arms = {"ours": lambda: seconds_of(ours, repeats), "peer": lambda: seconds_of(peer, repeats)}
    interleaved(arms, 1)
    seconds = interleaved(arms, rounds)
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    base = statistics.median(seconds["peer"])
    return ratio * base, base


def operations(model: nn.Module, inputs: dict[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


def against_dense(small: Any, dense: Any, rows: int, quick: bool) -> dict[str, Any]:
    """Latency of a model against that of the one it was cut from; the least is what its multiplications would take at the dense one's speed."""
    inputs = {key: value for key, value in batch(rows).items() if key in ("input_ids", "attention_mask")}
    repeats, rounds = (1, 1) if quick else (10, 21) if rows == 1 else (1, 11)
    share = operations(small, inputs) / operations(dense, inputs)
    ours, peer = against(lambda: small(**inputs), lambda: dense(**inputs), repeats, rounds)
    return figure(1000 * ours, 1000 * peer, 1000 * peer * share, f"ms of CPU, {rows} rows")


def models(quick: bool) -> dict[str, Any]:
    """The dense encoder, the cut one, and the one with half the layers."""
    dense = encoder(quick)[0].eval()
    narrow, shallow = copy.deepcopy(dense), copy.deepcopy(dense)
    cut_by_magnitude(narrow, "neurons", NEURONS)
    cut_by_magnitude(narrow, "heads", HEADS)
    cut(shallow, Surgery("layers", {"layers": list(range(0, dense.config.num_hidden_layers, 2))}))
    return {"dense": dense, "cut": narrow, "layers": shallow}


def latencies(quick: bool) -> Figures:
    made = models(quick)
    return {
        f"latency_{name}{suffix}": against_dense(made[name], made["dense"], rows, quick)
        for name in ("cut", "layers")
        for suffix, rows in (("", 1), ("_32", 32))
    }


def block_sparse(features: int) -> nn.Linear:
    """A linear with nine tenths of its blocks zero."""
    linear = nn.Linear(features, features)
    side = features // BLOCK
    keep_N = torch.zeros(side * side, dtype=torch.bool)
    keep_N[torch.randperm(side * side)[: round((1 - ZEROS) * side * side)]] = True
    keep_RC = keep_N.view(side, side)
    with torch.no_grad():
        linear.weight.mul_(keep_RC.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1))
    return linear


def blocks(quick: bool) -> Figures:
    torch.manual_seed(0)
    dense = block_sparse(256 if quick else FEATURES)
    ours = BlockSparseLinear.from_dense(dense, (BLOCK, BLOCK))
    found = {}
    for suffix, rows in (("", 1), ("_32", 32)):
        x_BI = torch.randn(rows, dense.in_features)
        repeats, rounds = (3, 1) if quick else (2000 // rows, 21)
        mine, peer = against(lambda x=x_BI: ours(x), lambda x=x_BI: dense(x), repeats, rounds)
        found[f"latency_blocks{suffix}"] = figure(
            1e6 * mine, 1e6 * peer, 1e6 * peer * (1 - ZEROS), f"us of CPU, {rows} rows"
        )
    return found


def bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def bytes_in(files: Iterable[Path], names: list[str]) -> int:
    """Bytes that the tensors of these names, or the pieces of them, take in the files."""
    from safetensors import safe_open

    found = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            keys = [key for key in opened.keys() if key.split(":")[0] in names]  # noqa: SIM118 (it is no mapping)
            found += sum(opened.get_tensor(key).nbytes for key in keys)
    return found


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def files(quick: bool) -> Figures:
    made = models(quick)
    found: Figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = bytes_of(save_model(folder / "dense", made["dense"], None))
        for name in ("cut", "layers"):
            share = parameters(made[name]) / parameters(made["dense"])
            written = bytes_of(save_model(folder / name, made[name], None))
            found[f"file_{name}"] = figure(written / 1e6, dense / 1e6, share * dense / 1e6, "MB")
        for suffix, words in (("", None), ("_minilm", 30522)):
            model, _ = encoder(quick, words=words)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:  # new biases are zeros, stored in nothing
                        parameter.normal_()
            before = save_model(folder / f"before{suffix}", model, None)
            names = prune_by_magnitude(model, ZEROS)
            after = write_sparse(folder / f"after{suffix}", named_tensors(model), {}, model.config, None)
            linears = bytes_in(before, names)
            rest = bytes_of(before) - linears
            found[f"file_sparse{suffix}"] = figure(
                bytes_of(after) / 1e6, bytes_of(before) / 1e6, (rest + LEAST_SPARSE * linears) / 1e6, "MB"
            )
            if not suffix:
                found["file_sparse_linears"] = figure(
                    bytes_in(after, names) / 1e6, linears / 1e6, LEAST_SPARSE * linears / 1e6, "MB"
                )
    return found
