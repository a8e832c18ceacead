"""The benchmark of packed models runs, and compares what it says it compares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.inference import KINDS, bytes_of, packed_linear
from distill_system.models.packing import bits_of

ROOT = Path(__file__).parents[2]


def test_it_writes_its_figures(tmp_path):
    file = tmp_path / "inference.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.inference",
        "--quick",
        "--only",
        "linears",
        "models",
        "--json",
        str(file),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=200)
    figures = json.loads(file.read_text())
    wanted = {"latency_int8", "latency_int4", "latency_ternary", "latency_binary", "resident_packed", "load_packed"}
    assert wanted <= set(figures)
    for entry in figures.values():
        assert list(entry) == ["ours", "peer", "ratio", "floor", "unit"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_linear_has_the_bytes_of_its_bits_and_says_nearly_the_same(kind):
    dense = nn.Linear(320, 64)
    ours = packed_linear(dense, KINDS[kind])
    bits = bits_of(ours.count)
    scales = sum(t.numel() for name, t in ours._buffers.items() if name != "packed")
    assert bytes_of(ours) == bits * 320 * 64 / 8 + 4 * (scales + 64)
    x = torch.randn(5, 320)
    torch.testing.assert_close(ours(x), nn.functional.linear(x, ours.weight, dense.bias), rtol=1e-4, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(ours(x) - dense.bias, dense(x) - dense.bias).min() > 0.7
