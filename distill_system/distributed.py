"""Ranks: the process group, and the few collective words the rest of the package uses. Everything works with one rank and no group.

All ranks share the work on one batch (`data_rank` of `data_world`), unless a cohort has divided them: then each part has a model of its own, all
parts see the same batch, and what averages gradients or deals out rows stays inside a part.
"""

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    _groups.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized() and world() > 1:
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place, as a convenience also returned."""
    if dist.is_initialized() and world() > 1:
        _all_reduce(tensor, None)
    return tensor


def _all_reduce(tensor: Tensor, group: Any) -> None:
    """Also of a CPU tensor where the group only knows GPUs: small counts are kept on the host."""
    if tensor.device.type == "cpu" and dist.get_backend(group) == "nccl":
        there = tensor.cuda()
        dist.all_reduce(there, group=group)
        tensor.copy_(there)
    else:
        dist.all_reduce(tensor, group=group)


@dataclass(frozen=True)
class Division:
    """Ranks dealt to the members of a cohort, `size` neighbouring ones to each."""

    parts: int
    part: int  # of this rank
    place: int  # of this rank in its part
    size: int
    data_groups: tuple[Any, ...]  # one for each part
    peer_groups: tuple[Any, ...]  # one for each place: the ranks that see the same rows
    self_groups: tuple[Any, ...]  # one for each rank


_division: Division | None = None


@functools.cache
def _groups(parts: int) -> tuple[tuple[Any, ...], ...]:
    """Process groups are never given back, so each division makes its own once. Every rank makes every group, in the same order."""
    size = world() // parts
    data = tuple(dist.new_group([part * size + i for i in range(size)]) for part in range(parts))
    peers = tuple(dist.new_group([part * size + i for part in range(parts)]) for i in range(size))
    return data, peers, tuple(dist.new_group([i]) for i in range(world()))


@contextlib.contextmanager
def divided(parts: int) -> Iterator[Division]:
    """Inside, this rank belongs to one of `parts` equal parts (all ranks together)."""
    global _division
    assert world() % parts == 0, (world(), parts)
    assert _division is None, "divided already"
    size = world() // parts
    _division = Division(parts, rank() // size, rank() % size, size, *_groups(parts))
    try:
        yield _division
    finally:
        _division = None


def division() -> Division | None:
    return _division


def data_rank() -> int:
    """This rank among those that share a batch and average their gradients."""
    return _division.place if _division else rank()


def data_world() -> int:
    return _division.size if _division else world()


def data_group() -> Any:
    """Their process group; None stands for all ranks."""
    return _division.data_groups[_division.part] if _division else None


def parts() -> int:
    """How many times the batch is seen: once, or once by each part."""
    return _division.parts if _division else 1


def is_lead() -> bool:
    """Whether this rank speaks for those that share a batch."""
    return data_rank() == 0


def data_everyone(value: Any) -> list[Any]:
    """What each rank that shares the batch holds, on each of them."""
    if not dist.is_initialized() or data_world() == 1:
        return [value]
    box: list[Any] = [None] * data_world()
    dist.all_gather_object(box, value, group=data_group())
    return box


def sum_over_data_ranks(tensor: Tensor) -> Tensor:
    if dist.is_initialized() and data_world() > 1:
        _all_reduce(tensor, data_group())
    return tensor


def from_lead(tensor: Tensor) -> Tensor:
    """What the lead rank holds, in place, on all ranks that share the batch."""
    if dist.is_initialized() and data_world() > 1:
        dist.broadcast(tensor, src=rank() - data_rank(), group=data_group())
    return tensor


def gather_peers(tensor: Tensor) -> list[Tensor]:
    """What the ranks that see the same rows in each part hold, in the order of parts; no gradient."""
    assert _division is not None
    parts = [torch.empty_like(tensor) for _ in range(_division.parts)]
    dist.all_gather(parts, tensor.detach().contiguous(), group=_division.peer_groups[_division.place])
    return parts


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, on every rank; a row's gradient is the sum of what all ranks say of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(data_world())]
        dist.all_gather(parts, rows.contiguous(), group=data_group())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may have lent it to others too
        dist.all_reduce(gradient, group=data_group())
        return gradient[data_rank() * ctx.rows : (data_rank() + 1) * ctx.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """`[B, ...]` of each rank that shares the batch as `[ranks * B, ...]`, differentiable; every rank gives equally many rows."""
    if not dist.is_initialized() or data_world() == 1:
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
