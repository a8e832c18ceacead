"""How fast a saved model answers, and how much memory that takes: a bounded number of timed forwards after a warm-up.

Figures hold for this machine and this number of threads. They compare models that were measured in one run, on the same texts.
"""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.evaluation.load import load_model
from distill_system.evaluation.predict import evaluation_mode
from distill_system.training.emit import model_inputs

Batch = Mapping[str, Tensor]
WARM_UP_SHARE = 0.2  # of the time a measurement may take


def latency(model: nn.Module, batch: Batch, *, repeats: int = 50, budget_s: float = 2.0) -> dict[str, float]:
    """Times `model(**inputs of batch)`, as many times as `repeats` and `budget_s` allow, at least once.

    Args:
        model: on the device to be measured, whole (not sharded).
        batch: what the model takes (`input_ids` or `pixel_values`, ...); moved to the model's device before the clock starts.
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
        "samples_per_s": 1000 * len(next(iter(inputs.values()))) / median,
        "repeats": len(milliseconds),
        "threads": torch.get_num_threads(),
    }


def rows_of(batch: Batch, count: int) -> dict[str, Tensor]:
    """`count` rows, repeated where the batch has fewer, without columns that are padding in all of them; for one row, one of median length.

    Of pictures just that many.
    """
    if "pixel_values" in batch:
        pictures = batch["pixel_values"]
        return {"pixel_values": pictures[torch.arange(count) % len(pictures)]}
    lengths = batch["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    chosen = order[len(order) // 2].view(1) if count == 1 else torch.arange(count) % len(order)
    real = batch["attention_mask"][chosen].any(dim=0)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    return {name: batch[name][chosen][:, real] for name in names}


def measure_model(
    model: nn.Module, batch: Batch, *, sizes: tuple[int, ...] = (1, 32), budget_s: float = 5.0
) -> dict[str, dict[str, float]]:
    """`{"batch_1": {"p50_ms", ...}, "batch_32": ...}` of a model that is loaded.

    Args:
        model: whole, on the device to be measured.
        batch: rows of real data, best at least as many as the largest size.
        sizes: rows in a forward.
        budget_s: seconds over all sizes.
    """
    figures = {}
    for rows in sizes:
        # A large batch needs more of the time, but a small one needs some: a quarter for 1, three quarters for 32.
        share = (rows + max(sizes) / 2) / (sum(sizes) + len(sizes) * max(sizes) / 2)
        figures[f"batch_{rows}"] = latency(model, rows_of(batch, rows), budget_s=budget_s * share)
    return figures


def measure(
    folder: Path | str, task: str, batch: Batch, *, device: torch.device | str = "cpu", budget_s: float = 5.0
) -> dict[str, Any]:
    """`{"latency": ..., "peak_memory_bytes": ...}` of a saved model, loaded anew in float32 so that nothing of its training comes along."""
    with peak_memory(device) as peak:
        figures = measure_model(load_model(folder, task).to(device), batch, budget_s=budget_s)
    return {"latency": figures, "peak_memory_bytes": peak["bytes"]}


@contextlib.contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[dict[str, int | None]]:
    """Afterwards `bytes` holds the most memory that the block used over what was in use before it; None where the system doesn't tell.

    On a GPU the tensors (`torch.cuda.max_memory_allocated`); on a CPU the resident memory of the process (VmHWM, which Linux lets a process reset).
    What an earlier owner freed is given back to the system first, or the block would live in it and seem to need nothing.
    """
    peak: dict[str, int | None] = {"bytes": None}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak["bytes"] = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        resident = _status("VmRSS")
    except OSError:
        yield peak
        return
    yield peak
    peak["bytes"] = max(0, _status("VmHWM") - resident)


def _status(key: str) -> int:
    """Bytes that /proc/self/status tells under `key`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
