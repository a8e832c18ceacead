"""Bytes, parameters and non-zeros of folders whose files are written by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from distill_system.errors import Refusal
from distill_system.evaluation import size as module
from distill_system.evaluation.size import size


def tensors():
    weight = torch.arange(12, dtype=torch.float32).view(3, 4)  # one zero
    return {
        "weight": weight,
        "bias": torch.zeros(3, dtype=torch.bfloat16),
        "scale": torch.tensor(2.0),
        "position_ids": torch.arange(9),
    }


@pytest.mark.parametrize("piece", [1, 5, 2**24])
def test_counts_by_hand(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    figures = size(tmp_path)
    assert figures["parameters"] == 12 + 3 + 1  # position ids are no parameters
    assert figures["nonzeros"] == 11 + 0 + 1
    assert figures["size_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert figures["folder_bytes"] == figures["size_bytes"] + 2


def test_shards_count_once_each_and_strangers_do_not(tmp_path):
    parts = {"model-00001-of-00002.safetensors": ["weight"], "model-00002-of-00002.safetensors": ["bias", "scale"]}
    for file, names in parts.items():
        save_file({name: tensors()[name] for name in names}, tmp_path / file)
    save_file(tensors(), tmp_path / "optimizer.safetensors")
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    figures = size(tmp_path)
    assert (figures["parameters"], figures["nonzeros"]) == (16, 12)
    assert figures["size_bytes"] == sum((tmp_path / file).stat().st_size for file in parts)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(Refusal, match="without"):
        size(tmp_path)
