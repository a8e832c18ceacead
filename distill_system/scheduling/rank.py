"""One rank of a run: reads the config that was resolved once, walks the pipeline, and leaves with the run's status."""

import atexit
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from distill_system.scheduling.failure import describe, leave

PR_SET_PDEATHSIG = 1
PREEMPTED = 143


def main(folder: Path) -> int:
    """Returns the exit status; a failure is written down for the launcher, which tells it once."""
    if os.environ.get("DISTILL_LAUNCHED"):
        die_with_parent()
        signal.signal(signal.SIGTERM, _leave_at_once)  # until the pipeline listens; there is nothing to save yet
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the launcher, which asks all ranks to save
    try:
        import yaml

        quiet_libraries()
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        from distill_system import pipeline

        status = pipeline.run(folder, config)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = describe(error, int(os.environ.get("RANK", 0)))
        leave(failure)
        sys.stdout.flush()
        os._exit(failure.status)  # not through the group's teardown: peers may wait in a collective
    from distill_system import distributed

    distributed.stop()
    if os.environ.get("DISTILL_LAUNCHED"):
        leave_process(status)
    return status


def leave_process(status: int) -> None:
    """Ends the process when all is said. Not through the interpreter's teardown: where threads of gloo and DeepSpeed still run, C++ aborts it there, and a run
    that succeeded ends with status -6.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_parent() -> None:
    """A launcher that was killed leaves no ranks behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ["DISTILL_LAUNCHED"] not in ("1", str(os.getppid())):  # it was killed before it could be watched
            os._exit(1)


def _leave_at_once(number: int, frame: Any) -> None:
    os._exit(PREEMPTED)


def quiet_libraries() -> None:
    """Bars and advice of libraries, once per rank, would hide our own words."""
    import logging
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_gpu() else "cpu")
    torchao = ("torchao", "torch.utils._pytree")  # at its import, of kernels for other devices
    for name in ("lightning.pytorch", "lightning.fabric", "deepspeed", "torch.distributed", *torchao):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|deepspeed|transformers)\b.*")


def _has_gpu() -> bool:
    from distill_system.hardware import visible_gpus

    return visible_gpus() > 0
