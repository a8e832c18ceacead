"""Every quantizer in every form that it has, and weights to try it on."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from distill_system.quantization.base import Draw, Given, Moment
from distill_system.quantization.binary import BinaryConstants, DeterministicBinary
from distill_system.quantization.kbit import Kbit
from distill_system.quantization.loss_aware import LossAware
from distill_system.quantization.ternary import BernoulliTernary, TernaryConnect
from distill_system.quantization.trained_ternary import TrainedTernary

CLASSES = {
    "deterministic_binary": DeterministicBinary,
    "binary_constants": BinaryConstants,
    "ternary_connect": TernaryConnect,
    "bernoulli_ternary": BernoulliTernary,
    "trained_ternary": TrainedTernary,
    "kbit": Kbit,
    "loss_aware": LossAware,
}
FORMS: dict[str, list[dict[str, Any]]] = {
    "deterministic_binary": [{}, {"scaled": False}, {"clip": None}],
    "binary_constants": [{}, {"assign": "sign", "clip": None}, {"gap": 2.0}],
    "ternary_connect": [{}, {"scale": "max", "threshold_negative": 0.3}, {"scale": "none"}],
    "bernoulli_ternary": [{}, {"scale": "max"}, {"evaluation": "best_of", "draws": 3}],
    "trained_ternary": [{}, {"learn_threshold": True}],
    "kbit": [
        {},
        {"bits": 8},
        {"bits": 2, "symmetric": False},
        {"bits": 3, "range": "weights"},
        {"bits": 4, "range": "weights", "symmetric": False},
        {"bits": 2, "schedule": [8, 2], "schedule_until": 0.4},
    ],
    "loss_aware": [{}, {"states": "binary"}, {"states": "kbit", "bits": 5, "clip": None}],
}
CASES = [(name, form) for name, forms in FORMS.items() for form in forms]
IDS = ["-".join([name, *(f"{key}={value}" for key, value in form.items())]) for name, form in CASES]
NOW, DRAW = Moment(), Draw(seed=1, step=2, number=3, training=True)


def make(name: str, **settings: Any) -> Any:
    return CLASSES[name](**settings)


def matrices() -> st.SearchStrategy[Tensor]:
    """Float32 `[G, N]`, also of one row or one column, with zeros, rows of zeros, and values that are equal."""

    def build(shape: tuple[int, int], seed: int, zeros: float, coarse: bool, magnitude: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        weight_GN = torch.randn(shape, generator=generator) * magnitude
        weight_GN *= torch.rand(shape, generator=generator) >= zeros
        weight_GN[torch.rand(shape[0], generator=generator) < zeros / 2] = 0
        return (weight_GN / magnitude * 2).round() * magnitude if coarse else weight_GN

    return st.builds(
        build,
        st.tuples(st.integers(1, 5), st.integers(1, 12)),
        st.integers(0, 2**31),
        st.sampled_from([0.0, 0.3, 0.9]),
        st.booleans(),
        st.sampled_from([1e-20, 1e-3, 0.05, 1.0, 1e6]),
    )


def moved(quantizer: Any, given: Given, seed: int, by: float) -> dict[str, Tensor]:
    """A quantizer's tensors as training might have left them: trained ones also crossed and of the wrong sign, fitted ones never below 0."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: t * (1 + by * torch.randn(t.shape, generator=generator)).to(t.dtype) for name, t in given.items()}
    return {name: tensor if name in quantizer.trained else tensor.abs() for name, tensor in found.items()}


def row(*values: float) -> Tensor:
    return torch.tensor([values])
