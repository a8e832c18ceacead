"""Timing: bounded, honest about what it counted, and without a trace in the model."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill_system.evaluation.latency import latency, measure_model, peak_memory, rows_of


class Slow(nn.Module):
    """Sleeps for a given time per forward and remembers what it was given."""

    def __init__(self, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.shapes, self.modes = seconds, [], set()

    def forward(self, input_ids, attention_mask):
        time.sleep(self.seconds)
        self.shapes.append(tuple(input_ids.shape))
        self.modes.add((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=input_ids)


def batch(rows=3):
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:rows, None]
    return {
        "input_ids": torch.arange(5 * rows).view(rows, 5),
        "attention_mask": mask.long(),
        "labels": torch.zeros(rows),
    }


def test_times_what_a_forward_takes():
    model = Slow(0.01).train()
    figures = latency(model, batch(), repeats=5, budget_s=1.0)
    assert figures["repeats"] == 5
    assert 10 <= figures["p50_ms"] <= figures["p95_ms"] < 500
    assert figures["samples_per_s"] == pytest.approx(3000 / figures["p50_ms"])
    assert figures["threads"] == torch.get_num_threads()
    assert model.modes == {(False, False)}
    assert model.training


def test_a_slow_model_gets_fewer_repeats():
    start = time.perf_counter()
    assert 1 <= latency(Slow(0.05), batch(), repeats=1000, budget_s=0.3)["repeats"] < 7
    assert time.perf_counter() - start < 5.0
    too_slow = Slow(0.1)
    assert latency(too_slow, batch(), budget_s=0.01)["repeats"] == 1
    assert len(too_slow.shapes) == 1


def test_rows_of_a_batch():
    (one,) = rows_of(batch(), 1)["input_ids"].tolist()
    assert one == [10, 11, 12]  # the row of median length, without its padding
    many = rows_of(batch(), 8)
    assert many["input_ids"].shape == (8, 5)
    assert many["input_ids"][6].tolist() == [0, 1, 2, 3, 4]  # rows 0 1 2 0 1 2 0 1
    assert "labels" not in many


def test_measure_model():
    model = Slow(0.0)
    figures = measure_model(model, batch(), budget_s=0.1)
    assert set(figures) == {"batch_1", "batch_32"}
    assert {(1, 3), (32, 5)} == set(model.shapes)


def test_peak_memory_is_what_the_block_adds():
    ballast = bytearray(b"x" * 100_000_000)
    with peak_memory() as before:
        held = torch.ones(50_000_000)
    if before["bytes"] is None:
        pytest.skip("this system doesn't tell a process its peak memory")
    del held
    with peak_memory() as after:
        pass
    assert 150_000_000 < before["bytes"] < 250_000_000
    assert after["bytes"] < 50_000_000
    assert len(ballast) == 100_000_000


def test_pictures():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.rows = []

        def forward(self, pixel_values):
            self.rows.append(len(pixel_values))
            return self.weight * pixel_values

    net, batch = Net(), {"pixel_values": torch.randn(3, 1, 4, 4), "labels": torch.zeros(3)}
    figures = measure_model(net, batch, budget_s=0.2)
    assert set(figures) == {"batch_1", "batch_32"}
    assert set(net.rows) == {1, 32}  # three rows are repeated
    assert figures["batch_32"]["samples_per_s"] == pytest.approx(32_000 / figures["batch_32"]["p50_ms"])
    assert torch.equal(rows_of(batch, 4)["pixel_values"], batch["pixel_values"][[0, 1, 2, 0]])
