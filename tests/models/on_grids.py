"""Small models whose weights lie on grids, made by hand: no quantizer is needed, so what reads and packs them is tested alone."""

from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from distill_system.export.dense import save_model
from distill_system.models.grid import Granularity, Grid, OnGrid, grouped, ungrouped
from distill_system.models.grids_file import write_grids

HEADS = ("classifier", "score", "lm_head", "predictions.decoder")


def nearest(weight_GN: torch.Tensor, count: int, levels: bool = False) -> Grid:
    """A grid with as many values as `count`: evenly spaced around a code, or told one by one."""
    scale_G1 = (weight_GN.abs().amax(1, keepdim=True) / max(1, (count - 1) / 2)).clamp(min=1e-6)
    if levels:
        steps = torch.tensor([-1.0, 0.7] if count == 2 else [-1.3, 0.0, 0.6])
        return Grid(count, levels_GL=scale_G1 * steps)
    zero = torch.full((1, 1), 0.5) if count == 2 else (count / 2 + scale_G1 * 0).floor()
    return Grid(count, scale_G1, zero)


def put(weight: torch.Tensor, on: OnGrid, code_GN: torch.Tensor) -> None:
    """Gives a stored matrix the values of codes."""
    weight.data.copy_(ungrouped(on.grid.decode(code_GN), weight.shape, on.input_axis))


def quantize(
    model: nn.Module, body: int = 3, tables: int | None = 16, granularity: Granularity | None = None, **more
) -> dict[str, OnGrid]:
    """Puts the linears of a model's body, and its tables, on grids of so many levels; returns the grids."""
    grids = {}
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding)
        if (table and tables is None) or (not table and not isinstance(module, nn.Linear | Conv1D)):
            continue
        if not table and any(word in name for word in HEADS):
            continue
        axis = 0 if isinstance(module, Conv1D) else 1
        chosen = granularity or Granularity("row")
        weight_GN = grouped(module.weight.detach(), chosen, axis)
        grid = nearest(weight_GN, tables if table else body, **({} if table else more))
        code_GN = torch.randint(0, grid.count, weight_GN.shape, generator=torch.Generator().manual_seed(len(grids)))
        grids[f"{name}.weight"] = on = OnGrid(grid, chosen, axis)
        put(module.weight, on, code_GN.to(torch.uint8))
    return grids


def folder(path: Path, model: nn.Module, tokenizer=None, **how) -> dict[str, OnGrid]:
    """A quantized model's plain folder, with its grids."""
    grids = quantize(model, **how)
    save_model(path, model, tokenizer)
    write_grids(path, grids)
    return grids


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def attempt(read, folder):
    """What is read, or the words in which it is refused; another error is none of these."""
    try:
        return read(folder)
    except ValueError as error:
        return str(error)
