"""Files that are whole or not there, whatever happens on the way."""

import json
import os
import stat

import pytest

from distill_system import files
from distill_system.files import (
    TEMPORARY,
    digest_file,
    digest_value,
    folder_atomic,
    folder_size,
    read_json,
    remove_leftovers,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(
        files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [None, 0.5]})
    assert read_json(path) == {"b": 1, "a": [None, 0.5]}
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="Out of range float"):  # what no other reader of JSON takes
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text())["b"] == 1


def test_folder_atomic_replaces_whole_folders(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with folder_atomic(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(TEMPORARY)
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
            assert not (target / "sub" / content).exists()
    assert names(target / "sub") == ["two"]
    assert names(tmp_path) == ["model"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_folder_atomic_vanishes_when_it_fails(tmp_path):
    def fail():
        with folder_atomic(tmp_path / "model") as temporary:
            (temporary / "half").write_text("")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert names(tmp_path) == []


def test_remove_leftovers(tmp_path):
    (tmp_path / f"{TEMPORARY}file").write_text("")
    (tmp_path / f"{TEMPORARY}folder" / "deep").mkdir(parents=True)
    (tmp_path / "keep" / f"{TEMPORARY}below").mkdir(parents=True)
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nothing")
    assert names(tmp_path) == ["keep"]
    assert names(tmp_path / "keep") == [f"{TEMPORARY}below"]


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_value({"a": 1, "b": 2}) == digest_value({"b": 2, "a": 1})
    assert digest_value({"a": 1}) != digest_value({"a": 1.5})
    assert digest_value([1, 2]) != digest_value([2, 1])


def test_folder_size(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"12")
    assert folder_size(tmp_path) == 7
    assert os.stat(tmp_path / "b").st_size == 2
