"""What losses on a model's inside share: which tokens of a row are real, and means over them that padding can't change.

Shapes: B samples, T tokens (patches or places in a picture), D width, h rows and w columns of a CNN's map.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.errors import refuse
from distill_system.signals import Targets


def real_tokens(targets: Targets, length: int) -> Tensor:
    """`[B, T]` bool: real tokens of real rows; every token of a picture is one."""
    rows_B = targets.real_rows
    if targets.tokens is None:
        return rows_B[:, None].expand(-1, length)
    assert targets.tokens.shape[1] == length, (targets.tokens.shape, length)
    return targets.tokens & rows_B[:, None]


def kept(values_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
    """In float32 at least, 0 where a token isn't real: whatever stood there, its gradient is zero."""
    values_BTD = values_BTD.to(torch.promote_types(values_BTD.dtype, torch.float32))
    return torch.where(tokens_BT.unsqueeze(-1), values_BTD, 0.0)


def mean_of_tokens(loss_BT: Tensor, tokens_BT: Tensor) -> Tensor:
    """`[B]`: mean over each row's real tokens, 0 for a row without any."""
    return torch.where(tokens_BT, loss_BT, 0.0).sum(dim=1) / tokens_BT.sum(dim=1).clamp(min=1)


def count_rows(targets: Targets) -> Tensor:
    """Number of real rows, as a float on the batch's device."""
    return targets.real_rows.sum().to(torch.float32)


def aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of both as `[B, T, D]`; of two CNN maps `[B, D, h, w]` the larger is averaged down to the smaller's rows and columns first."""
    if student.dim() == teacher.dim() == 4:
        smaller = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        student, teacher = (
            m if list(m.shape[2:]) == smaller else F.adaptive_avg_pool2d(m, smaller) for m in (student, teacher)
        )
    flat = [m.flatten(2).transpose(1, 2) if m.dim() == 4 else m for m in (student, teacher)]
    return flat[0], flat[1]


def same_length(student: Tensor, teacher: Tensor, key: str) -> None:
    """Refuses two `[B, T, ...]` that don't speak of the same tokens.

    Raises:
        Refusal: of different lengths.
    """
    if student.shape[1] != teacher.shape[1]:
        raise refuse(
            key,
            f"compares states token by token, but of the same rows the student sees {student.shape[1]} and the teacher {teacher.shape[1]};"
            " give both the same tokenizer or patch size, or take a loss on logits",
        )
