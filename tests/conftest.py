"""The environment of every test: no hub, no account, no GPU assumed, one thread a process; and nothing left over for the next test."""

import gc
import os
import shutil
import subprocess
import sys

import pytest


def _has_gpu() -> bool:
    return (
        shutil.which("nvidia-smi") is not None
        and b"GPU" in subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout
    )


# Set here and not in a fixture: some of it is read once, when torch, deepspeed or huggingface_hub is imported. Ranks that a test starts inherit it.
if not _has_gpu():
    os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a launcher left in the environment of the shell must not make a test believe that it is a rank.
for name in (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_NTASKS",
):
    os.environ.pop(name, None)
# DISTILL_CACHE stays the user's: packages that were fetched and verified once are shared between runs of the tests.


@pytest.fixture(autouse=True)
def clean_up():
    """Ends process groups and gives GPU memory back; costs nothing in tests that never import torch."""
    yield
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "distributed"):
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
