"""Frozen teachers: whole on every rank, or sharded by a ZeRO-3 engine of their own whatever the student uses.

A teacher is never part of the module tree, so it can't get into the optimizer, the checkpoint or Lightning's switching to train mode. A sharded teacher
is never whole on a rank, not even while it loads: modules are made under `zero.Init`, which scatters each parameter as it appears, and every rank then
reads its own elements out of the safetensors files.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_system import distributed
from distill_system.models.streaming import read_flat_range, read_tensor, tensor_locations
from distill_system.signals import Signals
from distill_system.training.emit import LOGITS, Batch, Needs, emit

Align = Callable[[Tensor], Tensor]

SHARDED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "steps_per_print": 2**31,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False},
}
UNITS_AHEAD = 1  # modules' worth of parameters that are gathered before their turn


class Teacher:
    """Gives signals, in the student's order of classes or words, for a batch; no gradient, no dropout.

    Args:
        model: a transformers model, or the DeepSpeed engine around one.
        task: of the data.
        align: brings the teacher's last dimension into the student's order and size.
        autocast: (device type, dtype) or None.
        known: classes `[C]` (bool) that it knows, if not all; `align` gives -inf for the others.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: str,
        align: Align | None = None,
        autocast: Any = None,
        known: Tensor | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.align = align
        self.autocast = autocast
        self.known = known

    @property
    def module(self) -> nn.Module:
        return getattr(self.model, "module", self.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Logits alone."""
        return self.signals(batch).logits

    @torch.no_grad()
    def signals(self, batch: Batch, needs: Needs = LOGITS) -> Signals:
        assert not self.module.training, "a teacher must stay in eval mode"
        mixed = torch.autocast(*self.autocast) if self.autocast else contextlib.nullcontext()
        with mixed:
            signals = emit(self.module, batch, self.task, needs, call=self.model)
        return replace(signals, logits=self.align(signals.logits)) if self.align else signals

    def resident(self) -> tuple[int, int]:
        """(elements of parameters on this rank, elements of the whole model)."""
        parameters = list(self.module.parameters())
        held = sum(getattr(p, "ds_tensor", p).numel() for p in parameters)
        return held, sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def replicated(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().requires_grad_(False).to(device)


def sharded(
    folder: Path, make: Callable[[], nn.Module], device: torch.device, *, whole: nn.Module | None = None
) -> nn.Module:
    """The model in `folder` (safetensors under the model's own parameter names), scattered over all ranks.

    Args:
        folder: an artifact, or any folder `save_pretrained` wrote.
        make: makes the model from its config; its fresh weights are thrown away.
        whole: the loaded model, where it can't be made in shards (layers that were cut to other sizes than the config says).

    Raises:
        RuntimeError: a parameter isn't in the files, or has another shape there.
    """
    import deepspeed
    from transformers.initialization import no_init_weights

    from distill_system.training.zero import quiet, start_afresh

    quiet(deepspeed)
    start_afresh(deepspeed)
    # No dtype: from a config without fp16 and bf16, Init takes float32. Given dtype=torch.float32 on a CPU, DeepSpeed 0.19 takes bf16 without a word.
    if whole is not None:
        model = whole
        deepspeed.zero.Init(module=model, config_dict_or_path=SHARDED)
    else:
        with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=SHARDED):
            model = make()
        model.tie_weights()  # part of the initialisation that was left out
        fill(model, folder)
    model.eval().requires_grad_(False)
    engine = deepspeed.initialize(model=model, config=with_room(SHARDED, model), dist_init_required=False)[0]
    engine.eval()  # gives None back, unlike a module's
    return engine


def with_room(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The config with limits that follow the model's largest module. DeepSpeed's own gather 50 million elements ahead: many a teacher as a whole."""
    largest = max(sum(p.ds_numel for p in module.parameters(recurse=False)) for module in model.modules())
    room = {
        "stage3_prefetch_bucket_size": UNITS_AHEAD * largest,
        "stage3_max_live_parameters": (1 + UNITS_AHEAD) * largest,
    }
    return config | {"zero_optimization": config["zero_optimization"] | room}


def fill(model: nn.Module, folder: Path) -> None:
    """Every rank reads its own elements of each parameter: nothing crosses the network, nothing is whole anywhere."""
    places = tensor_locations(folder)
    for names, parameter in shared_parameters(model):
        name = next((name for name in names if name in places), None)
        if name is None:
            raise RuntimeError(f"{folder} holds no weights for {names[0]}")
        if tuple(places[name].shape) != tuple(parameter.ds_shape):
            raise RuntimeError(
                f"{name} has shape {tuple(places[name].shape)} in {folder}, the model wants {tuple(parameter.ds_shape)}"
            )
        assert parameter.ds_tensor.dtype == torch.float32, parameter.ds_tensor.dtype
        share = parameter.ds_tensor.ds_numel
        start = min(distributed.rank() * share, parameter.ds_numel)
        stop = min(start + share, parameter.ds_numel)
        target = parameter.ds_tensor.data.view(-1)
        target.zero_()
        target[: stop - start].copy_(read_flat_range(places[name], start, stop))
    for name, buffer in model.named_buffers():
        if name in places:
            buffer.copy_(read_tensor(places[name]))


def shared_parameters(model: nn.Module) -> Iterator[tuple[list[str], Any]]:
    """Each parameter once, with all the names it goes by (a tied head is the embedding under another name)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in model.parameters():
        yield names[id(parameter)], parameter
