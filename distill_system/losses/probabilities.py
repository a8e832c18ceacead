"""Arithmetic that losses between two distributions share: log-probabilities at masked positions, divergences without NaN, checked temperatures.

Shapes: C classes or words of the vocabulary, X any leading dimensions (B samples; or B samples, T tokens), 2 outcomes of a yes-or-no question.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.errors import refuse
from distill_system.losses.base import at_positions
from distill_system.schedules import schedule_of
from distill_system.settings import PositiveSchedule, Schedule

CUT = -torch.inf  # the logit of a vocabulary row that doesn't exist: no probability, no gradient
Measure = Callable[[Tensor, Tensor], Tensor]  # (log p, log q), teacher first, each [X, C] -> [X]


def log_probs(logits_XC: Tensor, keep_X: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T), uniform where a position isn't kept."""
    return F.log_softmax(at_positions(logits_XC, keep_X) / temperature, dim=-1)


def kl(log_p_XC: Tensor, log_q_XC: Tensor) -> Tensor:
    """KL(p || q) = sum over classes of p * log(p / q), in nats; the gradient may flow to either side.

    A class without p adds nothing, whatever q says; one with p that q excludes makes it infinite.
    """
    p_XC = log_p_XC.exp()
    # 0 * log(0 / q) is 0, but 0 * inf is NaN: cut words on both sides, and probabilities that underflow.
    log_ratio_XC = (log_p_XC - log_q_XC).masked_fill(p_XC == 0, 0.0)
    return (p_XC * log_ratio_XC).sum(dim=-1)


def log_mixture(log_p_XC: Tensor, log_q_XC: Tensor, share: float) -> Tensor:
    """log(share * p + (1 - share) * q) for a share inside (0, 1)."""
    nowhere_XC = (log_p_XC == CUT) & (log_q_XC == CUT)  # logaddexp has no gradient there
    mixed_XC = torch.logaddexp(
        log_p_XC.masked_fill(nowhere_XC, 0.0) + math.log(share),
        log_q_XC.masked_fill(nowhere_XC, 0.0) + math.log1p(-share),
    )
    return mixed_XC.masked_fill(nowhere_XC, CUT)


def divergence(
    student_logits_XC: Tensor,
    teacher_logits_XC: Tensor,
    valid_X: Tensor,
    temperature: float,
    measure: Measure,
    *,
    task: str = "classification",
    teachers_classes: bool = False,
) -> Tensor:
    """measure(softmax(teacher / T), softmax(student / T)) of each position, of two uniform sides where it isn't valid; not yet times T^2.

    In multi-label classification each class is a distribution of its own, (sigmoid(z / T), 1 - sigmoid(z / T)), which is the softmax of the logits
    (z, 0): the mean over the classes of the row, without those that the teacher cuts.

    Args:
        student_logits_XC: any floating type; computed in float32 at least.
        teacher_logits_XC: never receives a gradient.
        valid_X: bool, positions that count; `[B]` in multi-label classification.
        temperature: T > 0.
        measure: of log-probabilities, teacher first.
        task: of the data.
        teachers_classes: take classes that the teacher cuts (logit -inf) from the student too, whose other probabilities then sum to 1.
    """
    teacher_logits_XC = teacher_logits_XC.detach()
    if task == "multi_label":
        keep_XC = valid_X.unsqueeze(-1) & (teacher_logits_XC != CUT)
        loss_XC = measure(
            log_probs(_outcomes(teacher_logits_XC), keep_XC, temperature),
            log_probs(_outcomes(student_logits_XC), keep_XC, temperature),
        )
        return torch.where(keep_XC, loss_XC, 0.0).sum(dim=-1) / keep_XC.sum(dim=-1).clamp(min=1)
    if teachers_classes:
        student_logits_XC = student_logits_XC.masked_fill(teacher_logits_XC == CUT, CUT)
    student_log_probs_XC = log_probs(student_logits_XC, valid_X, temperature)
    teacher_log_probs_XC = log_probs(teacher_logits_XC, valid_X, temperature)
    # A position that isn't valid has zero logits on both sides, hence a KL of exactly zero.
    return measure(teacher_log_probs_XC, student_log_probs_XC)


def _outcomes(logits_XC: Tensor) -> Tensor:
    """Logits `[X, C, 2]` of yes and no."""
    return torch.stack((logits_XC, torch.zeros_like(logits_XC)), dim=-1)


def checked_temperature(temperature: Any) -> float | Schedule:
    """A temperature as a number or a schedule.

    Raises:
        Refusal: it isn't above 0 all the time.
    """
    if isinstance(temperature, dict):
        temperature = PositiveSchedule(**temperature)
    schedule = schedule_of(temperature)
    reached = [temperature] if schedule is None else [schedule.start]
    if schedule is not None and schedule.shape != "constant":
        reached.append(schedule.end)
    if min(reached) <= 0:
        raise refuse("temperature", f"reaches {min(reached):g}, must stay > 0; 1 leaves the probabilities as they are")
    return temperature
