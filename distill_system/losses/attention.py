"""Attention transfer: the student looks where the teacher looks.

Shapes: B samples, H heads, T tokens (queries, then keys).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from distill_system.errors import refuse
from distill_system.losses.base import Loss
from distill_system.losses.layers import Pairs, choose_pairs
from distill_system.losses.rows import count_rows, real_tokens, same_length
from distill_system.schema import Index, NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets

LEAST = 1e-12  # a probability below counts as this one in the divergence, which would be infinite at 0


def attention_transfer(
    student_BHTT: Tensor, teacher_BHTT: Tensor, tokens_BT: Tensor, measure: str = "mse", heads: str = "mean"
) -> Tensor:
    """Mean over pairs of real tokens of (S - T)^2, or mean over queries of KL(T || S), between attention maps S and T.

    Jiao et al. 2020 (TinyBERT), https://arxiv.org/abs/1909.10351, equation 7; KL as in Sun et al. 2020 (MobileBERT),
    https://arxiv.org/abs/2004.02984. The name is from Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928, whose maps are those
    of a CNN's activations: this is *not* their loss.
    Differs from the papers in: probabilities where TinyBERT takes scores before the softmax, and maps averaged over heads where both want equally
    many heads (`heads="each"`).

    Args:
        student_BHTT: probabilities, rows sum to 1 over real keys. In a causal model, keys in the future are 0 on both sides and add nothing.
        teacher_BHTT: never receives a gradient.
        tokens_BT: bool, real tokens of real rows.
        measure: `mse` or `kl`.
        heads: `mean`: compare maps averaged over heads; `each`: head by head.

    Returns:
        `[B]`, 0 for a row without real tokens.
    """
    pairs_B1TT = (tokens_BT[:, :, None] & tokens_BT[:, None, :]).unsqueeze(1)
    student_BHTT = torch.where(pairs_B1TT, _wide(student_BHTT), 0.0)
    teacher_BHTT = torch.where(pairs_B1TT, _wide(teacher_BHTT.detach()), 0.0)
    if heads == "mean":
        student_BHTT, teacher_BHTT = student_BHTT.mean(1, keepdim=True), teacher_BHTT.mean(1, keepdim=True)
    if measure == "kl":
        log_ratio_BHTT = teacher_BHTT.clamp(min=LEAST).log() - student_BHTT.clamp(min=LEAST).log()
        error_BHTT, number_B = teacher_BHTT * log_ratio_BHTT, tokens_BT.sum(dim=1)
    else:
        error_BHTT, number_B = (student_BHTT - teacher_BHTT).square(), tokens_BT.sum(dim=1).square()
    return error_BHTT.mean(dim=1).sum(dim=(1, 2)) / number_B.clamp(min=1)


def _wide(maps_BHTT: Tensor) -> Tensor:
    return maps_BHTT.to(torch.promote_types(maps_BHTT.dtype, torch.float32))


class AttentionTransfer(Loss):
    """Attention maps of the student follow the teacher's (`attention_transfer`), the mean over pairs of layers.

    Attention maps exist only in the plain (eager) kernel, which is slower and takes more memory.

    Args:
        layers: `auto`: each layer of the student hears the teacher's at the same relative depth; `last`: only the last hears the last; or pairs
            [student's layer, teacher's layer], counted from 0.
        measure: mean squared error, or KL from the teacher's map.
        heads: compare maps averaged over heads, or each head (both need equally many).
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("attention",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        layers: Literal["auto", "last"] | list[list[Index]] = "auto",
        measure: Literal["mse", "kl"] = "mse",
        heads: Literal["mean", "each"] = "mean",
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.layers = layers
        self.measure = measure
        self.heads = heads
        self.pairs: Pairs | None = None

    def bind(self, student: Signals, teacher: Signals, *, key: str, seed: int) -> dict[str, Any]:
        maps = {"student": student.attention, "teacher": teacher.attention}
        for who, own in maps.items():
            if not own:
                raise refuse(key, f"reads attention maps, and the {who} has none; take a hint instead")
        assert student.attention is not None
        assert teacher.attention is not None
        self.pairs = choose_pairs(
            self.layers, len(student.attention), len(teacher.attention), f"{key}.layers", self.survivors
        )
        for i, j in self.pairs:
            same_length(student.attention[i].transpose(1, 2), teacher.attention[j].transpose(1, 2), key)
            few, many = student.attention[i].shape[1], teacher.attention[j].shape[1]
            if self.heads == "each" and few != many:
                raise refuse(
                    f"{key}.heads",
                    f"is each, but the student's layer {i} has {few} heads and the teacher's layer {j} {many}; take heads=mean",
                )
        return {"pairs": [list(pair) for pair in self.pairs]}

    def count(self, targets: Targets) -> Tensor:
        return count_rows(targets)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        assert student.attention is not None
        assert teacher.attention is not None
        assert self.pairs is not None, "bind comes first"
        losses_B = []
        for i, j in self.pairs:
            student_BHTT, teacher_BHTT = student.attention[i], teacher.attention[j]
            tokens_BT = real_tokens(targets, student_BHTT.shape[-1])
            losses_B.append(attention_transfer(student_BHTT, teacher_BHTT, tokens_BT, self.measure, self.heads))
        return targets.total_of_rows(torch.stack(losses_B).mean(dim=0)), self.count(targets)
