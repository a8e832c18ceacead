"""One process at a time may work on a run folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from distill_system.config.plan import LOCK
from distill_system.errors import refuse


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder's lock; the system lets go of it when the process ends, however it ends.

    Raises:
        Refusal: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (the next line's block closes it)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise refuse("run.dir", f"is '{folder.parent}', where no run folder can be made ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise refuse(
                "run.name", f"is '{folder.name}', which {holder} is working on; wait for it, or choose another run.name"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
