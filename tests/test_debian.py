"""Fetching a Debian package, with a stand-in for apt-get that "downloads" what dpkg-deb then really unpacks, or fails in a known way."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from distill_system import debian
from distill_system.errors import Refusal

TEXT = b"some data\n"
FILES = {"usr/share/thing/data.txt": hashlib.sha256(TEXT).hexdigest()}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A cache and a root of its own; returns a function that sets what `apt-get` does."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(debian, "ROOT", tmp_path / "root")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dpkg-deb", "sh", "cp", "tar", "rm", "echo"):
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))

    def apt(script):
        (programs / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "apt-get").chmod(0o755)

    return apt


@pytest.fixture
def archive(tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    (tree / "usr/share/thing").mkdir(parents=True)
    (tree / "usr/share/thing/data.txt").write_bytes(TEXT)
    subprocess.run(
        ["dpkg-deb", "--build", str(tree), str(tmp_path / "thing_1_all.deb")], check=True, capture_output=True
    )
    return tmp_path / "thing_1_all.deb"


def test_an_installed_package_is_read_where_it_lies(machine, tmp_path):
    path = tmp_path / "root/usr/share/thing/data.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXT)
    assert debian.fetch_debian_package("thing", FILES) == tmp_path / "root"


@needs_dpkg
def test_a_download_fills_the_cache_once(archive, machine, tmp_path):
    machine(f"cp {archive} . && echo x >> {tmp_path}/calls")
    folder = debian.fetch_debian_package("thing", FILES)
    assert (folder / "usr/share/thing/data.txt").read_bytes() == TEXT
    assert debian.fetch_debian_package("thing", FILES) == folder == debian.debian_folder("thing", FILES)
    assert (tmp_path / "calls").read_text() == "x\n"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


@needs_dpkg
def test_a_machine_without_package_lists_fetches_its_own(archive, machine, tmp_path):
    """The first download fails, an update into a folder of ours follows, and a download with its options."""
    known = f'case "$*" in *Dir::State::lists*update*) echo x > {tmp_path}/known;; *Dir::State::lists*download*) cp {archive} .;; '
    machine(known + "*) echo 'E: Unable to locate package thing' >&2; exit 100;; esac")
    folder = debian.fetch_debian_package("thing", FILES)
    assert (tmp_path / "known").exists()
    assert (folder / "usr/share/thing/data.txt").read_bytes() == TEXT
    assert not (folder / "apt").exists()


@needs_dpkg
def test_other_contents_are_refused_and_nothing_stays(archive, machine):
    machine(f"cp {archive} .")
    wanted = {"usr/share/thing/data.txt": "0" * 64}
    with pytest.raises(Refusal, match=r"has the sha256 .* must be 0000.*nothing of it was kept"):
        debian.fetch_debian_package("thing", wanted)
    with pytest.raises(Refusal, match="which has no usr/share/other"):
        debian.fetch_debian_package("thing", {"usr/share/other": "0" * 64})
    folder = debian.debian_folder("thing", wanted)
    assert not folder.exists()
    assert not [path for path in folder.parent.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("E: Unable to locate package thing", "apt knows no package of; run `apt-get update`"),
        ("E: Failed to fetch http://x  Could not connect", "the package servers can't be reached; install it"),
        ("E: Something else", "can't be fetched: Something else"),
        ("", "apt gave no reason"),
    ],
)
def test_failures_in_words(machine, output, words):
    machine(f"echo '{output}' >&2; exit 100")
    with pytest.raises(Refusal, match="package: is 'thing'") as refusal:
        debian.fetch_debian_package("thing", FILES, "package")
    assert words in str(refusal.value)


def test_a_full_disk_is_no_refusal(machine):
    machine("echo 'E: write: No space left on device' >&2; exit 100")
    with pytest.raises(OSError, match="No space left"):
        debian.fetch_debian_package("thing", FILES)


def test_a_machine_without_apt(machine, tmp_path):
    with pytest.raises(Refusal, match=r"this machine has no (apt-get|dpkg-deb) to fetch it with; install it"):
        debian.fetch_debian_package("thing", FILES)
    with pytest.raises(Refusal, match="must be the name of a Debian package"):
        debian.fetch_debian_package("../thing", FILES)
    assert Path(tmp_path / "root").exists() is False
