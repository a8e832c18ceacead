"""What packed models cost when they run: time of a linear and of a whole model, memory of a process, time to load.

    python -m benchmarks.inference [--quick] [--only PART...] [--json FILE]

latency_int8        a linear of 1024 inputs and outputs whose weights lie packed at 8 bits, a scale a row, one row of input, against torch's float32 product.
                    latency_int4: 4 bits, groups of 64. latency_ternary, latency_binary: 1.6 and 1 bits, a scale a row. Goal: <= 0.65. Floor: the bytes of the packed
                    matrix over those of the float32 one. _2048, _4096: inputs and outputs; _wide: 1024 to 4096, a feed-forward's first half.
                    _batch8: eight rows (of the ternary one).
latency_ternary_plain   the same without the compiled kernel: decoded tile by tile.
torchao             an 8-bit linear of 1024 by torchao's weight-only int8, against ours (ours is the figure, torchao the peer). Goal: <= 1. torchao_size: bytes of
                    both, weights and scales.
latency_model       a MiniLM-shaped BERT, three values a weight and 4-bit embeddings, one row of 64 tokens, against the fp32 one. latency_model_32: 32 rows.
resident_packed     what loading and running that model adds to a process, against fp32; both with a vocabulary of bytes, whose embeddings hardly count (of large
                    ones only those rows come into memory that are looked up: the plain file is mapped). Goal: <= 0.20. Floor: the bytes of the packed model.
load_packed         loading the packed folder, with its checksums, against plain `from_pretrained` of the fp32 one, which only maps its file. Goal: <= 1.
                    load_packed_first: loading and a first row, for which the plain file does come in.

Time is CPU time of a single thread (of loading: of the process, because the library loads in threads of its own), medians of interleaved rounds; their ratio is the median of the rounds' ratios. Memory is VmRSS after a run, of a fresh process.
Not measured: GPUs, several threads, runtimes other than PyTorch.
"""

from benchmarks.common import (
    Figures,
    figure,
    interleaved,
    one_thread,
    resident,
    run_parts,
)

one_thread()

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.pruning.models import WORDS, batch, encoder
from benchmarks.pruning.results import against
from distill_system import load
from distill_system.export.dense import named_tensors, save_model
from distill_system.export.packed import pack
from distill_system.models.grid import OnGrid, grouped
from distill_system.models.grids_file import write_grids
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.packed_modules import PackedLinear
from distill_system.phases.quantized import Settings
from distill_system.quantization.base import Draw, Moment
from distill_system.quantization.binary import DeterministicBinary
from distill_system.quantization.convert import Conversion
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.prepare import prepare
from distill_system.quantization.ternary import TernaryConnect
from distill_system.quantization.trained_ternary import TrainedTernary
from distill_system.settings import Embeddings

KINDS = {
    "int8": Kbit(bits=8, range="weights"),
    "int4": Kbit(bits=4, range="weights", granularity="group", group_size=64),
    "ternary": TernaryConnect(),
    "binary": DeterministicBinary(),
}
TEXT = {"input_ids", "attention_mask"}


def packed_linear(dense: nn.Linear, quantizer: Any) -> PackedLinear:
    weight = dense.weight.detach()
    weight_GN = grouped(weight, quantizer.granularity)
    given, moment = quantizer.initial(weight_GN), Moment()
    code_GN, grid = quantizer.encode(weight_GN, given, moment, Draw(0, 0, 0, False))
    values = grid.decode(code_GN).view(weight.shape)
    bias = nn.Parameter(dense.bias.detach(), requires_grad=False)
    return PackedLinear(PackedMatrix.of(values, OnGrid(grid, quantizer.granularity)), bias).eval()


def bytes_of(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def one_linear(
    ours: Any, dense: nn.Linear, rows: int, repeats: int, rounds: int, floor: float | None
) -> dict[str, Any]:
    x = torch.randn(rows, dense.in_features)
    mine, peer = against(lambda: ours(x), lambda: dense(x), repeats, rounds)
    return figure(1e6 * mine, 1e6 * peer, None if floor is None else 1e6 * peer * floor, f"us of CPU, {rows} rows")


def linears(quick: bool) -> Figures:
    figures: Figures = {}
    sizes = {"": (1024, 1024), "_2048": (2048, 2048), "_4096": (4096, 4096), "_wide": (1024, 4096)}
    repeats, rounds = (2, 1) if quick else (50, 31)
    for suffix, (inputs, outputs) in {"": (256, 256)}.items() if quick else sizes.items():
        dense = nn.Linear(inputs, outputs)
        made = {kind: packed_linear(dense, quantizer) for kind, quantizer in KINDS.items()}
        for kind, ours in made.items():
            floor = bytes_of(ours) / bytes_of(dense)
            figures[f"latency_{kind}{suffix}"] = one_linear(ours, dense, 1, repeats, rounds, floor)
        if not suffix:
            figures["latency_ternary_batch8"] = one_linear(made["ternary"], dense, 8, repeats, rounds, None)
            plain = made["ternary"].plain
            figures["latency_ternary_plain"] = one_linear(plain, dense, 1, max(1, repeats // 10), rounds, None)
    return figures


def torchao(quick: bool) -> Figures:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        print(f"torchao isn't installed ({error}): pip install 'distill_system[torchao]'")
        return {}
    side = 256 if quick else 1024
    dense, x = nn.Linear(side, side), torch.randn(1, side)
    ours = packed_linear(dense, KINDS["int8"])
    theirs = nn.Sequential(nn.Linear(side, side))
    theirs.load_state_dict({"0.weight": dense.weight, "0.bias": dense.bias})
    quantize_(theirs, Int8WeightOnlyConfig())
    compiled = torch.compile(theirs)  # torchao's kernels are made for it; of both the faster is the peer
    repeats, rounds = (2, 1) if quick else (50, 31)
    found = [against(lambda: ours(x), lambda m=m: m(x), repeats, rounds) for m in (theirs, compiled)]
    mine, peer = min(found, key=lambda pair: pair[1])
    weight: Any = theirs[0].weight
    parts = [getattr(weight, name) for name in weight.tensor_data_names]
    theirs_bytes = sum(part.numel() * part.element_size() for part in parts) + 4 * side
    return {
        "torchao": figure(1e6 * mine, 1e6 * peer, None, "us of CPU, 1 row"),
        "torchao_size": figure(bytes_of(ours), theirs_bytes, None, "bytes"),
    }


def folders(root: Path, quick: bool, words: int | None = WORDS) -> None:
    """`fp32` and `packed` below `root`: the same encoder; `words` as in `encoder`."""
    model, tokenizer = encoder(quick, words=words)
    save_model(root / "fp32", model, tokenizer)
    settings = Settings(TrainedTernary(), embeddings=Embeddings(bits=4))
    prepare(model, settings.targets(model, "benchmark"), Moment())
    conversion = Conversion(model)
    values = dict(conversion(named_tensors(model)))
    plain = encoder(quick, words=words)[0]
    plain.load_state_dict(values, strict=False)
    save_model(root / "plain", plain, tokenizer)
    write_grids(root / "plain", conversion.grids)
    pack(root / "plain", root / "packed")


def from_pretrained(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(str(folder))


def resident_of(folder: str, small: str) -> dict[str, int]:
    """In a fresh process: what a model adds to it when it was loaded and has run, and the bytes of its tensors."""
    torch.set_num_threads(1)
    inputs = {name: value for name, value in batch(1).items() if name in TEXT}
    tiny = load(small)  # libraries, allocators and thread pools are there before the model
    with torch.inference_mode():
        tiny(**inputs)
    gc.collect()
    before = resident()
    model = load(folder)
    with torch.inference_mode():
        model(**inputs)
    gc.collect()
    return {"resident": resident() - before, "tensors": bytes_of(model)}


def models(quick: bool) -> Figures:
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders(root, quick)
        dense, ours = load(root / "fp32"), load(root / "packed")
        for suffix, rows in (("", 1), ("_32", 32)):
            inputs = {name: value for name, value in batch(rows).items() if name in TEXT}
            repeats, rounds = (1, 1) if quick else (5, 15) if rows == 1 else (1, 7)
            mine, peer = against(lambda x=inputs: ours(**x), lambda x=inputs: dense(**x), repeats, rounds)
            figures[f"latency_model{suffix}"] = figure(1000 * mine, 1000 * peer, None, f"ms of CPU, {rows} rows")
        figures |= loads(root, quick)
        folders(root / "bytes", quick, words=None)
        folders(root / "small", True, words=None)
        told = {}
        for name in ("packed", "fp32"):
            both = (str(root / size / name) for size in ("bytes", "small"))
            code = f"import json; from benchmarks.inference import resident_of; print(json.dumps(resident_of{tuple(both)}))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            told[name] = json.loads(done.stdout.splitlines()[-1])
        mine, peer, least = told["packed"]["resident"], told["fp32"]["resident"], told["packed"]["tensors"]
        figures["resident_packed"] = figure(mine / 1e6, peer / 1e6, least / 1e6, "MB")
    return figures


def loads(root: Path, quick: bool) -> Figures:
    inputs = {name: value for name, value in batch(1).items() if name in TEXT}
    arms = {"ours": lambda: load(root / "packed"), "peer": lambda: from_pretrained(root / "fp32")}

    def seconds_of(make: Any, first: bool) -> float:
        began = time.process_time()
        model = make()
        if first:
            with torch.inference_mode():
                model(**inputs)
        return time.process_time() - began

    figures: Figures = {}
    for suffix, first in (("", False), ("_first", True)):
        timed = {name: lambda make=make, first=first: seconds_of(make, first) for name, make in arms.items()}
        interleaved(timed, 1)
        seconds = interleaved(timed, 1 if quick else 21)
        ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
        peer = 1000 * statistics.median(seconds["peer"])
        figures[f"load_packed{suffix}"] = figure(ratio * peer, peer, None, "ms of CPU")
    return figures


PARTS = {"linears": linears, "torchao": torchao, "models": models}


def main(argv: list[str] | None = None) -> None:
    run_parts(__doc__, PARTS, argv)


if __name__ == "__main__":
    main()
