"""Quantizers that can be worked out by hand."""

import torch

from distill_system.models.grid import Granularity, Grid


def decoded(quantizer, weight_GN, given, moment, draw):
    """What `quantize` must equal to the bit."""
    code_GN, grid = quantizer.encode(weight_GN, given, moment, draw)
    return grid.decode(code_GN)


class Signs:
    """Value = factor * sign(w), with the factor trained: codes 0, 1, 2."""

    scale_lr, has_zero, curvature = 1.0, True, False
    names = trained = ("factor",)

    def __init__(self, kind="row", size=2):
        self.granularity = Granularity(kind, size)

    def levels(self, progress):
        return 3

    def initial(self, weight_GN):
        return {"factor": torch.full((weight_GN.shape[0], 1), 0.5, dtype=weight_GN.dtype)}

    def encode(self, weight_GN, given, moment, draw):
        code_GN = (weight_GN.sign() + 1).to(torch.uint8)
        return code_GN, Grid(3, scale_G1=given["factor"], zero_G1=torch.ones(1, 1, dtype=weight_GN.dtype))

    def quantize(self, weight_GN, given, moment, draw):
        return decoded(self, weight_GN, given, moment, draw)

    def gradients(self, upstream_GN, weight_GN, given, moment, draw):
        return 2 * upstream_GN, {"factor": (upstream_GN * weight_GN.sign()).sum(1, keepdim=True)}


class Halves(Signs):
    """Nothing kept: rounds to halves."""

    names = trained = ()

    def initial(self, weight_GN):
        return {}

    def encode(self, weight_GN, given, moment, draw):
        code_GN = (weight_GN * 2).round().clamp(-4, 4).add(4).to(torch.uint8)
        return code_GN, Grid(9, torch.full((1, 1), 0.5), torch.full((1, 1), 4.0))
