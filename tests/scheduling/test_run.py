"""Running again, two at once, and ranks that somebody else has started: what is skipped, continued, judged anew or refused."""

import json
import os
import subprocess
import sys

import pytest

from distill_system import cli
from distill_system.errors import Refusal
from distill_system.scheduling import run
from distill_system.scheduling.lock import locked
from distill_system.scheduling.run import adopt_slurm_environment, composed, first_host
from tests.config.files import model_folder
from tests.scheduling.finished import finish


@pytest.fixture
def started(monkeypatch):
    """Starts of ranks, as (folder, keyword arguments); no rank is started."""
    starts = []
    monkeypatch.setattr(run, "launch", lambda folder, **settings: starts.append((folder, settings)) or 0)
    return starts


@pytest.fixture
def done(words):
    """The same run, finished."""
    config, problems = composed(words, None)
    assert problems == []
    finish(config, "teacher")
    finish(config, "student")
    return words


def test_a_new_run_starts_ranks_on_a_written_config(words, started, tmp_path):
    assert cli.main(["run", *words, "training.threads=3"]) == 0
    folder = tmp_path / "runs" / "demo_quick"
    assert started == [(folder, {"ranks": 2, "threads": 3, "shutdown_timeout_s": 8.0})]
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["command"].startswith("distill run experiment=demo_quick tracking=none run.dir=")


def test_a_finished_run_starts_nothing(done, started, capsys):
    assert cli.main(["run", *done]) == 0
    assert started == []
    assert "Nothing to do: every phase of this run is finished." in capsys.readouterr().out


def test_an_unfinished_run_goes_on(done, started):
    assert cli.main(["run", *done, "+phases@phases.more=finetune", "+models@phases.more.model=minilm"]) == 0
    assert len(started) == 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("phases.student.losses.soft.temperature=4", "losses.soft.temperature: 2.0 -> 4"),
        ("training.max_steps=3", "training.max_steps: None -> 3"),
        ("phases.student.training.lr=1", "training.lr: 0.0003 -> 1"),
        ("data.limit=10", "data.limit: 640 -> 10"),
        ("seed=5", "seed: 0 -> 5"),
        ("losses@phases.student.losses.soft=logit_regression", "losses.soft._target_:"),
        ("phases.student.model.frozen=[]", "model.frozen: ['*embeddings*'] -> []"),
    ],
)
def test_changed_settings_of_a_finished_phase_are_refused_and_shown(change, shown, done, started, capsys):
    assert cli.main(["run", *done, change]) == 2
    err = capsys.readouterr().err
    assert "phases.student: is finished in demo_quick, but with other settings:" in err
    assert shown in err
    assert "choose another run.name, or run.overwrite=true" in err
    assert started == []


@pytest.mark.parametrize(
    "change",
    ["training=zero3", "training.devices=1", "training.accumulation=2", "phases.student.teachers.main.placement=zero3"],
)
def test_where_it_runs_may_change(change, done, started):
    assert cli.main(["run", *done, change]) == 0
    assert started == []


def test_another_model_of_the_teacher_is_seen(done, started, capsys, tmp_path):
    path = tmp_path / "runs" / "demo_quick" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["phases"]["teacher"]["digest"] = "another"
    path.write_text(json.dumps(manifest))
    assert cli.main(["run", *done]) == 2
    assert "(the model of phase teacher): digest of te -> another" in capsys.readouterr().err


def test_overwrite_starts_afresh(done, started, tmp_path):
    folder = tmp_path / "runs" / "demo_quick"
    assert cli.main(["run", *done, "seed=5", "run.overwrite=true"]) == 0
    assert len(started) == 1
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "manifest.json"}
    assert cli.main(["run", *done, "seed=5"]) == 0  # it isn't stored: going on doesn't start afresh again
    assert "overwrite: false" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("content", ["config.yaml", "manifest.json", "notes.txt"])
def test_a_folder_of_something_else_is_never_touched(content, words, started, tmp_path, capsys):
    other = tmp_path / "runs" / "demo_quick"
    other.mkdir(parents=True)
    (other / content).write_text("{}")
    assert cli.main(["run", *words, "run.overwrite=true"]) == 2
    assert "holds something else than a run" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == [content]
    assert started == []


def test_a_damaged_manifest_is_named_and_can_be_overwritten(done, started, tmp_path, capsys):
    folder = tmp_path / "runs" / "demo_quick"
    with locked(folder):
        pass
    (folder / "manifest.json").write_text("{")
    assert cli.main(["run", *done]) == 2
    assert "run.overwrite=true starts afresh" in capsys.readouterr().err
    assert cli.main(["run", *done, "run.overwrite=true"]) == 0
    assert len(started) == 1


def recorded(tmp_path):
    return json.loads((tmp_path / "runs" / "demo_quick" / "manifest.json").read_text())["phases"]["student"]


def test_other_weights_in_a_teachers_folder_are_seen(words, started, capsys, tmp_path):
    teacher = model_folder(tmp_path / "outside")
    words += ["phases.student.teachers.main.phase=null", f"phases.student.teachers.main.model={teacher}"]
    config, problems = composed(words, None)
    assert problems == []
    finish(config, "teacher")
    finish(config, "student")
    assert cli.main(["run", *words]) == 0
    weights = next(teacher.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert cli.main(["run", *words]) == 2
    assert "teacher_content.main.digest:" in capsys.readouterr().err


def test_a_gate_that_is_set_later_judges_what_is_finished(done, started, capsys, tmp_path):
    assert cli.main(["run", *done, "phases.student.gate={metric:accuracy,at_least:0.9}"]) == 3
    assert "phase student has accuracy 0.5, its gate asks for at_least 0.9" in capsys.readouterr().out
    assert recorded(tmp_path)["state"] == "gated"
    assert cli.main(["run", *done, "phases.student.gate={metric:accuracy,at_least:0.4}"]) == 0
    assert recorded(tmp_path)["state"] == "finished"
    assert recorded(tmp_path)["gate"]["passed"] is True
    assert started == []


def test_several_nodes_are_refused_here_unless_all_is_done(words, started, capsys):
    assert cli.main(["run", *words, "training.nodes=2"]) == 2
    assert "training.nodes: is 2: several nodes are started by srun or torchrun" in capsys.readouterr().err


def test_a_finished_run_of_several_nodes_is_shown(done, started):
    assert cli.main(["run", *done, "training.nodes=2"]) == 0
    assert started == []


def test_a_second_process_on_a_run_folder_is_refused(words, started, tmp_path, capsys):
    folder = tmp_path / "runs" / "demo_quick"
    code = (
        "import sys; from pathlib import Path; from distill_system.scheduling.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, folder], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert cli.main(["run", *words]) == 2
        assert f"run.name: is 'demo_quick', which process {holder.pid} on " in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()
    assert cli.main(["run", *words]) == 0  # the lock ends with its holder, however that ends
    assert len(started) == 1


# Ranks that torchrun or srun has started


@pytest.fixture
def as_rank(monkeypatch):
    ran = []
    monkeypatch.setattr("distill_system.scheduling.rank.main", lambda folder: ran.append(folder) or 0)
    monkeypatch.setattr(run, "SETTLE_S", 0.0)
    monkeypatch.setenv("MASTER_PORT", "1234")

    def become(rank, world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        return ran

    return become


def test_a_wrong_count_of_ranks_is_told_by_one(words, as_rank, capsys, tmp_path):
    as_rank(0, 4)
    assert cli.main(["run", *words]) == 2
    err = capsys.readouterr().err
    assert (
        "training.devices: x training.nodes is 2, but 4 ranks were started; set training.devices=4 (or start 2)" in err
    )
    as_rank(3, 4)
    assert cli.main(["run", *words]) == 2
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "runs").exists()


def test_rank_0_prepares_and_the_others_follow(words, as_rank, tmp_path):
    folder = tmp_path / "runs" / "demo_quick"
    assert as_rank(0, 2) == []
    assert cli.main(["run", *words]) == 0
    ran = as_rank(1, 2)
    assert cli.main(["run", *words]) == 0
    assert ran == [folder, folder]


def test_all_ranks_leave_a_finished_run(done, as_rank):
    for rank in (0, 1):
        ran = as_rank(rank, 2)
        assert cli.main(["run", *done]) == 0
    assert ran == []


def test_when_rank_0_refuses_the_others_leave_too(done, as_rank, capsys):
    for rank in (0, 1):
        ran = as_rank(rank, 2)
        assert cli.main(["run", *done, "seed=7"]) == 2
    assert ran == []
    assert capsys.readouterr().err.count("is finished in demo_quick, but with other settings") == 2  # one a phase, once


def test_the_word_of_an_earlier_start_does_not_count(done, as_rank, capsys, tmp_path):
    as_rank(0, 2)
    assert cli.main(["run", *done, "seed=7"]) == 2  # leaves "refused"
    ran = as_rank(0, 2)
    assert cli.main(["run", *done, "seed=7", "run.overwrite=true"]) == 0
    as_rank(1, 2)
    assert cli.main(["run", *done, "seed=7", "run.overwrite=true"]) == 0
    assert len(ran) == 2


def test_no_sweep_among_given_ranks(words, as_rank, capsys):
    as_rank(0, 2)
    assert cli.main(["run", "-m", *words]) == 2
    assert "-m: starts its members itself" in capsys.readouterr().err


def test_names_that_srun_gives(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that they are restored
        monkeypatch.delenv(name)
    values = {"PROCID": 5, "STEP_NUM_TASKS": 8, "LOCALID": 1, "STEP_NODELIST": "gpu[003-005,9]", "JOB_ID": 43210}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    adopt_slurm_environment()
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert found == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": "23210",
    }
    monkeypatch.setenv("RANK", "0")  # torchrun inside srun: its own names stand
    monkeypatch.setenv("SLURM_PROCID", "7")
    adopt_slurm_environment()
    assert os.environ["RANK"] == "0"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu001", "gpu001"),
        ("a,b", "a"),
        ("gpu[003-005,9]", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("login,gpu[1-2]", "login"),
        ("n[1-2],m[3-4]", "n1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_a_lock_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Refusal, match=r"run\.dir: is .*where no run folder can be made"),
        locked(tmp_path / "file" / "x"),
    ):
        pass
