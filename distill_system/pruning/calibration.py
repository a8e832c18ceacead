"""What calibration rows tell of a model's inside: watchers that look at the inputs of some modules while a driver runs the rows through it.

    for number in range(watcher.passes):
        watcher.begin(number)
        with watcher.watching():
            for batch in rows:
                watcher.keep_BT = ...  # real tokens
                model(...)
        watcher.end(number)
    found_I = watcher.result("bert.encoder.layer.0.output.dense")

Padding never counts. Ranks see different rows; at the end of a pass they put together what they saw, as sums or as largest values.

Shapes: B rows, T tokens, N real tokens, I input features of a module.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill_system import distributed
from distill_system.signals import real_inputs


class Watcher:
    """Base of all watchers; what a subclass adds is what it keeps of each module in a pass, and what it makes of that.

    Args:
        modules: those whose inputs are watched, by the names under which `result` finds them; their input features are the last dimension.
    """

    passes: ClassVar[int] = 1  # over the same rows

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self.keep_BT: Tensor | None = (
            None  # bool [B, T], or [B] or [B, 1] of whole rows: what counts in the next forward; None: all
        )
        self.number = 0
        self.seen: dict[str, Tensor] = {}

    def start(self, features: int, device: torch.device) -> Tensor:
        """What is kept of a module, before anything was seen in this pass."""
        raise NotImplementedError

    def see(self, name: str, x_NI: Tensor, kept: Tensor) -> None:
        """Adds real tokens' inputs to what is kept, in place."""
        raise NotImplementedError

    def largest(self) -> bool:
        """Whether ranks put their parts together by the largest value in this pass, not by the sum."""
        return False

    def is_empty(self, kept: Tensor) -> bool:
        """Whether all ranks together saw no token in this pass."""
        raise NotImplementedError

    def result(self, name: str) -> Tensor:
        """What was found of each input feature `[I]` (float32) of a module."""
        raise NotImplementedError

    def begin(self, number: int) -> None:
        """Starts a pass (from 0)."""
        self.number = number
        self.seen = {name: self.start(_features(module), _device(module)) for name, module in self.modules.items()}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, every forward is looked at."""
        hooks = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, module in self.modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.keep_BT = None

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = (arguments or tuple(named.values()))[0].detach()
            with torch.no_grad():
                self.see(name, self._real(name, x), self.seen[name])

        return look

    def _real(self, name: str, x: Tensor) -> Tensor:
        found = x.reshape(-1, x.shape[-1]) if self.keep_BT is None else real_inputs(x, self.keep_BT)
        if found is None:
            assert self.keep_BT is not None
            raise ValueError(
                f"{name} takes {list(x.shape)}, which real tokens {list(self.keep_BT.shape)} say nothing of"
            )
        return found

    def end(self, number: int) -> None:
        """Puts together what all ranks saw in a pass.

        Raises:
            ValueError: they saw nothing of a module, or something that isn't finite; on every rank.
        """
        reduce = _largest_of_data_ranks if self.largest() else distributed.sum_over_data_ranks
        for name, kept in self.seen.items():
            self.seen[name] = reduce(kept)
        empty = [name for name, kept in self.seen.items() if self.is_empty(kept)]
        if empty:
            text = f"no token went through {empty[0]}{f' and {len(empty) - 1} others' if empty[1:] else ''}"
            raise ValueError(f"{text}: the calibration rows are empty, or the model doesn't use it")
        wild = [name for name, kept in self.seen.items() if not bool(kept.isfinite().all())]
        if wild:
            raise ValueError(f"what goes into {wild[0]} isn't finite on the calibration rows")


def _features(module: nn.Module) -> int:
    """Input features of a Linear or Conv1D (whose weight may be sharded, so that its shape says nothing)."""
    features = getattr(module, "in_features", getattr(module, "nx", None))
    assert isinstance(features, int), f"{type(module).__name__} doesn't say how many input features it has"
    return features


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _largest_of_data_ranks(tensor: Tensor) -> Tensor:
    if dist.is_initialized() and distributed.data_world() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=distributed.data_group())
    return tensor
