"""What a rank does in tests of the launcher: `fake_rank.py MODE FOLDER`, without torch, in milliseconds."""

import os
import signal
import sys
import time
from pathlib import Path

from distill_system.errors import refuse
from distill_system.scheduling.failure import describe, leave
from distill_system.scheduling.rank import die_with_parent

RANK = int(os.environ["RANK"])


def fail(error: BaseException) -> None:
    try:
        raise error
    except BaseException as caught:
        failure = describe(caught, RANK)
        leave(failure)
        os._exit(failure.status)


def wait() -> None:
    time.sleep(60)


def main(mode: str, folder: Path) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if mode == "save":  # as a rank that saves at the next step boundary
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"pid{RANK}.part").write_text(str(os.getpid()))
    os.rename(folder / f"pid{RANK}.part", folder / f"pid{RANK}")
    if mode == "finish":
        sys.exit(0)
    if mode == "gate":
        sys.exit(3)
    if mode == "crash":
        if RANK == 1:
            fail(RuntimeError("the first story"))
        time.sleep(0.5)
        fail(ConnectionError("lost a peer"))
    if mode == "crash_and_wait" and RANK == 1:
        fail(RuntimeError("the first story"))
    if mode == "refuse":
        fail(refuse("data.path", "is wrong"))
    if mode == "killed" and RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "disk":
        fail(OSError(28, "No space left on device", "model.safetensors"))
    wait()


main(sys.argv[1], Path(sys.argv[2]))
