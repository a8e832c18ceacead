"""The launcher with ranks that cost nothing: whatever happens to one, all end, in time, and it is told once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distill_system.scheduling import local
from distill_system.scheduling.local import launch, rank_environment

RANK = str(Path(__file__).with_name("fake_rank.py"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def find_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import torch.distributed.elastic.multiprocessing  # noqa: F401 (seconds, that don't belong to what is timed)


def start(mode, folder, *, timeout=8.0):
    return launch(folder, ranks=2, threads=1, shutdown_timeout_s=timeout, command=(RANK, mode, str(folder)))


def wait_for_ranks(folder, count=2):
    deadline = time.monotonic() + 30
    while len(list(folder.glob("pid?"))) < count:
        assert time.monotonic() < deadline, "the ranks didn't start"
        time.sleep(0.02)
    return [int(path.read_text()) for path in folder.glob("pid?")]


def send(folder, *signals, pause=0.3):
    """Sends signals to this process once its ranks are up."""

    def act():
        wait_for_ranks(folder)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(pause)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("mode", "status"), [("finish", 0), ("gate", 3)])
def test_the_status_that_all_ranks_agree_on(mode, status, tmp_path, capfd):
    assert start(mode, tmp_path) == status
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["crash", "crash_and_wait"])
def test_a_crash_ends_all_and_is_told_once(mode, tmp_path, capfd):
    began = time.monotonic()
    assert start(mode, tmp_path) == 1
    assert time.monotonic() - began < 10
    err = capfd.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    assert err.count("RuntimeError: the first story") == 1
    assert "(rank 1)" in err
    assert "lost a peer" not in err
    assert not any(alive(pid) for pid in wait_for_ranks(tmp_path))


def test_a_killed_rank_is_named(tmp_path, capfd):
    began = time.monotonic()
    assert start("killed", tmp_path) == 1
    assert time.monotonic() - began < 10
    err = capfd.readouterr().err
    assert err.startswith("rank 1 was killed by SIGKILL (out of memory, if nobody did it by hand); the same command")
    assert not any(alive(pid) for pid in wait_for_ranks(tmp_path))


@pytest.mark.parametrize(
    ("mode", "status", "words"), [("refuse", 2, "data.path: is wrong"), ("disk", 1, "The disk is full")]
)
def test_a_refusal_and_a_full_disk_are_told_in_words(mode, status, words, tmp_path, capfd):
    assert start(mode, tmp_path) == status
    err = capfd.readouterr().err
    assert err.count(words) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_lets_the_ranks_save(number, tmp_path, capfd):
    before = signal.getsignal(number)
    send(tmp_path, number)
    assert start("save", tmp_path) == 143
    assert capfd.readouterr().err == ""
    assert signal.getsignal(number) == before


def test_ranks_that_do_not_leave_are_killed_in_time(tmp_path, capfd):
    send(tmp_path, signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start("stubborn", tmp_path, timeout=1.0)
    assert time.monotonic() - began < 10
    assert "there is no checkpoint yet" in capfd.readouterr().err
    assert not any(alive(pid) for pid in wait_for_ranks(tmp_path))


def test_ranks_killed_after_a_save_leave_a_run_that_can_go_on(tmp_path, capfd):
    (tmp_path / "student" / "checkpoints" / "step_00000003").mkdir(parents=True)
    send(tmp_path, signal.SIGTERM)
    assert start("stubborn", tmp_path, timeout=1.0) == 143
    assert "goes on from the last checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize("pause", [0.5, 0.0])
def test_a_second_interrupt_means_now(pause, tmp_path):
    send(tmp_path, signal.SIGINT, signal.SIGINT, pause=pause)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start("stubborn", tmp_path, timeout=60.0)
    assert time.monotonic() - began < 10
    assert not any(alive(pid) for pid in wait_for_ranks(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_ranks_die_with_a_killed_launcher(tmp_path):
    code = (
        "import sys; from pathlib import Path; from distill_system.scheduling.local import launch;"
        "launch(Path('.'), ranks=2, threads=1, shutdown_timeout_s=8, command=sys.argv[1:])"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, RANK, "stubborn", str(tmp_path)])
    pids = wait_for_ranks(tmp_path)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_the_environment_of_a_rank(monkeypatch):
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    environment = rank_environment(3, None, 1234)
    assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["MASTER_PORT"] == "1234"
    assert rank_environment(3, 5, 1)["OMP_NUM_THREADS"] == "5"
    assert rank_environment(16, None, 1)["OMP_NUM_THREADS"] == "1"
