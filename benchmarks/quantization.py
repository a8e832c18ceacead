"""What low precision costs while a model trains, and how few bytes it leaves.

    python -m benchmarks.quantization [--quick] [--only PART...] [--json FILE]

A BERT in the shape of MiniLM (384 wide, 6 layers, 12 heads, 30522 words; 22.7M parameters), random weights, rows of 64 tokens.

step_<quantizer>    a training step (the engine's: forward, loss, backward, clipping, fused AdamW, and what the phase does after each step; 32 rows) in which all
                    linears of the body are quantized row by row, against full precision. Goal: <= 1.15. step_loss_aware: ternary, with its scales fitted anew
                    to the optimizer's second moments after the step. Goal: <= 1.35. step_inputs: 4 bits, and inputs at 8 bits with learned steps.
file_<bits>         the packed file, all linears of the body at so many bits with a scale a row, against what the bits promise: bits x weights / 8, four bytes a
                    scale, and the rest of the model in fp32. Goal: <= 1.02. 1.6: base 3, five weights a byte.
file_ternary_4bit_embeddings   three values a weight, embeddings at 4 bits, against the fp32 file. Goal: <= 1/12.

Numbers are CPU time of a single thread, medians of interleaved rounds; their ratio is the median of the rounds' ratios. What runs from packed storage, how
fast and in how much memory, is in benchmarks.inference; what is left of accuracy in docs/evidence.md.
"""

from benchmarks.common import Figures, figure, interleaved, one_thread, run_parts

one_thread()

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pruning.models import batch, encoder
from distill_system.export.dense import named_tensors, save_model
from distill_system.export.packed import pack
from distill_system.losses.task import HardLabel
from distill_system.models.grids_file import write_grids
from distill_system.phases.quantized import Settings
from distill_system.quantization.activations import Activations
from distill_system.quantization.base import Moment
from distill_system.quantization.binary import BinaryConstants, DeterministicBinary
from distill_system.quantization.convert import Conversion
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.loss_aware import LossAware
from distill_system.quantization.prepare import prepare
from distill_system.quantization.ternary import BernoulliTernary, TernaryConnect
from distill_system.quantization.trained_ternary import TrainedTernary
from distill_system.settings import Embeddings, Mixing, Training
from distill_system.training.engine import PlainEngine
from distill_system.training.objective import STUDENT, Objective
from distill_system.training.quantizing import Quantizing

WARM = 2  # steps before the clock counts: the optimizer's state is made in the first
STEPS = 1000  # of the phase that is imagined
QUANTIZERS = {
    "deterministic_binary": DeterministicBinary,
    "binary_constants": BinaryConstants,
    "ternary_connect": TernaryConnect,
    "bernoulli_ternary": BernoulliTernary,
    "trained_ternary": TrainedTernary,
    "kbit": lambda: Kbit(bits=4),
    "loss_aware": lambda: LossAware("ternary"),
}
BITS = {"1": DeterministicBinary, "1.6": TernaryConnect} | {
    str(bits): lambda bits=bits: Kbit(bits=bits) for bits in (2, 3, 4, 8)
}


class Arm:
    """An engine, and the phase's part in each of its steps."""

    def __init__(self, quick: bool, quantizer: Any, activations: Activations | None = None) -> None:
        model, moment = encoder(quick)[0], Moment()
        if quantizer is not None:
            prepare(model, Settings(quantizer).targets(model, "benchmark"), moment, activations)
        objective = Objective(model, {"hard": HardLabel()}, task="classification")
        self.engine = PlainEngine(objective.train(), Training(strategy="single"), torch.device("cpu"))
        self.modifier = None
        if quantizer is not None:
            self.modifier = Quantizing(
                model, STUDENT, moment, Mixing(), STEPS, activations=activations, show=lambda engine: None
            )
            self.modifier.memory["calibrated"] = True
        self.number = 0

    def step(self, data: dict[str, torch.Tensor]) -> float:
        """CPU seconds of one step."""
        began = time.thread_time()
        scale_L = torch.tensor([1.0 / len(data["labels"])], dtype=torch.float64)
        loss, _ = self.engine.forward(data, None, scale_L, last=True)
        self.engine.backward(loss, last=True)
        self.engine.step(1e-4)
        self.number += 1
        if self.modifier is not None:
            self.modifier.after_step(self.engine, self.number, None, last=False)
        return time.thread_time() - began


def steps(quick: bool) -> Figures:
    rows, rounds = (4, 1) if quick else (32, 11)
    data = batch(rows)
    arms = {"dense": Arm(quick, None)} | {name: Arm(quick, make()) for name, make in QUANTIZERS.items()}
    arms["inputs"] = Arm(quick, Kbit(bits=4), Activations(8, learned=True))
    calls = {name: lambda arm=arm: arm.step(data) for name, arm in arms.items()}
    interleaved(calls, WARM)
    seconds = interleaved(calls, rounds)
    dense = statistics.median(seconds["dense"])
    figures = {}
    for name in list(arms)[1:]:
        # Of each round's ratio, so that a machine that becomes slower over the rounds falls on both.
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["dense"], strict=True))
        figures[f"step_{name}"] = figure(1000 * dense * ratio, 1000 * dense, 1000 * dense, "ms of CPU a step")
    return figures


def packed_size(folder: Path, quick: bool, settings: Settings) -> tuple[int, int, float]:
    """Bytes of the packed file, of the fp32 file, and what the bits promise."""
    model, tokenizer = encoder(quick)
    save_model(folder / "fp32", model, tokenizer)
    targets = settings.targets(model, "benchmark")
    prepare(model, targets, Moment())
    conversion = Conversion(model)
    values = dict(conversion(named_tensors(model)))
    plain = encoder(quick)[0]
    plain.load_state_dict(values, strict=False)
    save_model(folder / "model", plain, tokenizer)
    write_grids(folder / "model", conversion.grids)
    pack(folder / "model", folder / "packed")
    promise = 0.0
    for name, tensor in values.items():
        if name in conversion.grids:
            grid = conversion.grids[name].grid
            bits = {2: 1.0, 3: 1.6}.get(grid.count, (grid.count - 1).bit_length())
            promise += bits * tensor.numel() / 8 + sum(4 * own.numel() for own in grid.tensors().values())
        else:
            promise += tensor.nbytes
    ours, dense = (
        sum(path.stat().st_size for path in (folder / kind).glob("*.safetensors")) for kind in ("packed", "fp32")
    )
    return ours, dense, promise


def files(quick: bool) -> Figures:
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in BITS.items():
            ours, _, promise = packed_size(Path(temporary, name), quick, Settings(make()))
            figures[f"file_{name}"] = figure(ours, promise, promise, "bytes")
        settings = Settings(TrainedTernary(), embeddings=Embeddings(bits=4))
        ours, dense, promise = packed_size(Path(temporary, "all"), quick, settings)
        figures["file_ternary_4bit_embeddings"] = figure(ours, dense, promise, "bytes")
    return figures


PARTS = {"steps": steps, "files": files}


def main(argv: list[str] | None = None) -> None:
    run_parts(__doc__, PARTS, argv)


if __name__ == "__main__":
    main()
