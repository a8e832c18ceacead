"""What a rank tells of its failure, and which rank's word counts."""

import errno
import json
import signal

from distill_system.errors import Problem, Refusal
from distill_system.scheduling.failure import Failure, describe, first_failure, leave, refusal_text


def test_a_full_disk_is_found_behind_other_errors():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/model.safetensors")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        failure = describe(error)
    assert (failure.kind, failure.status) == ("disk", 1)
    assert failure.text.startswith("The disk is full while writing /data/model.safetensors: free some space")
    text = describe(RuntimeError("I/O error: No space left on device (os error 28)")).text  # as safetensors says it
    assert text.startswith("The disk is full")


def test_a_crash_keeps_its_traceback_and_a_refusal_has_none():
    try:
        raise ValueError("odd")
    except ValueError as error:
        failure = describe(error, rank=3)
    assert failure.kind == "crashed"
    assert failure.text.startswith("Traceback")
    assert failure.text.endswith("ValueError: odd\n(rank 3)")
    refused = describe(Refusal([Problem("a", "x"), Problem("b", "y")]))
    assert (refused.kind, refused.status) == ("refused", 2)
    assert refused.text == "distill: 2 problems, nothing was started:\n  a: x\n  b: y"
    assert refusal_text(Refusal([Problem("a", "x")])).startswith("distill: 1 problem,")


def test_the_earliest_story_counts(tmp_path, monkeypatch):
    files = [tmp_path / str(rank) / "error.json" for rank in range(3)]
    monkeypatch.setenv("DISTILL_LAUNCHED", "1")
    for rank, moment in ((0, 20.0), (2, 10.0)):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[rank]))
        leave(Failure("crashed", f"story {rank}", 1, moment, rank))
    assert json.loads(files[2].read_text())["text"] == "story 2"
    assert first_failure(files, [None, None, 1]).text == "story 2"
    assert first_failure(files, [-signal.SIGABRT, None, 1], moment=15.0).text == "story 2"  # it told before it was seen


def test_a_killed_rank_goes_before_those_that_complain_of_it(tmp_path, monkeypatch):
    files = [tmp_path / "0", tmp_path / "1"]
    monkeypatch.setenv("DISTILL_LAUNCHED", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[0]))
    leave(Failure("crashed", "connection closed by peer", 1, 20.0, 0))
    assert first_failure(files, [None, -signal.SIGSEGV], moment=10.0).text.startswith("rank 1 was killed by SIGSEGV")
    assert first_failure(files, [1, -signal.SIGKILL], moment=30.0).text.startswith("rank 1 was killed by SIGKILL")


def test_without_any_word(tmp_path):
    assert first_failure([tmp_path / "0"], [5, 0]).text == "ranks ended with status [5, 0], without a word"


def test_leave_without_a_launcher_speaks(capsys, monkeypatch):
    monkeypatch.delenv("DISTILL_LAUNCHED", raising=False)
    leave(Failure("disk", "full", 1))
    assert capsys.readouterr().err == "full\n"
