"""How fast a saved model answers, and how much memory that takes: a bounded number of timed forwards after a warm-up.

Figures hold for this machine and this number of threads. They compare models that were measured in one run, on the same texts.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.evaluation.load import load_model
from distill_system.evaluation.predict import evaluation_mode
from distill_system.training.objective import model_inputs

Batch = Mapping[str, Tensor]
WARM_UP_SHARE = 0.2  # of the time a measurement may take


def latency(model: nn.Module, batch: Batch, *, repeats: int = 50, budget_s: float = 2.0) -> dict[str, float]:
    """Times `model(**inputs of batch)`, as many times as `repeats` and `budget_s` allow, at least once.

    Args:
        model: on the device to be measured, whole (not sharded).
        batch: `input_ids` and what else the model takes; moved to the model's device before the clock starts.
        repeats: timed forwards at most.
        budget_s: seconds in all, unless one forward alone takes longer.

    Returns:
        p50_ms, p95_ms, samples_per_s (at the median), repeats, threads (intra-op; what a CPU figure depends on).
    """
    device = next(model.parameters()).device
    inputs = model_inputs(model, {name: tensor.to(device) for name, tensor in batch.items()})

    def forward() -> float:
        start = time.perf_counter()
        model(**inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds: list[float] = []
    with torch.inference_mode(), evaluation_mode([model]):
        start = time.perf_counter()
        warm = [forward()]
        while time.perf_counter() - start < WARM_UP_SHARE * budget_s and len(warm) < 5:
            warm.append(forward())
        while len(seconds) < repeats and time.perf_counter() - start + warm[-1] < budget_s:
            seconds.append(forward())
    # A model too slow for a second forward has only the one it was warmed up with.
    milliseconds = sorted(1000 * value for value in seconds or warm[-1:])
    median = statistics.median(milliseconds)
    return {
        "p50_ms": median,
        "p95_ms": milliseconds[min(len(milliseconds) - 1, int(0.95 * len(milliseconds)))],
        "samples_per_s": 1000 * len(batch["input_ids"]) / median,
        "repeats": len(milliseconds),
        "threads": torch.get_num_threads(),
    }


def rows_of(batch: Batch, count: int) -> dict[str, Tensor]:
    """`count` rows, repeated where the batch has fewer, without columns that are padding in all of them; for one row, one of median length."""
    lengths = batch["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    chosen = order[len(order) // 2].view(1) if count == 1 else torch.arange(count) % len(order)
    real = batch["attention_mask"][chosen].any(dim=0)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    return {name: batch[name][chosen][:, real] for name in names}


def measure_model(
    model: nn.Module, batch: Batch, *, sizes: tuple[int, ...] = (1, 32), budget_s: float = 5.0
) -> dict[str, Any]:
    """`{"latency": {"batch_1": ..., "batch_32": ...}, "peak_memory_bytes": ...}` of a model that is loaded.

    Args:
        model: whole, on the device to be measured.
        batch: rows of real data, best at least as many as the largest size.
        sizes: rows in a forward.
        budget_s: seconds over all sizes.
    """
    figures = {}
    with peak_memory(next(model.parameters()).device) as peak:
        for rows in sizes:
            # A large batch needs more of the time, but a small one needs some: a quarter for 1, three quarters for 32.
            share = (rows + max(sizes) / 2) / (sum(sizes) + len(sizes) * max(sizes) / 2)
            figures[f"batch_{rows}"] = latency(model, rows_of(batch, rows), budget_s=budget_s * share)
    return {"latency": figures, "peak_memory_bytes": peak["bytes"]}


def measure(
    folder: Path | str, task: str, batch: Batch, *, device: torch.device | str = "cpu", budget_s: float = 5.0
) -> dict[str, Any]:
    """`measure_model` of a saved model, loaded anew in float32 so that nothing of its training comes along."""
    return measure_model(load_model(folder, task).to(device), batch, budget_s=budget_s)


@contextlib.contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[dict[str, int | None]]:
    """Afterwards `bytes` holds the most memory in use inside the block, None where the system doesn't tell.

    On a GPU the tensors (`torch.cuda.max_memory_allocated`); on a CPU the resident memory of the *whole process*, libraries included (VmHWM, which
    Linux lets a process reset).
    """
    peak: dict[str, int | None] = {"bytes": None}
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak["bytes"] = torch.cuda.max_memory_allocated(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield peak
        return
    yield peak
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            peak["bytes"] = 1024 * int(line.split()[1])
