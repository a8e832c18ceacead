"""What this machine shows of its hardware, without importing torch."""

import os
import re
from pathlib import Path


def visible_gpus() -> int:
    """NVIDIA GPUs that processes started here may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in Path("/dev").glob("nvidia*"))
    if chosen is None or present == 0:
        return present
    return len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")])


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
