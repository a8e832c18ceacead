"""The strategies of tests/distributed on GPUs, by the same code; skipped where there is none."""

import pytest
import torch

from tests.distributed.launch import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU; tests/distributed checks the same on CPU ranks"
    ),
]
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-2}  # else 1e-3: TF32 and other kernels


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run_ranks("tests.distributed.strategies:straight", world=1, folder=tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    ranks = min(2, torch.cuda.device_count())
    return run_ranks(
        "tests.distributed.strategies:on_gpus", world=ranks, folder=tmp_path_factory.mktemp("gpu"), device="gpu"
    )


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "sharded", "bf16", "fp16"])
def test_gpus_agree_with_the_cpu(name, found, reference):
    for step, figures in reference["loss"].items():
        assert found[name]["loss"][step]["loss"] == pytest.approx(figures["loss"], rel=TOLERANCE.get(name, 1e-3))
