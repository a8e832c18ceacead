"""What `export=...` writes when a run is finished: the last phase's model, once."""

import pytest

from distill_system.commands import export
from distill_system.scheduling.exporting import export_last


@pytest.fixture
def asked(monkeypatch):
    calls = []
    monkeypatch.setattr(export, "main", calls.append)
    return calls


def config(form):
    return {"phases": {"teacher": {}, "student": {}}, "export": {"format": form}}


def test_the_last_phase_is_written_once(tmp_path, asked):
    (tmp_path / "student" / "model").mkdir(parents=True)
    export_last(tmp_path, config("onnx"))
    assert asked == [[str(tmp_path / "student"), "format=onnx"]]
    (tmp_path / "student" / "onnx").mkdir()
    export_last(tmp_path, config("onnx"))
    assert len(asked) == 1


def test_nothing_is_written_where_nothing_is_asked_or_there(tmp_path, asked):
    export_last(tmp_path, config("onnx"))  # the phase left no model
    (tmp_path / "student" / "model").mkdir(parents=True)
    export_last(tmp_path, config(None))
    export_last(tmp_path, {"phases": config(None)["phases"]})  # of a run before there was such a setting
    assert asked == []
