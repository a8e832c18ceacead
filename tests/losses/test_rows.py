"""Real tokens, means over them, and CNN maps of unequal sizes."""

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.losses.rows import aligned, count_rows, kept, mean_of_tokens, real_tokens, same_length
from distill_system.signals import Targets

ROWS = torch.tensor([True, False, True])


def test_real_tokens_of_texts_and_pictures():
    labels = torch.zeros(3, dtype=torch.long)
    picture = Targets(labels, ROWS)
    assert real_tokens(picture, 2).tolist() == [[True, True], [False, False], [True, True]]
    text = Targets(labels, ROWS, tokens=torch.tensor([[True, False], [True, True], [True, True]]))
    assert real_tokens(text, 2).tolist() == [[True, False], [False, False], [True, True]]
    assert count_rows(text).item() == 2


def test_means_over_real_tokens_by_hand():
    tokens = torch.tensor([[True, True, False], [False, False, False]])
    loss = torch.tensor([[1.0, 2.0, float("nan")], [float("nan")] * 3])
    assert mean_of_tokens(loss, tokens).tolist() == [1.5, 0.0]
    assert kept(loss.unsqueeze(-1), tokens).squeeze(-1).tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    assert kept(loss.bfloat16().unsqueeze(-1), tokens).dtype == torch.float32


def test_maps_become_tokens():
    student, teacher = torch.arange(12.0).view(1, 3, 2, 2), torch.zeros(1, 5, 2, 2)
    flat, other = aligned(student, teacher)
    assert flat.shape == (1, 4, 3)
    assert flat[0, 1].tolist() == [1.0, 5.0, 9.0]  # row 0, column 1 of each channel
    assert other.shape == (1, 4, 5)


def test_the_larger_map_is_averaged_down():
    small, large = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 8.0]]]])
    for student, teacher in ((small, large), (large, small)):
        sides = aligned(student, teacher)
        assert all(side.shape == (1, 2, 1) for side in sides)
        assert max(side.sum() for side in sides) == 2.5 + 6.5


def test_tokens_must_be_the_same():
    with pytest.raises(Refusal, match=r"k: .* the student sees 4 and the teacher 5; give both the same"):
        same_length(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), "k")
