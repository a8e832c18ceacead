"""The benchmarks run and write the figures that others read; how large a figure is, a busy machine can't tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_step_writes_its_figures(tmp_path):
    file = tmp_path / "step.json"
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--json", str(file)]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=120
    )
    figures = json.loads(file.read_text())
    assert {"overhead_ms", "vs_self_log", "shared_teacher", "cohort_tiny", "cohort_large", "hint"} <= set(figures)
    for entry in figures.values():
        assert list(entry) == ["ours", "peer", "ratio", "floor", "unit"]
        assert entry["ours"] > 0
