"""The benchmark of pruning runs, compares what it says it compares, and shows a peer that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.pruning import memory, peer, results
from benchmarks.pruning.models import cut_by_magnitude, encoder, prune_by_magnitude

ROOT = Path(__file__).parents[2]


def test_it_writes_its_figures(tmp_path):
    file = tmp_path / "pruning.json"
    parts = ["steps", "latencies", "blocks", "files"]  # the others start ranks, or ask a registry
    command = [sys.executable, "-m", "benchmarks.pruning", "--quick", "--only", *parts, "--json", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    figures = json.loads(file.read_text())
    assert {"mask_step", "latency_cut", "latency_layers", "latency_blocks", "file_cut", "file_sparse"} <= set(figures)
    for entry in figures.values():
        assert list(entry) == ["ours", "peer", "ratio", "floor", "unit"]
        assert entry["ours"] > 0
    # Bytes don't hang on how busy the machine is.
    cut, linears = figures["file_cut"], figures["file_sparse_linears"]
    assert cut["floor"] <= cut["ours"] <= cut["floor"] + 0.02 * cut["peer"]
    assert 0.1 < linears["ratio"] <= 0.12
    for name in ("file_cut", "file_sparse", "file_sparse_linears", "file_sparse_minilm"):
        assert figures[name]["floor"] <= figures[name]["ours"], name


def test_what_is_compared_has_the_sizes_that_the_docstring_names():
    made = results.models(True)
    sizes = {name: model.config for name, model in made.items()}
    assert (sizes["dense"].intermediate_size, sizes["cut"].intermediate_size) == (384, 192)
    assert [len(made[name].bert.encoder.layer) for name in ("dense", "cut", "layers")] == [2, 2, 1]
    assert made["cut"].bert.encoder.layer[0].attention.self.query.out_features == 64  # two of three heads
    model = encoder(True)[0]
    names = prune_by_magnitude(model, 0.9)
    weights = torch.cat([model.get_parameter(name).flatten() for name in names])
    assert int((weights == 0).sum()) == round(0.9 * len(weights))
    linear = results.block_sparse(320)
    blocks = linear.weight.detach().view(10, 32, 10, 32).transpose(1, 2).ne(0).any(-1).any(-1)
    assert int(blocks.sum()) == 10


def test_a_peer_that_fails_is_shown(monkeypatch, capsys):
    def fails(folder):
        raise peer.Failed("no such version")

    monkeypatch.setattr(peer, "environment", fails)
    monkeypatch.setattr(peer, "_in", lambda python, quick: {"ours": 0.5})
    figures = peer.measure(True)
    assert figures == {
        "torch_pruning": {
            "ours": 500.0,
            "peer": None,
            "ratio": None,
            "floor": None,
            "unit": "ms of CPU; the peer failed: no such version",
        }
    }
    assert "no such version" in capsys.readouterr().out


def test_a_command_that_fails_says_why():
    assert peer._run([sys.executable, "-c", "print(3)"]) == "3\n"
    with pytest.raises(peer.Failed, match="ValueError: why"):
        peer._run([sys.executable, "-c", "raise ValueError('why')"])
    with pytest.raises(peer.Failed, match="No such file"):
        peer._run(["/nowhere/python"])


def test_memory_counts_what_is_freed_again():
    assert memory.added(lambda: torch.ones(8 << 20).sum()) > 30e6
    assert memory.added(lambda: None) < 2e6


def test_a_cut_of_the_benchmark_leaves_the_largest_neurons():
    model = encoder(True)[0]
    layer = model.bert.encoder.layer[0]
    worth = layer.intermediate.dense.weight.abs().sum(1) + layer.output.dense.weight.abs().sum(0)
    kept = layer.intermediate.dense.weight[worth.topk(96).indices.sort().values].detach().clone()
    cut_by_magnitude(model, "neurons", 0.75)
    assert torch.equal(model.bert.encoder.layer[0].intermediate.dense.weight, kept)
