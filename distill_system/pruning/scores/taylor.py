"""Taylor: a weight is worth what the loss would change without it, to first order."""

from typing import ClassVar

import torch
from torch import Tensor

from distill_system.pruning.base import Run
from distill_system.pruning.scores.base import Score


def taylor(values_n: Tensor, gradient_n: Tensor) -> Tensor:
    """|w g| with g = dL/dw: the size of the loss's change if w becomes 0, to first order.

    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, equation 8, is its square; the absolute value, as in Molchanov et al. 2017
    (https://arxiv.org/abs/1611.06440, equation 8), gives single weights the same order.
    Differs from the papers in: summed over steps of training, with the gradient of a whole batch; a unit gets the mean over its weights instead of
    the square of their sum, so that changes of opposite sign don't cancel.
    """
    return (values_n.to(torch.float32) * gradient_n.to(torch.float32)).abs_()


class Taylor(Score):
    """First-order effects on the loss (`taylor`), summed over steps."""

    suits: ClassVar[tuple[str, ...]] = ("weights", "blocks", "neurons", "heads")
    watches: ClassVar[str] = "gradients"

    def of_elements(self, run: Run, seen: Tensor | None) -> Tensor:
        assert seen is not None
        return seen.to(torch.float32)

    def accumulate(self, seen_n: Tensor, values_n: Tensor, gradient_n: Tensor) -> None:
        seen_n += taylor(values_n, gradient_n)
