"""Bits of a saved model's weights: by hand, and the same in every form that the model is stored in."""

import pytest
import torch

from distill_system.errors import Refusal
from distill_system.evaluation.bits import bits
from distill_system.evaluation.size import size
from distill_system.export.dense import named_tensors, save_model
from distill_system.export.packed import pack
from distill_system.export.sparse import write_sparse
from distill_system.models.grids_file import write_grids
from tests.models import on_grids, tiny

BODY = 4 * (4 * 32 * 32 + 2 * 32 * 48)  # weights of the linears in four layers
TABLES = (260 + 64 + 2) * 32
ALL = TABLES + 64 + 4 * 7_504 + 1_056 + 99  # with biases, norms, the pooler and the head


def test_by_hand_and_in_every_form(tmp_path):
    model, tokenizer = tiny.build("bert")
    assert sum(parameter.numel() for parameter in model.parameters()) == ALL
    grids = on_grids.folder(tmp_path / "model", model, tokenizer, body=3, tables=16)
    pooler = "bert.pooler.dense.weight"
    ternary = BODY + (32 * 32 if pooler in grids else 0)
    rest = ALL - ternary - TABLES
    expected = {
        "mean": pytest.approx((1.6 * ternary + 4 * TABLES + 32 * rest) / ALL, abs=1e-4),
        "weights": {"1.6": ternary, "4": TABLES, "32": rest},
    }
    assert bits(tmp_path / "model") == expected
    pack(tmp_path / "model", tmp_path / "packed")
    assert bits(tmp_path / "packed") == expected
    write_sparse(tmp_path / "sparse", named_tensors(model), {}, model.config, tokenizer)
    write_grids(tmp_path / "sparse", grids)
    assert bits(tmp_path / "sparse") == expected
    assert sum(expected["weights"].values()) == size(tmp_path / "model")["parameters"]


@pytest.mark.parametrize("limit", [5e9, 60_000])
def test_a_model_without_grids(limit, tmp_path):
    model, tokenizer = tiny.build("bert")
    model.register_buffer("counted", torch.arange(5))  # whole numbers are no weights
    save_model(tmp_path, model.half(), tokenizer, limit)
    assert bits(tmp_path) == {"mean": 16.0, "weights": {"16": ALL}}


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(Refusal, match="without"):
        bits(tmp_path)
