"""Hints: the student's hidden states follow the teacher's, layer by layer, through a learned projector where the widths differ.

Shapes: B samples, T tokens (patches or places in a picture), D width.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_system.errors import refuse
from distill_system.files import digest_value
from distill_system.losses.base import Loss
from distill_system.losses.layers import Pairs, choose_pairs
from distill_system.losses.rows import aligned, count_rows, kept, mean_of_tokens, real_tokens, same_length
from distill_system.schema import Index, NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets


def hint(
    student_BTD: Tensor, teacher_BTD: Tensor, tokens_BT: Tensor, measure: str = "mse", normalise: bool = False
) -> Tensor:
    """Mean over a row's tokens of |s - t|^2 / D, or of 1 - cos(s, t).

    Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550, equation 3; for transformers Sun et al. 2019 (Patient KD),
    https://arxiv.org/abs/1908.09355, which compares normalised states (here by a layer norm, `normalise=True`); cosine as in Sanh et al. 2019
    (DistilBERT), https://arxiv.org/abs/1910.01108.
    Differs from the papers in: trained together with the other losses instead of in a stage before them, all tokens instead of the first, a linear
    projector without bias, and means over width and tokens where FitNets sums, so that a weight keeps its meaning when sizes change.

    Args:
        student_BTD: hidden states, projected to the teacher's width.
        teacher_BTD: never receives a gradient.
        tokens_BT: bool, real tokens of real rows.
        measure: `mse` or `cosine`.
        normalise: subtract each token's mean and divide by its deviation (a layer norm without weights) on both sides first.

    Returns:
        `[B]`, 0 for a row without real tokens.
    """
    student_BTD, teacher_BTD = kept(student_BTD, tokens_BT), kept(teacher_BTD.detach(), tokens_BT)
    if normalise:
        width = student_BTD.shape[-1:]
        student_BTD, teacher_BTD = F.layer_norm(student_BTD, width), F.layer_norm(teacher_BTD, width)
    if measure == "cosine":
        loss_BT = 1 - F.cosine_similarity(student_BTD, teacher_BTD, dim=-1)
    else:
        loss_BT = (student_BTD - teacher_BTD).square().mean(dim=-1)
    return mean_of_tokens(loss_BT, tokens_BT)


class Hint(Loss):
    """Hints between hidden states (`hint`), the mean over pairs of layers.

    Args:
        layers: `auto`: each layer of the student hears the teacher's at the same relative depth; `last`: only the last hears the last; or pairs
            [student's layer, teacher's layer], counted from 0.
        measure: mean squared error, or cosine distance.
        normalise: compare states without their mean and scale.
        projector: a learned linear map from the student's to the teacher's width for each pair: `auto` where widths differ, `always`, or `never`.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("hidden",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        layers: Literal["auto", "last"] | list[list[Index]] = "auto",
        measure: Literal["mse", "cosine"] = "mse",
        normalise: bool = False,
        projector: Literal["auto", "always", "never"] = "auto",
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.layers = layers
        self.measure = measure
        self.normalise = normalise
        self.projector = projector
        self.pairs: Pairs | None = None
        self.projectors = nn.ModuleDict()  # by "student's layer-teacher's layer"

    def bind(self, student: Signals, teacher: Signals, *, key: str, seed: int) -> dict[str, Any]:
        assert student.hidden is not None
        assert teacher.hidden is not None
        self.pairs = choose_pairs(
            self.layers, len(student.hidden) - 1, len(teacher.hidden) - 1, f"{key}.layers", self.survivors
        )
        self.projectors = nn.ModuleDict()
        for i, j in self.pairs:
            student_BTD, teacher_BTD = aligned(student.hidden[i + 1], teacher.hidden[j + 1])
            same_length(student_BTD, teacher_BTD, key)
            narrow, wide = student_BTD.shape[-1], teacher_BTD.shape[-1]
            if self.projector == "never" and narrow != wide:
                raise refuse(
                    f"{key}.projector",
                    f"is never, but the student's layer {i} is {narrow} wide and the teacher's layer {j} {wide}; take projector=auto",
                )
            if self.projector == "always" or narrow != wide:
                self.projectors[_name(i, j)] = _linear(narrow, wide, seed=[seed, i, j]).to(student_BTD.device)
        return {"pairs": [list(pair) for pair in self.pairs], "projectors": len(self.projectors)}

    def count(self, targets: Targets) -> Tensor:
        return count_rows(targets)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        assert student.hidden is not None
        assert teacher.hidden is not None
        assert self.pairs is not None, "bind comes first"
        losses_B = []
        for i, j in self.pairs:
            student_BTD, teacher_BTD = aligned(student.hidden[i + 1], teacher.hidden[j + 1])
            tokens_BT = real_tokens(targets, student_BTD.shape[1])
            if _name(i, j) in self.projectors:
                projector = self.projectors[_name(i, j)]
                # Masked before it: a NaN in padding would reach the projector's gradient.
                student_BTD = projector(kept(student_BTD, tokens_BT).to(projector.weight.dtype))
            losses_B.append(hint(student_BTD, teacher_BTD, tokens_BT, self.measure, self.normalise))
        return targets.total_of_rows(torch.stack(losses_B).mean(dim=0)), self.count(targets)


def _name(student_layer: int, teacher_layer: int) -> str:
    return f"{student_layer}-{teacher_layer}"


def _linear(narrow: int, wide: int, seed: list[int]) -> nn.Linear:
    """A linear map whose weights depend on the seed alone, neither drawing from nor advancing the global generator."""
    linear = nn.utils.skip_init(nn.Linear, narrow, wide, bias=False)
    generator = torch.Generator().manual_seed(int(digest_value(seed)[:8], 16))
    with torch.no_grad():
        linear.weight.uniform_(-(narrow**-0.5), narrow**-0.5, generator=generator)
    return linear
