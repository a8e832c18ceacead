"""Which matrices of a model are quantized: the linears of its body unless patterns say otherwise, and its embeddings by a setting of their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from distill_system.errors import Problem, Refusal
from distill_system.models.anatomy import UnknownAnatomy
from distill_system.models.parts import input_axis, is_matrix, matrices, stored_shape
from distill_system.patterns import idle_patterns, matches
from distill_system.quantization.base import Moment, Quantizer
from distill_system.quantization.swap import Site, swap


@dataclass(frozen=True)
class Target:
    """One matrix that is to be quantized, and by what."""

    weight: str  # name of the parameter
    module: str
    kind: str  # "linear" or "embedding"
    shape: tuple[int, int]  # as it is stored
    input_axis: int
    quantizer: Quantizer
    sharers: tuple[str, ...] = ()  # linears that use the same weight (an output layer that is tied to the embedding)

    @property
    def matrix(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.shape if self.input_axis == 1 else (self.shape[1], self.shape[0])


def targets_of(
    model: nn.Module,
    quantizer: Quantizer,
    embeddings: Quantizer | None,
    include: Sequence[str],
    exclude: Sequence[str],
    key: str,
) -> list[Target]:
    """What is quantized, in the model's order; works on a model without memory as well.

    Args:
        model: of transformers.
        quantizer: of the linears.
        embeddings: of the embeddings; None: they stay as they are.
        include: patterns of parameter names among all linears; empty: the linears of the body, not the head of the task.
        exclude: patterns of parameter names that stay as they are.
        key: of the phase, for refusals.

    Raises:
        Refusal: a pattern matches nothing, nothing is left, or groups don't divide rows.
    """
    modules = dict(model.named_modules())
    everything = [
        (f"{name}.weight", name) for name, module in modules.items() if is_matrix(module) and not _is_tied(model, name)
    ]
    if include:
        candidates = everything
    else:
        try:
            candidates = [(weight, module) for weight, module, _ in matrices(model)]
        except UnknownAnatomy as error:
            raise Refusal(
                [Problem(f"{key}.include", f"is empty, and the model {error}; name linears, such as ['*']")]
            ) from error
    tables = [(f"{name}.weight", name) for name, module in modules.items() if isinstance(module, nn.Embedding)]
    names = [weight for weight, _ in candidates] + ([weight for weight, _ in tables] if embeddings else [])
    if problems := idle_patterns(names, include, exclude, key):
        raise Refusal(problems)
    found = [
        Target(weight, name, "linear", stored_shape(modules[name]), input_axis(modules[name]), quantizer)
        for weight, name in candidates
        if matches(weight, include or ["*"]) and not matches(weight, exclude)
    ]
    if not found:
        raise Refusal([Problem(f"{key}.include", "and exclude together leave nothing to quantize")])
    if embeddings is not None:
        for weight, name in tables:
            table = cast(nn.Embedding, modules[name])
            if not matches(weight, exclude):
                shape = (table.num_embeddings, table.embedding_dim)
                found.append(Target(weight, name, "embedding", shape, 1, embeddings, tuple(_sharers(model, name))))
    _check_groups(found, key)
    return found


def _check_groups(found: Sequence[Target], key: str) -> None:
    for kind, setting in (("linear", "quantizer.group_size"), ("embedding", "embeddings.group_size")):
        for target in found:
            if target.kind != kind:
                continue
            try:
                target.quantizer.granularity.shape(*target.matrix)
            except ValueError as error:
                text = f"is {target.quantizer.granularity.size}, which {error}, as {target.weight} has"
                raise Refusal([Problem(f"{key}.{setting}", text)]) from error


def prepare(model: nn.Module, targets: Sequence[Target], moment: Moment, activations: Any = None) -> None:
    """Swaps the modules of `targets`; linears quantize their inputs too where there are `activations`."""
    if activations is not None:
        activations.follow(model)
    for number, target in enumerate(targets):
        module = model.get_submodule(target.module)
        inputs = activations if target.kind == "linear" else None
        swap(module, Site(target.quantizer, moment, number, target.input_axis, inputs))
        if inputs is not None:
            inputs.prepare(module)
        for name in target.sharers:
            swap(model.get_submodule(name), Site(target.quantizer, moment, number, 1))


def _sharers(model: nn.Module, name: str) -> Iterator[str]:
    """Linears whose weight is the table of an embedding."""
    table = cast(Tensor, model.get_submodule(name).weight)
    yield from (other for other, module in model.named_modules() if is_matrix(module) and module.weight is table)


def _is_tied(model: nn.Module, name: str) -> bool:
    weight = model.get_submodule(name).weight
    return sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1
