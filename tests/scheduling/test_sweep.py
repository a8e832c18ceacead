"""Sweeps: every member is checked first, folders are named by their values, finished phases are shared, one table at the end."""

import json

import pytest

from distill_system import cli
from distill_system.config.plan import run_folder
from distill_system.manifest import Manifest
from distill_system.scheduling import run, sweep
from distill_system.scheduling.run import composed
from distill_system.scheduling.sweep import distinct_names, folder_name, share
from tests.scheduling.finished import finish

TEMPERATURE = "phases.student.losses.soft.temperature"


@pytest.fixture
def started(monkeypatch):
    """Members that were started; each finishes the phases that it doesn't have, at once."""
    import yaml

    starts, reports = [], []

    def launch(folder, **settings):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        manifest = Manifest.read(folder, folder.name)
        todo = [name for name in config["phases"] if not manifest.finished(name)]
        starts.append((folder.name, todo))
        for name in todo:
            finish(config, name)
        return 0

    monkeypatch.setattr(run, "launch", launch)
    monkeypatch.setattr(run, "show_finished", lambda *_: 0)
    monkeypatch.setattr(sweep, "_report", lambda folder, configs, command: reports.append(folder))
    return starts, reports


def test_members_share_what_they_have_in_common(words, started, tmp_path, capsys):
    starts, reports = started
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2,4"]) == 0
    assert starts == [
        ("temperature=1", ["teacher", "student"]),
        ("temperature=2", ["student"]),
        ("temperature=4", ["student"]),
    ]
    assert reports == [tmp_path / "runs" / "demo_quick"]
    out = capsys.readouterr().out
    assert "== 1 of 3: phases.student.losses.soft.temperature=1" in out
    assert out.count("phase teacher is taken over from temperature=1: same settings, same inputs") == 2
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2,4,8"]) == 0  # again, with one more
    assert starts[3:] == [("temperature=8", ["student"])]


def test_what_differs_is_not_shared(words, started):
    starts, _ = started
    assert cli.main(["run", "-m", *words, "phases.teacher.training.lr=1,2"]) == 0
    assert [todo for _, todo in starts] == [["teacher", "student"]] * 2


def test_a_student_of_another_teacher_is_not_shared(words):
    """Same settings of the student, but its teacher was trained otherwise."""
    configs = []
    for lr in (1, 2):
        config, problems = composed([*words, f"phases.teacher.training.lr={lr}", f"run.name=lr{lr}"], None)
        assert problems == []
        configs.append(config)
    finish(configs[0], "teacher")
    finish(configs[0], "student")
    manifest = Manifest.read(run_folder(configs[1]), "lr2")
    manifest.update("teacher", state="finished", digest="another", settings={})
    (run_folder(configs[1]) / "teacher" / "model").mkdir(parents=True)
    share(configs[1], manifest, [run_folder(configs[0])])
    assert "student" not in manifest.phases


def test_all_members_are_checked_before_the_first_starts(words, started, capsys):
    starts, _ = started
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,0,-2"]) == 2
    err = capsys.readouterr().err
    assert "2 problems, nothing was started" in err
    assert f"{TEMPERATURE}: is 0, must be > 0" in err
    assert f"{TEMPERATURE}: is -2, must be > 0" in err
    assert starts == []


def test_a_failed_member_does_not_keep_the_others(words, started, monkeypatch):
    starts, reports = started
    statuses = iter([1, 3, 0])
    monkeypatch.setattr(run, "launch", lambda folder, **_: starts.append(folder.name) or next(statuses))
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2,4"]) == 1
    assert len(starts) == 3
    assert len(reports) == 1


def test_a_refused_member_does_not_keep_the_others(words, started, tmp_path, capsys):
    starts, _ = started
    folder = tmp_path / "runs" / "demo_quick" / "temperature=1"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("")
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2"]) == 2
    assert "holds something else than a run" in capsys.readouterr().err
    assert [name for name, _ in starts] == ["temperature=2"]


@pytest.mark.parametrize("stop", [143, KeyboardInterrupt])
def test_a_signal_stops_the_whole_sweep(stop, words, started, monkeypatch):
    starts, reports = started

    def launch(folder, **_):
        starts.append(folder.name)
        if stop is KeyboardInterrupt:
            raise KeyboardInterrupt
        return stop

    monkeypatch.setattr(run, "launch", launch)
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2"]) == (143 if stop == 143 else 1)
    assert len(starts) == 1
    assert reports == []


def test_a_sweep_does_not_go_into_a_run(words, started, capsys):
    assert cli.main(["run", *words]) == 0
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2"]) == 2
    assert "run.name: is 'demo_quick', a run of its own already" in capsys.readouterr().err


def test_the_table_and_the_report(words, tmp_path, capsys, monkeypatch):
    """With the real report, over members that were finished before."""
    monkeypatch.setattr(run, "show_finished", lambda *_: 0)
    for value in (1, 2):
        more = [
            f"{TEMPERATURE}={value}",
            f"run.name='temperature={value}'",
            f"run.dir={tmp_path / 'runs' / 'demo_quick'}",
        ]
        config, problems = composed([*words, *more], None)
        assert problems == []
        for phase in ("teacher", "student"):
            finish(config, phase, accuracy=0.5 + value / 10)
    assert cli.main(["run", "-m", *words, f"{TEMPERATURE}=1,2"]) == 0
    table = capsys.readouterr().out.rpartition("== 2 of 2")[2]
    assert "0.6000" in table
    assert "0.7000" in table
    folder = tmp_path / "runs" / "demo_quick"
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "sweep.png"}
    assert json.loads((folder / "sweep.json").read_text())["best"] == "temperature=2"


def test_folder_name():
    assert folder_name([f"{TEMPERATURE}=4"]) == "temperature=4"
    assert folder_name(["a.lr=1e-3", "training=zero2"]) == "lr=1e-3,training=zero2"
    assert folder_name(["losses@phases.student.losses.soft=hard_label"]) == "soft=hard_label"
    assert folder_name(["+data.path=/tmp/x y.csv"]) == "path=_tmp_x_y.csv"
    assert folder_name([]) == "member"
    assert len(folder_name(["x=" + "y" * 500])) <= 150


def test_names_that_look_alike_are_told_apart():
    configs = [([text], {"run": {"name": folder_name([text])}}) for text in ("p=a/b", "p=a b", "p=c")]
    distinct_names(configs)
    names = [config["run"]["name"] for _, config in configs]
    assert len(set(names)) == 3
    assert names[2] == "p=c"
