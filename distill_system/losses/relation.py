"""Self-attention relations (MiniLM v2): how the tokens' queries, keys and values relate among themselves, for models of any width and number of heads.

Shapes: B samples, R relation heads, T tokens, D width.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.errors import refuse
from distill_system.losses.base import Loss
from distill_system.losses.layers import Pairs, choose_pairs
from distill_system.losses.probabilities import CUT, kl
from distill_system.losses.rows import count_rows, kept, mean_of_tokens, real_tokens, same_length
from distill_system.schema import Count, Index, NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets

KINDS = ("queries", "keys", "values")  # in the order of Signals.projections


def relation(
    student_BTD: Tensor, teacher_BTD: Tensor, tokens_BT: Tensor, heads: int = 16, causal: bool = False
) -> Tensor:
    """Mean over relation heads and a row's tokens of KL(R_teacher || R_student), R = softmax(X X^T / sqrt(D / heads)) over real tokens.

    Wang et al. 2021 (MiniLM v2), https://arxiv.org/abs/2012.15828, section 3. X are the queries, the keys or the values of all heads side by
    side, split anew into as many relation heads on both sides, so that widths and numbers of heads may differ.
    Differs from the paper in: padding tokens have no part, and in language modelling tokens relate only to earlier ones and themselves.

    Args:
        student_BTD: one kind of projection; its width may differ from the teacher's.
        teacher_BTD: never receives a gradient.
        tokens_BT: bool, real tokens of real rows.
        heads: relation heads; divides both widths.
        causal: whether a token relates only to itself and those before it.

    Returns:
        `[B]` in nats, 0 for a row without real tokens.
    """
    related_BTT = (tokens_BT[:, :, None] & tokens_BT[:, None, :]) | ~tokens_BT[
        :, :, None
    ]  # a softmax over nothing is NaN
    if causal:
        related_BTT = related_BTT & torch.ones_like(related_BTT[0]).tril()
    log_q_BRTT = _log_relation(student_BTD, tokens_BT, related_BTT, heads)
    log_p_BRTT = _log_relation(teacher_BTD.detach(), tokens_BT, related_BTT, heads)
    return mean_of_tokens(kl(log_p_BRTT, log_q_BRTT).mean(dim=1), tokens_BT)


def _log_relation(states_BTD: Tensor, tokens_BT: Tensor, related_BTT: Tensor, heads: int) -> Tensor:
    states_BRTd = kept(states_BTD, tokens_BT).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores_BRTT = states_BRTd @ states_BRTd.transpose(2, 3) / math.sqrt(states_BRTd.shape[-1])
    return F.log_softmax(scores_BRTT.masked_fill(~related_BTT.unsqueeze(1), CUT), dim=-1)


class Relation(Loss):
    """Self-attention relations of queries, keys and values (`relation`), the mean over these kinds and over pairs of layers.

    Args:
        layers: `last`: the last layer hears the last; `auto`: each layer of the student hears the teacher's at the same relative depth; or pairs
            [student's layer, teacher's layer], counted from 0. For large teachers the paper takes a layer below the last (21 of 24).
        relations: which of queries, keys, values; null: all three.
        relation_heads: into how many parts widths are split; more than the models' own heads tell more.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("projections",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        layers: Literal["last", "auto"] | list[list[Index]] = "last",
        relations: list[Literal["queries", "keys", "values"]] | None = None,
        relation_heads: Count = 16,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        if relations is not None and (not relations or len(set(relations)) < len(relations)):
            raise refuse(
                "relations", f"is {relations}, must hold some of {', '.join(KINDS)}, each once; null: all three"
            )
        self.layers = layers
        self.relations = relations
        self.relation_heads = relation_heads
        self.pairs: Pairs | None = None

    @property
    def kinds(self) -> list[int]:
        return [number for number, kind in enumerate(KINDS) if self.relations is None or kind in self.relations]

    def bind(self, student: Signals, teacher: Signals, *, key: str, seed: int) -> dict[str, Any]:
        assert student.projections is not None
        assert teacher.projections is not None
        self.pairs = choose_pairs(
            self.layers, len(student.projections), len(teacher.projections), f"{key}.layers", self.survivors
        )
        sides = [(student.projections[i], teacher.projections[j]) for i, j in self.pairs]
        same_length(sides[0][0][0], sides[0][1][0], key)
        widths = sorted({side[kind].shape[-1] for pair in sides for side in pair for kind in self.kinds})
        if any(width % self.relation_heads for width in widths):
            common = math.gcd(*widths)
            fitting = [n for n in range(1, common + 1) if common % n == 0]
            near = min(fitting, key=lambda n: (abs(n - self.relation_heads), -n))
            raise refuse(
                f"{key}.relation_heads",
                f"is {self.relation_heads}, must divide the widths {', '.join(map(str, widths))}; the nearest that does is {near}",
            )
        return {"pairs": [list(pair) for pair in self.pairs]}

    def count(self, targets: Targets) -> Tensor:
        return count_rows(targets)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        assert student.projections is not None
        assert teacher.projections is not None
        assert self.pairs is not None, "bind comes first"
        losses_B = []
        for i, j in self.pairs:
            for kind in self.kinds:
                student_BTD, teacher_BTD = student.projections[i][kind], teacher.projections[j][kind]
                tokens_BT = real_tokens(targets, student_BTD.shape[1])
                causal = targets.task == "causal_lm"
                losses_B.append(relation(student_BTD, teacher_BTD, tokens_BT, self.relation_heads, causal))
        return targets.total_of_rows(torch.stack(losses_B).mean(dim=0)), self.count(targets)
