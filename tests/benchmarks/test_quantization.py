"""The benchmark of quantization runs, and its bytes are what the bits promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_writes_its_figures(tmp_path):
    file = tmp_path / "quantization.json"
    command = [sys.executable, "-m", "benchmarks.quantization", "--quick", "--json", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    figures = json.loads(file.read_text())
    names = (
        "deterministic_binary binary_constants ternary_connect bernoulli_ternary trained_ternary kbit loss_aware inputs"
    )
    assert {f"step_{name}" for name in names.split()} <= set(figures)
    for entry in figures.values():
        assert list(entry) == ["ours", "peer", "ratio", "floor", "unit"]
        assert entry["ours"] > 0
    # Bytes don't hang on how busy the machine is; headers weigh more in a small model.
    for bits in ("1", "1.6", "2", "3", "4", "8"):
        assert 1 <= figures[f"file_{bits}"]["ratio"] < 1.2, bits
    sizes = [figures[f"file_{bits}"]["ours"] for bits in ("1", "1.6", "2", "3", "4", "8")]
    assert sizes == sorted(sizes)
    assert figures["file_ternary_4bit_embeddings"]["ratio"] < 0.3
