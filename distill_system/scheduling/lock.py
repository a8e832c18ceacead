"""One process at a time may work on a run folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from distill_system.errors import refuse


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder's lock; the system lets go of it when the process ends, however it ends.

    Raises:
        Refusal: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
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
