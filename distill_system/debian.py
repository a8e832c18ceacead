"""Data that a Debian package carries: a file of the installed package, else downloaded by apt and unpacked into the cache, without root.

The files are pinned, not the archive: a distribution may rebuild a package without touching the data in it. Nothing of the package is executed.
"""

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distill_system.errors import Refusal, refuse
from distill_system.files import TEMPORARY, digest_file, folder_atomic
from distill_system.packages import cache_folder, locked, remove_unfinished

KEY = "data.package"
UNKNOWN = re.compile(r"Unable to locate package|No candidate|Can't (select|find)|No packages found")
ROOT = Path("/")  # where an installed package lies


def debian_folder(name: str, files: Mapping[str, str]) -> Path:
    """Where the package's files lie once they are fetched; `.is_dir()` says whether they are."""
    mark = "-".join(sorted(digest[:8] for digest in files.values())[:4])
    return cache_folder() / "packages" / f"debian-{name}-{mark}"


def fetch_debian_package(name: str, files: Mapping[str, str], key: str = KEY) -> Path:
    """A folder that holds the wanted files of a Debian package below their paths; safe to call from several processes at once.

    The package's own folder where it is installed with the very files, else the cache, which `apt-get download` and `dpkg-deb` fill once.

    Args:
        name: of the package.
        files: path below the root (`usr/share/wordnet/data.noun`) -> sha256 of the file, 64 hex digits.
        key: config key for refusals.

    Raises:
        Refusal: it isn't installed and can't be downloaded, or a file is missing or another one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
        raise refuse(key, f"is {name!r}, must be the name of a Debian package, such as wordnet-base")
    assert files, "no file is wanted"
    target = debian_folder(name, files)
    if target.is_dir():
        return target
    if not _faults(ROOT, files):
        return ROOT
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():  # else another process fetched it while this one waited
            remove_unfinished(target)
            with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent) as downloads:
                _download(name, Path(downloads), key)
                unpacked = Path(downloads) / "unpacked"
                if faults := _faults(unpacked, files):
                    raise refuse(key, f"is {name!r}, {faults[0]}; nothing of it was kept")
                with folder_atomic(target) as folder:
                    for path in files:
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(unpacked / path, folder / path)
    return target


def _faults(root: Path, files: Mapping[str, str]) -> list[str]:
    """What is wrong with the wanted files below `root`, in words."""
    faults = []
    for path, digest in files.items():
        file = root / path
        if not file.resolve().is_relative_to(root.resolve()) or not file.is_file():
            faults.append(f"which has no {path}")
        elif (found := digest_file(file)) != digest:
            faults.append(f"whose {path} has the sha256 {found}, must be {digest}")
    return faults


def _download(name: str, folder: Path, key: str) -> None:
    """The archive by apt, unpacked into `folder/unpacked` by dpkg-deb."""
    install = f"install it (apt-get install {name}), or copy its files into {cache_folder() / 'packages'}"
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise refuse(
                key,
                f"is {name!r}, which isn't installed, and this machine has no {program} to fetch it with; {install}",
            )
    ended = _run(["apt-get", "download", "-qq", name], folder)
    if ended.returncode != 0 and UNKNOWN.search(ended.stdout + ended.stderr):
        # A fresh machine or container has no package lists; they are fetched into a folder of our own, which needs no root and changes nothing.
        lists = _own_lists(folder)
        if _run(["apt-get", *lists, "update", "-qq"], folder).returncode == 0:
            ended = _run(["apt-get", *lists, "download", "-qq", name], folder)
    archives = list(folder.glob("*.deb"))
    if ended.returncode != 0 or len(archives) != 1:
        raise _explain(name, ended.stdout + ended.stderr, key, install)
    ended = _run(["dpkg-deb", "--extract", archives[0].name, "unpacked"], folder)
    if ended.returncode != 0:
        raise _explain(name, ended.stdout + ended.stderr, key, install)


def _own_lists(folder: Path) -> list[str]:
    """Options by which apt keeps its lists below `folder`."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={folder}/apt/lists", "-o", f"Dir::Cache={folder}/apt/cache"]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C"}  # its messages are read below
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
    )


def _explain(name: str, output: str, key: str, install: str) -> Refusal | OSError:
    """What went wrong, in one sentence; a full disk is no fault of the config and stays an OSError."""
    if "No space left on device" in output:
        text = f"{os.strerror(errno.ENOSPC)} while {name} was fetched into"
        return OSError(errno.ENOSPC, text, str(cache_folder()))
    if UNKNOWN.search(output):
        return refuse(key, f"is {name!r}, which apt knows no package of; run `apt-get update`, or {install}")
    if re.search(r"Could not resolve|Could not connect|Connection (failed|timed out|refused)|Failed to fetch", output):
        return refuse(
            key, f"is {name!r}, which can't be fetched, since the package servers can't be reached; {install}"
        )
    reasons = [line[3:] for line in output.splitlines() if line.startswith("E: ")]
    return refuse(key, f"is {name!r}, which can't be fetched: {reasons[0] if reasons else 'apt gave no reason'}")
