"""Layers of K models in one: rows of the batch are those of member 0, then of member 1, ..., and each layer's weights are stacked.

Whatever holds no weights (attention, masks, activations) then sees a larger batch and needs no change; only layers with weights have to know where one
member's rows end. Unlike under `torch.vmap`, nothing is intercepted: each operation costs what it costs in a single model, and torch.compile sees plain
batched products that may change their length.

Shapes: K members, B samples, N rows of a member times positions, I width in, O width out, D width, V words; `...` any positions.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class CantBatch(ValueError):
    """Why these members can't run as one; reads on after "because"."""


class Folded(nn.Module):
    """A layer of K members. Its parameters have the names they have in a member, and hold nothing: `functional_call` brings them, stacked `[K, ...]`.

    Args:
        layer: of one member.
        members: K.
    """

    rows: Tensor  # [B]: its length is the number of samples

    def __init__(self, layer: nn.Module, members: int) -> None:
        super().__init__()
        self.members = members
        self.register_buffer("rows", torch.empty(1), persistent=False)
        for name, parameter in layer.named_parameters(recurse=False):
            self.register_parameter(name, empty(parameter))

    def apart(self, x: Tensor) -> Tensor:
        """`[K, N, D]` of `[K B, ..., D]`."""
        return x.reshape(self.members, -1, x.shape[-1])


class Product(Folded):
    """`nn.Linear`, and transformers' Conv1D, whose weight lies the other way round."""

    def __init__(self, layer: nn.Module, members: int) -> None:
        super().__init__(layer, members)
        self.turned = isinstance(layer, nn.Linear)
        if not hasattr(self, "bias"):
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        weight_KIO = self.weight.mT if self.turned else self.weight
        x_KNI = self.apart(x)
        if self.bias is None:
            y_KNO = torch.bmm(x_KNI, weight_KIO)
        else:
            y_KNO = torch.baddbmm(self.bias.unsqueeze(1), x_KNI, weight_KIO)
        return y_KNO.view(*x.shape[:-1], y_KNO.shape[-1])


class Norm(Folded):
    """`nn.LayerNorm`."""

    def __init__(self, layer: nn.LayerNorm, members: int) -> None:
        super().__init__(layer, members)
        self.shape, self.eps = layer.normalized_shape, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        y_KND = self.apart(functional.layer_norm(x, self.shape, None, None, self.eps))
        return torch.addcmul(self.bias.unsqueeze(1), y_KND, self.weight.unsqueeze(1)).view(x.shape)


class RootNorm(Folded):
    """The RMS norm of any family: each works on the last dimension and has one weight, whatever it does with it."""

    def __init__(self, layer: nn.Module, members: int) -> None:
        super().__init__(layer, members)
        self.__dict__["layer"] = layer  # not as a module: its parameter is ours

    def forward(self, x: Tensor) -> Tensor:
        given = {"weight": self.weight.unsqueeze(1)}
        return torch.func.functional_call(self.layer, given, (self.apart(x),)).view(x.shape)


class Table(Folded):
    """`nn.Embedding`: one table of all members, of which each reads its own part. Positions `[1, T]` that all samples share are each member's own."""

    def __init__(self, layer: nn.Embedding, members: int) -> None:
        super().__init__(layer, members)
        self.words, self.padding = layer.num_embeddings, layer.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        shared = ids.shape[0] == 1  # K B samples are two at least
        ids_KN = ids.expand(self.members, *ids.shape[1:]) if shared else ids.reshape(self.members, -1)
        first_K1 = torch.arange(0, self.members * self.words, self.words, device=ids.device).unsqueeze(1)
        found_KND = functional.embedding(ids_KN + first_K1, self.weight.flatten(0, 1))
        if self.padding is not None:  # the padding's vector isn't trained
            found_KND = torch.where((ids_KN == self.padding).unsqueeze(-1), found_KND.detach(), found_KND)
        if not shared:
            return found_KND.view(*ids.shape, found_KND.shape[-1])
        return found_KND.repeat_interleave(self.rows.shape[0], dim=0)


class Filter(Folded):
    """`nn.Conv2d`, member by member: pictures are large enough for that."""

    def __init__(self, layer: nn.Conv2d, members: int) -> None:
        super().__init__(layer, members)
        if layer.padding_mode != "zeros":
            raise CantBatch(f"a convolution pads with {layer.padding_mode}")
        self.settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        if not hasattr(self, "bias"):
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        biases = [None] * self.members if self.bias is None else self.bias.unbind()
        parts = zip(x.chunk(self.members), self.weight.unbind(), biases, strict=True)
        return torch.cat([functional.conv2d(own, weight, bias, *self.settings) for own, weight, bias in parts])


def empty(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def folded_of(layer: nn.Module) -> type[Folded] | None:
    """What stands for a layer with weights, or None where nothing is known."""
    kind = type(layer)
    if kind is nn.Linear or kind.__name__ == "Conv1D":
        return Product
    if kind is nn.LayerNorm and layer.weight is not None and layer.bias is not None:
        return Norm
    if kind is nn.Embedding and layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse:
        return Table
    if kind is nn.Conv2d:
        return Filter
    if kind.__name__.endswith("RMSNorm") and [name for name, _ in layer.named_parameters()] == ["weight"]:
        return RootNorm
    return None


def fold(model: nn.Module, members: int) -> tuple[nn.Module, list[str], list[str]]:
    """A model of `members` models like this one, without weights.

    Returns:
        The model; names of its layers; names of the parameters outside of them, which are given once for each sample (`[K B, ...]` of `[1, ...]`).

    Raises:
        CantBatch: it has a layer that isn't known.
    """
    memo: dict[int, Any] = {id(parameter): empty(parameter) for parameter in model.parameters()}
    layers = []
    loose = []
    for name, layer in model.named_modules():
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        kind = folded_of(layer)
        if kind is not None:
            layers.append((name, kind))
            continue
        for own, parameter in layer.named_parameters(recurse=False):
            if parameter.shape[0] != 1:
                raise CantBatch(f"{type(layer).__name__} holds weights that only it knows how to use")
            loose.append(f"{name}.{own}" if name else own)
    template = copy.deepcopy(model, memo)
    for name, kind in layers:
        if not name:
            raise CantBatch(f"{type(model).__name__} is a single layer")
        template.set_submodule(name, kind(template.get_submodule(name), members))
    return template.train(), [name for name, _ in layers], loose
