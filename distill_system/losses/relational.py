"""Relational knowledge distillation: the distances and angles between the samples of a batch, in the student's space as in the teacher's.

Every rank sees the samples of all ranks and answers for its own as anchors, so that the sum over ranks is the loss of the whole batch on one.

Shapes: B samples of this rank (anchors), N of all ranks (partners), T tokens, D width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.distributed import data_rank, gather_rows
from distill_system.losses.base import Loss
from distill_system.losses.rows import count_rows, kept, real_tokens
from distill_system.schema import NonNegative
from distill_system.settings import Schedule
from distill_system.signals import Signals, Targets


def distances(points_ND: Tensor, anchors_B: Tensor, rows_N: Tensor) -> Tensor:
    """Euclidean distances `[B, N]` of anchors to all points, divided by the mean distance between two different real points.

    Args:
        points_ND: of all ranks, 0 where a row isn't real.
        anchors_B: places of the anchors among the points.
        rows_N: bool, real rows.
    """
    # Without the trick by matrix product: it rounds small distances away, and equal points (distance 0) have a gradient of 0 here.
    all_NN = torch.cdist(points_ND, points_ND, compute_mode="donot_use_mm_for_euclid_dist")
    real_NN = rows_N[:, None] & rows_N & ~torch.eye(len(rows_N), dtype=torch.bool, device=rows_N.device)
    mean = torch.where(real_NN, all_NN, 0.0).sum() / real_NN.sum().clamp(min=1)
    return all_NN[anchors_B] / torch.where(mean > 0, mean, 1.0)


def cosines(points_ND: Tensor, anchors_B: Tensor) -> Tensor:
    """`[B, N, N]`: cosine of the angle at each anchor between the ways to two points; 0 where a way has no length."""
    ways_BND = points_ND - points_ND[anchors_B].unsqueeze(1)
    square_BN1 = ways_BND.square().sum(dim=-1, keepdim=True)
    apart_BN1 = square_BN1 > 0
    # The root of 0 has no gradient, so a 1 stands there and is masked.
    ways_BND = torch.where(apart_BN1, ways_BND / torch.where(apart_BN1, square_BN1, 1.0).sqrt(), 0.0)
    return ways_BND @ ways_BND.transpose(1, 2)


def relational(
    student_ND: Tensor, teacher_ND: Tensor, rows_N: Tensor, anchors_B: Tensor, distance: float = 1.0, angle: float = 2.0
) -> Tensor:
    """distance * mean over partners j of h(d_S(i, j), d_T(i, j)) + angle * mean over pairs of partners (j, k) of h(cos_S(j, i, k), cos_T(j, i, k)).

    h is Huber's loss (squared below a difference of 1, linear above), d the distance over its mean in the batch, i the anchor.

    Park et al. 2019, https://arxiv.org/abs/1904.05068, section 3.2 (RKD-D and RKD-A), whose factors together are 1 and 2.
    Differs from the paper in: a mean for each anchor over its partners, summed over anchors, so that the total can be divided among ranks; the
    partners are the real rows of all ranks, in a micro-batch: with gradient accumulation there are fewer. The time and memory of angles grow
    with B * N * N, of distances with N * N.

    Args:
        student_ND: one point for each row of all ranks; widths may differ.
        teacher_ND: never receives a gradient.
        rows_N: bool, real rows; others are neither anchors nor partners.
        anchors_B: places of this rank's rows.
        distance: factor of distances.
        angle: factor of angles.

    Returns:
        `[B]`, 0 for an anchor that isn't real or has too few partners (one for distances, two for angles).
    """
    student_ND = torch.where(rows_N.unsqueeze(-1), student_ND, 0.0)
    teacher_ND = torch.where(rows_N.unsqueeze(-1), teacher_ND.detach(), 0.0)
    places_N = torch.arange(len(rows_N), device=rows_N.device)
    partner_BN = rows_N[anchors_B].unsqueeze(1) & rows_N & (places_N != anchors_B.unsqueeze(1))
    loss_B = torch.zeros_like(student_ND[:, 0])[anchors_B]
    if distance > 0:
        error_BN = F.smooth_l1_loss(
            distances(student_ND, anchors_B, rows_N), distances(teacher_ND, anchors_B, rows_N), reduction="none"
        )
        loss_B = loss_B + distance * torch.where(partner_BN, error_BN, 0.0).sum(1) / partner_BN.sum(1).clamp(min=1)
    if angle > 0:
        error_BNN = F.smooth_l1_loss(cosines(student_ND, anchors_B), cosines(teacher_ND, anchors_B), reduction="none")
        pair_BNN = partner_BN.unsqueeze(2) & partner_BN.unsqueeze(1) & (places_N.unsqueeze(1) != places_N)
        loss_B = loss_B + angle * torch.where(pair_BNN, error_BNN, 0.0).sum((1, 2)) / pair_BNN.sum((1, 2)).clamp(min=1)
    return loss_B


class Relational(Loss):
    """Distances and angles between samples (`relational`).

    Args:
        points: what stands for a sample: the mean of its tokens' last hidden states, or its logits (their mean over positions, where there are several).
        distance: factor of distances.
        angle: factor of angles.
        weight: factor of this loss in the total, a number or a schedule.
    """

    needs_teacher = True
    needs = ("hidden",)
    tasks = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
    weighs_rows = True

    def __init__(
        self,
        points: Literal["hidden", "logits"] = "hidden",
        distance: NonNegative = 1.0,
        angle: NonNegative = 2.0,
        weight: NonNegative | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.points = points
        self.needs = (points,)  # type: ignore[misc] # what this one reads, by its setting
        self.distance = distance
        self.angle = angle

    def count(self, targets: Targets) -> Tensor:
        return count_rows(targets)

    def forward(self, student: Signals, teacher: Signals | None, targets: Targets) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        rows_B = targets.real_rows
        student_BD, teacher_BD = self._points(student, targets), self._points(teacher, targets).detach()
        anchors_B = data_rank() * len(rows_B) + torch.arange(len(rows_B), device=rows_B.device)
        rows_N = gather_rows(rows_B.to(student_BD.dtype)) > 0
        loss_B = relational(
            gather_rows(student_BD), gather_rows(teacher_BD), rows_N, anchors_B, self.distance, self.angle
        )
        return targets.total_of_rows(loss_B), self.count(targets)

    def _points(self, signals: Signals, targets: Targets) -> Tensor:
        """`[B, D]` of this rank, 0 where a row isn't real."""
        if self.points == "hidden":
            assert signals.hidden is not None
            last = signals.hidden[-1]
            states_BTD = last.flatten(2).transpose(1, 2) if last.dim() == 4 else last
            tokens_BT = real_tokens(targets, states_BTD.shape[1])
        else:  # classes that don't exist on one side have no place in a distance
            logits = signals.logits.masked_fill(signals.logits == -torch.inf, 0.0)
            states_BTD = logits.unsqueeze(1) if logits.dim() == 2 else logits
            tokens_BT = targets.valid.reshape(len(logits), -1)
        return kept(states_BTD, tokens_BT).sum(dim=1) / tokens_BT.sum(dim=1, keepdim=True).clamp(min=1)
