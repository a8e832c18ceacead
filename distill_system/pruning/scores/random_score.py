"""Random: a weight is worth a number drawn for it; the control that every other score has to beat."""

import hashlib
from typing import ClassVar

import torch
from torch import Tensor

from distill_system.pruning.base import Run
from distill_system.pruning.scores.base import Score

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(start: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Outputs `offset` ... `offset + count - 1` of the SplitMix64 generator whose state begins at `start`, `[count]` int64 (the bits of uint64).

    Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195: the state grows by a constant, so any output is found without those before it.

    >>> splitmix64(0, 0, 1).item() == 0xE220A8397B1DCDAF - (1 << 64)
    True
    """
    first, second = _signed(FIRST), _signed(SECOND)
    z_n = torch.arange(offset + 1, offset + 1 + count, device=device).mul_(_signed(GOLDEN)).add_(_signed(start))
    z_n.bitwise_xor_(_shifted(z_n, 30)).mul_(first)
    z_n.bitwise_xor_(_shifted(z_n, 27)).mul_(second)
    return z_n.bitwise_xor_(_shifted(z_n, 31))


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(z_n: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift brings in the sign."""
    return (z_n >> bits).bitwise_and_((1 << (64 - bits)) - 1)


class Random(Score):
    """Uniform numbers in [0, 1): a hash of the run's seed, the round, the matrix's name and the element's place in it, on whatever rank that lies."""

    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")
    watches: ClassVar[str] = ""

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{self.round}/{run.name}".encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "little")
        bits_n = splitmix64(start, run.offset, run.values_n.numel(), run.values_n.device)
        return _shifted(bits_n, 40).to(torch.float32).mul_(2.0**-24)  # as many bits as a float32 holds
