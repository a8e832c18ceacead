"""A run folder on a disk that is full, before the start or in the middle: status 1, one sentence, nothing half-written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill_system import cli
from distill_system.files import TEMPORARY
from distill_system.scheduling import run

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("A FULL DISK IS NOT TESTED: mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"A FULL DISK IS NOT TESTED: no file system can be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    with open(folder / "ballast", "wb", buffering=0) as file:
        free = shutil.disk_usage(folder).free - leave
        while free > 0:
            free -= file.write(bytes(min(free, 4096)))


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY)]


@pytest.mark.parametrize("leave", [0, 4096, 8192])  # not even the lock, the config, the manifest
def test_full_before_the_start(leave, small_disk, capsys, monkeypatch):
    monkeypatch.setattr(run, "launch", lambda *_, **__: pytest.fail("started"))
    fill(small_disk, leave)
    words = ["run", "experiment=lm_quick", "tracking=none", f"run.dir={small_disk}/runs"]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("The disk is full")
    assert len(err.splitlines()) == 1
    assert half_written(small_disk) == []


def test_full_in_the_middle(small_disk, tmp_path):
    """The first checkpoint or the model doesn't fit."""
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(f"Speech {i}: " + "all men are created equal. " * 20 for i in range(40))
    )
    words = ["experiment=lm_quick", "tracking=none", f"run.dir={small_disk}", "training=single", "training.devices=1"]
    words += ["data=text", f"data.path={tmp_path / 'corpus.txt'}", "training.max_steps=2", "~phases.student"]
    environment = os.environ | {"DISTILL_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "distill_system.cli", "run", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("The disk is full") == 1
    assert result.stderr.splitlines()[-1].startswith("The disk is full")  # after the lines of progress
    assert half_written(small_disk) == []
