"""Fetching from a folder that plays the registry: hashes, safe unpacking, no foreign code, one download for many processes, no leftovers."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from distill_system import packages
from distill_system.errors import Refusal


def make_wheel(folder: Path, **files: str) -> str:
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_data/words.txt", "one two")
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        for name, text in files.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_sdist(folder: Path, setup: str) -> str:
    path = folder / "tiny-source-2.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"setup.py": setup, "PKG-INFO": "Name: tiny-source\nVersion: 2.0\n"}.items():
            member = tarfile.TarInfo(f"tiny-source-2.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "packages").iterdir() if not path.name.endswith(".lock")]


def test_wheel_is_unpacked_and_then_needs_no_registry(registry, tmp_path):
    sha256 = make_wheel(registry)
    folder = packages.fetch_package("tiny-data", "1.0", sha256)
    assert folder == packages.package_folder("tiny-data", "1.0", sha256)
    assert folder.name == f"tiny-data-1.0-{sha256[:8]}"
    assert (folder / "tiny_data" / "words.txt").read_text() == "one two"
    assert leftovers(tmp_path / "cache") == [folder.name]
    (registry / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert packages.fetch_package("tiny-data", "1.0", sha256) == folder


def test_sdist_runs_nothing_of_the_package(registry, tmp_path):
    trace = tmp_path / "it_ran"
    sha256 = make_sdist(registry, f"open({str(trace)!r}, 'w')\nraise SystemExit('no')\n")
    folder = packages.fetch_package("tiny-source", "2.0", sha256, kind="sdist")
    assert (folder / "tiny-source-2.0" / "setup.py").is_file()
    assert not trace.exists()


def test_another_hash_is_refused_and_leaves_nothing(registry, tmp_path):
    make_wheel(registry)
    with pytest.raises(Refusal, match="another sha256") as refused:
        packages.fetch_package("tiny-data", "1.0", "0" * 64)
    assert refused.value.problems[0].key == "package"
    assert "\n" not in refused.value.problems[0].message
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("name", "version", "sha256", "word"),
    [
        ("no-such-package", "1.0", "0" * 64, "no such wheel"),
        ("tiny-data", "1.0", "0" * 63, "64 hex digits"),
        ("tiny-data --index-url=x", "1.0", "0" * 64, "must be a name"),
    ],
)
def test_refusals(registry, name, version, sha256, word):
    with pytest.raises(Refusal, match=word):
        packages.fetch_package(name, version, sha256)


def test_without_a_network(registry, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(Refusal, match="registry can't be reached"):
        packages.fetch_package("tiny-data", "1.0", "0" * 64)


def test_a_full_disk_is_no_refusal():
    assert isinstance(packages._explain("x", "wheel", "ERROR: [Errno 28] No space left on device"), OSError)


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt"])
def test_zip_with_a_path_outside(tmp_path, name):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(name, "x")
    (tmp_path / "into").mkdir()
    with pytest.raises(Refusal, match="leads outside"):
        packages.unpack(archive, tmp_path / "into")


@pytest.mark.parametrize("link", ["../outside", "/etc"])
def test_tar_with_a_link_outside(tmp_path, link):
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tarred:
        member = tarfile.TarInfo("inner")
        member.type, member.linkname = tarfile.SYMTYPE, link
        tarred.addfile(member)
    (tmp_path / "into").mkdir()
    with pytest.raises(Refusal, match="can't be unpacked safely"):
        packages.unpack(archive, tmp_path / "into")


def test_two_processes_download_once(registry, tmp_path):
    sha256 = make_wheel(registry)
    # What a killed process left behind is removed by the next that holds the lock.
    half = packages.package_folder("tiny-data", "1.0", sha256)
    (half.parent / f".part-{half.name}-killed").mkdir(parents=True)
    code = (
        "from distill_system import packages\n"
        "real = packages._download\n"
        "packages._download = lambda *a: print('download') or real(*a)\n"
        f"print(packages.fetch_package('tiny-data', '1.0', '{sha256}'))\n"
    )
    start = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in started]
    assert sorted(map(len, printed)) == [1, 2]  # one of them downloaded
    assert {lines[-1] for lines in printed} == {str(half)}
    assert leftovers(tmp_path / "cache") == [half.name]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert packages.cache_folder() == tmp_path
    monkeypatch.delenv("DISTILL_CACHE")
    assert packages.cache_folder() == Path.home() / ".cache" / "distill_system"
