"""`distill doctor`: lines for people, an exit status for scripts, and a real all-reduce."""

import pytest

from distill_system import cli
from distill_system.commands import doctor
from distill_system.commands.doctor import Line


def test_status_and_words(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "machine", lambda run_dir: iter([Line("python", "3.12"), Line("disk", "full", "free some")])
    )
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok    python: 3.12\nLOOK  disk: full -> free some\n\n1 finding to look at.\n"
    monkeypatch.setattr(doctor, "machine", lambda run_dir: iter([Line("python", "3.12")]))
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\n\nAll is well.\n")


def test_a_refused_config_is_told_before_anything_is_looked_at(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "machine", lambda run_dir: pytest.fail("looked at the machine"))
    assert cli.main(["doctor", "experiment=demo_quick", "training.batch_siz=3"]) == 2
    assert "training.batch_siz: is not a setting here" in capsys.readouterr().err


def test_disk(tmp_path, monkeypatch):
    assert doctor.disk(tmp_path / "runs").what == "disk"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e9}))
    assert "free some space" in doctor.disk(tmp_path / "runs").advice
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path / "runs").advice == "choose another run.dir"


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-here",))
    monkeypatch.setattr(doctor, "all_reduce", lambda: Line("all-reduce of two ranks", "right"))
    lines = {line.what: line for line in doctor.machine(tmp_path)}
    assert lines["no-such-package-here"].advice == "pip install no-such-package-here"
    assert {"python", "devices", "disk", "W&B", "Slurm"} <= set(lines)


def test_all_reduce_can_fail(monkeypatch):
    monkeypatch.setattr(doctor, "ALL_REDUCE", "raise SystemExit('no such interface')")
    line = doctor.all_reduce()
    assert (line.finding, line.advice) == ("failed", "no such interface")


def test_all_reduce():
    line = doctor.all_reduce()
    assert line.advice == ""
    assert line.finding.startswith("right sums, ")
