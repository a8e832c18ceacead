"""A sweep's table, plot and page."""

import json

import pytest

from distill_system.tracking.progress import print_rows
from distill_system.tracking.sweep import as_dict, panel, short_keys, sweep_rows, swept_keys, table_rows, write_sweep
from tests.tracking.fake_run import sweep_members

KEY = "phases.student.losses.soft.temperature"


@pytest.fixture(scope="module")
def numeric(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep_members(folder, [4, 1, 2])


def test_page_and_json(numeric):
    folder, members = numeric
    members = [*members, {"overrides": [f"{KEY}=8"], "run_folder": folder / "never"}]
    page = write_sweep(folder, members)
    found = json.loads((folder / "sweep.json").read_text())
    assert found["swept"] == [KEY]
    assert [member["overrides"][KEY] for member in found["members"]] == [4, 1, 2, 8]
    assert [member["state"] for member in found["members"]] == ["finished", "finished", "finished", "not started"]
    assert found["best"] == "member-1"
    html = page.read_text()
    assert "Best: temperature 1, with accuracy 0.8182." in html
    assert 'href="../member-2/report/index.html"' in html
    assert (page.parent / "sweep.png").exists()
    assert "http" not in html.replace("http-equiv", "")


def test_rows_print_as_a_table(numeric, capsys):
    print_rows(table_rows(sweep_rows(numeric[1])))
    text = capsys.readouterr().out
    assert "temperature" in text
    assert "0.8182" in text


def test_numbers_get_an_axis_and_words_get_bars(numeric, tmp_path):
    rows = sweep_rows(numeric[1])
    assert panel(rows).title == "accuracy of student over temperature"
    words = sweep_rows(
        sweep_members(tmp_path, ["soft_target", "logit_regression"], key="losses@phases.student.losses.soft")
    )
    assert panel(words).title == "accuracy of student"
    assert panel(words).draw() is not None


def test_keys_are_short_but_different():
    assert short_keys(["a.soft.weight", "a.hard.weight", "b.lr"]) == {
        "a.soft.weight": "soft.weight",
        "a.hard.weight": "hard.weight",
        "b.lr": "lr",
    }
    rows = [{"overrides": {"lr": 1, "seed": 3}}, {"overrides": {"lr": 2, "seed": 3}}]
    assert swept_keys(rows) == ["lr"]
    assert swept_keys(rows[:1]) == ["lr", "seed"]
    assert as_dict(["+a=1", "b=0.5", "c=nan", "d=x=y", "hub.token=abc"]) == {
        "a": 1,
        "b": 0.5,
        "c": "nan",
        "d": "x=y",
        "hub.token": "*****",
    }


def test_an_empty_sweep_is_still_a_page(tmp_path):
    assert write_sweep(tmp_path, []).exists()
