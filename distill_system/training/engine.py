"""Engines: how the objective is trained on these ranks. This one is plain PyTorch, alone or under DDP; `zero.py` has DeepSpeed's.

Every engine answers the same six calls, and shows its state as *pieces* by parameter name. Checkpoints read and write pieces, so that a file
written by any engine on any number of ranks can be read by any other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill_system import distributed
from distill_system.settings import Training
from distill_system.signals import Signals
from distill_system.training.objective import Batch, Objective
from distill_system.training.optim import empty_state, make_optimizer, parameter_groups

Heard = Mapping[str, Signals] | None  # what teachers said of a batch, by name
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Piece:
    """A run of consecutive elements of one flattened tensor of the state that this rank can read and write in place."""

    name: str  # of the parameter or buffer, as `Objective.named_parameters` has it
    part: str  # WEIGHT or one of MOMENTS
    offset: int  # of the first element in the whole flattened tensor
    values: Tensor  # 1-D view
    replicated: bool  # the other ranks hold the same: one of them is enough to save


class Engine(Protocol):
    objective: Objective

    def forward(self, batch: Batch, teachers: Heard, scale_L: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        """The objective's (loss, sums); `last` marks the last micro-batch of an optimizer step, here and in `backward`."""

    def evaluate(self, batch: Batch, role: str | None = None) -> Tensor:
        """A role's logits (the only one's, if None)."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds gradients."""

    def step(self, lr: float) -> Tensor:
        """Updates with gradients that are clipped for each role apart; returns the norms `[R]`, one for each role of the objective's `role_names`
        (0 for one that lives elsewhere). A norm that isn't finite leaves all weights as they are.
        """

    def pieces(self) -> Iterator[Piece]: ...

    def shares(self, names: Iterable[str]) -> Iterator[Piece]:
        """This rank's runs of the named parameters, as the forward sees them: disjoint over the ranks that share a batch, all of them together everything."""

    def gradients(self, names: Iterable[str]) -> Iterator[Piece]:
        """The same runs of the averaged gradients, after the last backward of a step and before `step`; nothing of a parameter that got none."""

    def spread_frozen(self) -> None:
        """After pieces of frozen parameters were written: brings what is derived from them in line."""

    def scalars(self) -> dict[str, float]:
        """Numbers beside the pieces that belong to the state: AdamW's number of updates (a skipped step is none), the loss scale."""

    def restore(self, scalars: Mapping[str, float]) -> None:
        """After every piece has been written: takes the scalars back, and brings what is derived from the pieces in line."""

    def whole_weights(self, role: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of a role by its own names, whole, on the CPU of the lead rank (empty elsewhere)."""


class PlainEngine:
    """One rank, or several under DistributedDataParallel."""

    def __init__(self, objective: Objective, training: Training, device: torch.device) -> None:
        self.objective = objective.to(device)
        self.training = training
        self.parallel = distributed.data_world() > 1
        trainable = any(p.requires_grad for p in objective.parameters())
        ids = [device.index] if device.type == "cuda" else None
        self.module: nn.Module = (
            DistributedDataParallel(objective, device_ids=ids, process_group=distributed.data_group())
            if self.parallel and trainable
            else objective
        )
        groups = parameter_groups(objective, training.weight_decay, objective.role_of)
        self.optimizer = make_optimizer(groups, training)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters_of = by_role(self.optimizer.param_groups)
        self.scaler = torch.amp.GradScaler(device.type) if training.precision == "fp16" else None

    def forward(self, batch: Batch, teachers: Heard, scale_L: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        if self.parallel:  # as DDP's no_sync() does; its forward decides what its backward will do
            self.module.require_backward_grad_sync = last
        return self.module(batch, teachers, scale_L)

    def evaluate(self, batch: Batch, role: str | None = None) -> Tensor:
        return self.objective(batch, role=role)  # not through DDP: nothing is to be synchronised

    def backward(self, loss: Tensor, *, last: bool) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(self, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norms = {}
        for role, parameters in self.parameters_of.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = norms[role] = torch.nn.utils.get_total_norm(gradients)
            if self.training.clip > 0:
                torch._foreach_mul_(gradients, torch.clamp(self.training.clip / (norm + 1e-6), max=1.0))
        norm_R = in_order(norms, self.objective.role_names)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # Read by the fused kernel on the device: a bad step is skipped without the host ever waiting for the norm.
            self.optimizer.found_inf = (~torch.isfinite(norm_R).all()).to(torch.float32)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm_R

    def pieces(self) -> Iterator[Piece]:
        for name, tensor in named_state(self.objective):
            yield Piece(name, WEIGHT, 0, tensor.detach().view(-1), replicated=True)
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                state = empty_state(self.optimizer, tensor)
                for part in MOMENTS:
                    yield Piece(name, part, 0, state[part].view(-1), replicated=True)

    def shares(self, names: Iterable[str]) -> Iterator[Piece]:
        for name in names:
            yield own_run(name, self.objective.get_parameter(name).detach())

    def gradients(self, names: Iterable[str]) -> Iterator[Piece]:
        scale = self.scaler.get_scale() if self.scaler else 1.0
        for name in names:
            gradient = self.objective.get_parameter(name).grad
            if gradient is not None:
                piece = own_run(name, gradient)
                yield piece if scale == 1.0 else replace(piece, values=piece.values / scale)

    def spread_frozen(self) -> None:
        """Every rank has written all of them."""

    def scalars(self) -> dict[str, float]:
        updates = {"updates": empty_state(self.optimizer, self.parameters[0])["step"].item()}
        if self.scaler is None:
            return updates
        return updates | {"loss_scale": self.scaler.get_scale(), "good_steps": self.scaler._get_growth_tracker()}

    def restore(self, scalars: Mapping[str, float]) -> None:
        for parameter in self.parameters:
            empty_state(self.optimizer, parameter)["step"].fill_(scalars["updates"])
        if self.scaler and "loss_scale" in scalars:
            tracker = {"_growth_tracker": int(scalars.get("good_steps", 0))}
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scalars["loss_scale"]} | tracker)

    def whole_weights(self, role: str | None = None) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named_state(role_module(self.objective, role)):
            yield name, tensor.detach().cpu()


def own_run(name: str, tensor: Tensor) -> Piece:
    """This rank's share of a tensor that every rank holds whole."""
    length = -(-tensor.numel() // distributed.data_world())
    start = min(distributed.data_rank() * length, tensor.numel())
    return Piece(name, WEIGHT, start, tensor.reshape(-1)[start : start + length], replicated=False)


def role_module(objective: Objective, role: str | None) -> nn.Module:
    return objective.student if role is None else objective.roles[role]


def by_role(groups: Iterable[dict[str, Any]]) -> dict[str, list[Tensor]]:
    """Parameters of an optimizer's groups, by the role that they belong to."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        found.setdefault(group["role"], []).extend(group["params"])
    return found


def in_order(norms: Mapping[str, Tensor], roles: Iterable[str]) -> Tensor:
    """Norms `[R]` in the order of all roles; 0 for a role that has none here."""
    some = next(iter(norms.values()))
    return torch.stack([norms[role] if role in norms else torch.zeros_like(some) for role in roles])


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, each once however often it is shared, and the buffers that `state_dict` keeps."""
    yield from module.named_parameters()
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)
