"""What a rank leaves behind when it fails, and which of several was the first."""

import errno
import json
import math
import os
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from distill_system.errors import Refusal

REFUSED, FAILED = 2, 1


@dataclass
class Failure:
    """Kind is "refused", "disk", "crashed" or "killed"; `text` is what a person reads."""

    kind: str
    text: str
    status: int
    time: float = 0.0
    rank: int = 0


def describe(error: BaseException, rank: int = 0) -> Failure:
    """A refusal and a full disk are told in words, anything else with its traceback."""
    if isinstance(error, Refusal):
        return Failure("refused", refusal_text(error), REFUSED, time.time(), rank)
    disk = _disk_error(error)
    if disk is not None:
        where = f" while writing {disk.filename}" if disk.filename else ""
        text = f"The disk is full{where}: free some space below run.dir (or choose another run.dir) and run the same command again; it goes on from the last checkpoint."
        return Failure("disk", text, FAILED, time.time(), rank)
    from_user = type(error).__name__ == "TooManyBadSteps"
    story = str(error) if from_user else "".join(traceback.format_exception(error)).rstrip()
    return Failure("crashed", f"{story}\n(rank {rank})", FAILED, time.time(), rank)


def refusal_text(refusal: Refusal) -> str:
    count = len(refusal.problems)
    return f"distill: {count} problem{'s' if count > 1 else ''}, nothing was started:\n{refusal}"


def _disk_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            return error if isinstance(error, OSError) else OSError(errno.ENOSPC, str(error))
        error = error.__cause__ or error.__context__
    return None


def leave(failure: Failure) -> None:
    """Writes the failure where the launcher looks for it; without a launcher, to stderr."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE") if os.environ.get("DISTILL_LAUNCHED") else None
    if path is None:
        import sys

        print(failure.text, file=sys.stderr, flush=True)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(asdict(failure)))


def first_failure(files: list[Path], codes: list[int | None], moment: float = math.inf) -> Failure:
    """What came first: a rank that was killed, which can't tell, or the earliest failure that a rank has told of.

    Args:
        files: where ranks tell of their failures.
        codes: of the ranks that had ended when the first bad end was seen; nobody had been killed from here by then.
        moment: of that sight. Ranks that lose a peer complain of the connection after it.
    """
    told = [Failure(**json.loads(path.read_text())) for path in files if path.is_file()]
    told.sort(key=lambda failure: (failure.time, failure.rank))
    killed = [(rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0]
    by_hand = [(rank, number) for rank, number in killed if number == signal.SIGKILL]  # or for want of memory
    if by_hand or (killed and not any(failure.time <= moment for failure in told)):
        rank, number = (by_hand or killed)[0]
        hint = " (out of memory, if nobody did it by hand)" if number == signal.SIGKILL else ""
        text = f"rank {rank} was killed by {signal.Signals(number).name}{hint}; the same command goes on from the last checkpoint"
        return Failure("killed", text, FAILED, rank=rank)
    if told:
        return told[0]
    return Failure("crashed", f"ranks ended with status {codes}, without a word", FAILED)
