"""Members of one architecture as one model: their parameters side by side, one forward of all.

A tiny model's step is mostly the dispatch of small kernels, which K members otherwise pay K times. Each member keeps its own parameters, names,
optimizer groups and checkpoints: they are stacked inside the forward, and the gradient of the stack is dealt out to them. Not by `torch.vmap`: each
operation costs several times as much under it, and in torch 2.13 its linear layer refuses torch.compile's lengths that may change.

Shapes: K members, B samples, C classes or words, L terms, G of them in a group; `...` is B or B, T.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_system.models.common import DROPOUT, RANDOM_DEPTH
from distill_system.training.emit import Batch, model_inputs
from distill_system.training.folded import CantBatch, fold

OF_ONE_MODEL = ("_name_or_path", "transformers_version")  # entries of a config that tell nothing of the architecture


class Stack(torch.autograd.Function):
    """Tensors of K members side by side. Unlike `torch.stack`, one node for all of them, and a parameter that no output depends on gets no gradient
    (and hence no weight decay), as in the members' own forward.
    """

    @staticmethod
    def forward(ctx: Any, members: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.members = members
        each = len(tensors) // members
        return tuple(torch.stack(tensors[number::each]) for number in range(each))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        rows = [[None] * ctx.members if one is None else one.unbind() for one in gradients]
        return (None, *(own[member] for member in range(ctx.members) for own in rows))


class Batched:
    """Logits of all members for a batch, in one forward.

    Args:
        members: by name, two at least, of one architecture.
        task: of the data.
        compiled: whether the forward goes through torch.compile.

    Raises:
        CantBatch: they differ in more than their weights, or draw random numbers.
    """

    def __init__(self, members: Mapping[str, nn.Module], task: str, *, compiled: bool = False) -> None:
        reason = obstacle(members)
        if reason:
            raise CantBatch(reason)
        models = list(members.values())
        self.names, self.task = list(members), task
        self.template, layers, self.loose = fold(models[0], len(models))
        self.rows = [f"{name}.rows" for name in layers]
        tables = [dict(model.named_parameters(remove_duplicate=False)) for model in models]
        own = [name for name, _ in models[0].named_parameters()]
        self.trained = [name for name in own if tables[0][name].requires_grad]
        self.fixed = [name for name in own if not tables[0][name].requires_grad]
        place = {id(tables[0][name]): name for name in own}
        self.aliases = {name: place[id(p)] for name, p in tables[0].items()}  # tied weights have several names
        self._trained = [table[name] for table in tables for name in self.trained]
        self._fixed = [table[name] for table in tables for name in self.fixed]
        self._run = torch.compile(self._together, dynamic=True) if compiled else self._together

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[..., C]` of each member."""
        logits_K = self._run(self._stacked(), model_inputs(self.template, batch))
        return dict(zip(self.names, logits_K.unbind(), strict=True))

    def _stacked(self) -> dict[str, Tensor]:
        stacked = dict(zip(self.trained, Stack.apply(len(self.names), *self._trained), strict=True))
        if self.fixed:
            with torch.no_grad():
                stacked |= zip(self.fixed, Stack.apply(len(self.names), *self._fixed), strict=True)
        return stacked

    def _together(self, stacked: dict[str, Tensor], inputs: dict[str, Any]) -> Tensor:
        """Logits `[K, ..., C]`."""
        members = len(self.names)
        row_B = next(x.view(len(x), -1)[:, 0] for x in inputs.values() if isinstance(x, Tensor))
        given = {name: stacked[source] for name, source in self.aliases.items()}
        for name in self.loose:
            given[name] = given[name].flatten(0, 1).repeat_interleave(len(row_B), dim=0)
        given |= dict.fromkeys(self.rows, row_B)
        whole = {
            name: x.repeat(members, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) else x for name, x in inputs.items()
        }
        logits = torch.func.functional_call(self.template, given, (), whole, tie_weights=False).logits
        logits = logits[:, :-1] if self.task == "causal_lm" else logits
        return logits.reshape(members, len(row_B), *logits.shape[1:])


def obstacle(members: Mapping[str, nn.Module]) -> str | None:
    """What keeps members from running as one model, as far as their structure tells."""
    (name, first), *others = members.items()
    for other, model in others:
        if type(model) is not type(first) or architecture(model) != architecture(first):
            return f"{name} and {other} differ in architecture"
        if described(model) != described(first):
            return f"{name} and {other} differ in their parameters, or in which of them are frozen"
        if not _equal(dict(first.named_buffers()), dict(model.named_buffers())):
            return f"{name} and {other} differ in their buffers"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in first.modules()):
        return "a batch norm keeps running statistics"
    if draws_numbers(first):
        return (
            "dropout draws random numbers, and one model's draws aren't those of its members one by one; set dropout=0"
        )
    return None


def architecture(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    return {key: value for key, value in settings.items() if key not in OF_ONE_MODEL}


def described(model: nn.Module) -> list[tuple[Any, ...]]:
    """Every parameter's names, shape, type, and whether it is trained."""
    seen: dict[int, int] = {}
    return [
        (name, tuple(p.shape), p.dtype, p.requires_grad, seen.setdefault(id(p), len(seen)))
        for name, p in model.named_parameters(remove_duplicate=False)
    ]


def draws_numbers(model: nn.Module) -> bool:
    modules = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
    settings = {key: value for key, value in architecture(model).items() if DROPOUT.search(key) or key in RANDOM_DEPTH}
    # Of heads that this model hasn't, a config may name what it likes.
    unused = {key for key in settings if key.startswith("qa_") or (key.startswith(("seq_", "summary_")))}
    return modules or any(isinstance(v, int | float) and v > 0 for key, v in settings.items() if key not in unused)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
