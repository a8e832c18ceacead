"""Ranks: the process group, and the few collective words the rest of the package uses. Everything works with one rank and no group."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RankFailed(RuntimeError):
    """Raised on ranks that wait for another that failed; that one has the story."""


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    return rank() == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def device_of(accelerator: str) -> torch.device:
    """The device of this rank: its own GPU where there is one (or it is asked for), else the CPU."""
    if accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def start(device: torch.device, *, threads: int | None = None, timeout_s: float = 1800.0) -> None:
    """Joins the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    A run with one rank gets a group too: DeepSpeed wants one, and there is only one code path.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
        if threads:
            torch.set_num_threads(threads)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized() and world() > 1:
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place, as a convenience also returned."""
    if dist.is_initialized() and world() > 1:
        dist.all_reduce(tensor)
    return tensor


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, on every rank; a row's gradient is the sum of what all ranks say of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """`[B, ...]` of each rank as `[world * B, ...]` in the order of ranks, differentiable; every rank gives equally many rows."""
    if not dist.is_initialized() or world() == 1:
        return rows
    return _GatherRows.apply(rows)


def from_main(value: Any = None) -> Any:
    """What rank 0 holds, on every rank (any object that can be pickled; ranks trust each other)."""
    if not dist.is_initialized() or world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def everyone(value: Any) -> list[Any]:
    """What each rank holds, in the order of ranks, on every rank."""
    if not dist.is_initialized() or world() == 1:
        return [value]
    box: list[Any] = [None] * world()
    dist.all_gather_object(box, value)
    return box


def main_only(action: Callable[[], Any]) -> Any:
    """What `action()` gives on rank 0, on every rank, which all wait for it. A failure there fails everywhere, so that no rank waits for ever."""
    result, failure = None, None
    if is_main():
        try:
            result = action()
        except Exception as error:
            failure = error
    told, failed = from_main((result, str(failure) if failure else None))
    if failure is not None:
        raise failure
    if failed is not None:
        raise RankFailed(f"rank 0 failed: {failed}")
    return told


def main_first(action: Callable[[], Any]) -> Any:
    """Runs `action()` on rank 0, then on the others, which find what rank 0 left in a cache."""
    result = None

    def on_main() -> None:
        nonlocal result
        result = action()

    main_only(on_main)
    return result if is_main() else action()
