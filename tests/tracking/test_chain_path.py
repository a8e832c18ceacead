"""The way of a model through a chain: the right phases in the right order, bytes from the disk, names that stand on nothing."""

import itertools
import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_system.tracking import pictures
from distill_system.tracking.chain_path import chain, chain_panels, chain_rows, metric_of, stations, way, weight_bytes
from distill_system.tracking.chain_plots import LINE, Stop, latencies, name_places, path
from distill_system.tracking.plots import LETTER
from distill_system.tracking.report import Run, load_run, report_json, write_report
from tests.tracking.fake_members import RUNS as MEMBERS
from tests.tracking.fake_pruning import pruning_run
from tests.tracking.fake_quantization import PARTS, SMALL, WHOLE, chain_run, files, single_run, ternary
from tests.tracking.fake_run import classification_run


def plain(text):
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chain_run(tmp_path_factory.mktemp("runs") / "chain")


@pytest.fixture(scope="module")
def html(folder):
    return plain(write_report(folder).read_text(encoding="utf-8"))


def entry(model=None, teacher=None, kind="distill", **more):
    inputs = {"model.phase": {"phase": model}} if model else {}
    inputs |= {"teachers.main.phase": {"phase": teacher}} if teacher else {}
    return {"kind": kind, "inputs": inputs, "metrics": {"accuracy": 0.5}, **more}


def run_of(tmp_path, **phases):
    return Run(tmp_path, "r", {"phases": phases}, [])


def test_the_page_shows_the_way(folder, html):
    section = html.split("From teacher to quantize")[1].split("</section>")[0]
    assert (
        "quantize, packed, has 3.0 % of teacher’s bytes (2.75 MB of 90.9 MB), 96.7 % of its accuracy (0.8244 against 0.8521) "
        "and answers 3.0 times as fast."
    ) in section
    assert [name for name in ("teacher", "assistant", "student", "neurons", "quantize") if f'row">{name}<' in section]
    assert section.count("<svg") == 2
    assert {"chain_path.png", "chain_latency.png"} <= {path.name for path in (folder / "report").iterdir()}


def test_bytes_are_those_of_the_disk(folder, tmp_path):
    rows = {row["phase"]: row for row in chain_rows(load_run(folder))}
    assert list(rows) == ["teacher", "assistant", "student", "neurons", "quantize"]
    assert rows["teacher"]["size_bytes"] == 4 * WHOLE + 9_000  # the manifest says 9,000 less
    assert rows["assistant"]["size_bytes"] == 4 * 19_170_000  # its folder isn't there
    assert (rows["quantize"]["size_bytes"], rows["quantize"]["packed_bytes"]) == (4 * SMALL, sum(PARTS.values()))
    assert rows["quantize"]["packed_latency_p50_ms"] == pytest.approx(9.42 * 0.24)
    assert (rows["quantize"]["metric"], rows["quantize"]["value"]) == ("accuracy", 0.8244)
    assert (rows["neurons"]["packed_bytes"], rows["neurons"]["nonzeros"]) == (None, SMALL)
    assert report_json(load_run(folder))["chain"] == list(rows.values())
    assert weight_bytes(tmp_path) is None
    files(tmp_path, 30, "model-1.safetensors")
    files(tmp_path, 12, "model-2.safetensors")
    files(tmp_path, 99, "grids.safetensors")  # says how weights lie, and is none
    files(tmp_path, 99, "tokenizer.json")
    assert weight_bytes(tmp_path) == 42


def test_the_way_follows_models_then_teachers(tmp_path):
    run = run_of(
        tmp_path,
        teacher=entry(kind="finetune"),
        other=entry(kind="finetune"),
        student=entry(teacher="teacher"),
        side=entry("teacher", "other"),
        look={"kind": "sensitivity", "inputs": {"model.phase": {"phase": "student"}}, "sensitivity": {}},
        small=entry("student", "teacher", kind="prune"),
        unfinished={"kind": "quantize", "inputs": {"model.phase": {"phase": "small"}}, "state": "running"},
    )
    assert way(run) == ["teacher", "student", "small"]
    assert [one.name for one in stations(run)] == ["teacher", "student", "small"]
    members = run_of(
        tmp_path, teacher=entry(kind="finetune"), cohort=entry(teacher="teacher"), last=entry("cohort.a", "teacher")
    )
    assert way(members) == ["teacher", "cohort", "last"]
    assert way(run_of(tmp_path, a=entry("b"), b=entry("a"))) == ["a", "b"]  # no way out, but an end
    assert way(run_of(tmp_path)) == []


@pytest.mark.parametrize("make", [classification_run, single_run])
def test_two_phases_are_no_chain(make, tmp_path):
    run = load_run(make(tmp_path / "run"))
    assert stations(run) == []
    assert chain(run)["rows"] == chain_panels(run) == []
    assert "chain" not in report_json(run)
    assert "From teacher to" not in write_report(run.folder).read_text()


@pytest.mark.parametrize("make", [chain_run, pruning_run, *MEMBERS])
def test_layouts_hold(make, tmp_path):
    for panel in chain_panels(load_run(make(tmp_path / "run"))):
        with pictures.style(), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pictures.svg(panel.draw(), "f", panel.title).startswith("<svg viewBox=")


def test_stations_may_lack_figures(tmp_path):
    run = run_of(tmp_path, a=entry(kind="finetune"), b=entry("a"), c=entry("b", metrics={"perplexity": 9.0}))
    assert metric_of(stations(run)) is None
    assert chain_panels(run) == []
    assert chain(run)["rows"] == []  # a table of nothing
    (tmp_path / "manifest.json").write_text(json.dumps({"run": "r", "phases": run.phases}))
    assert "From a to c" not in write_report(tmp_path).read_text()
    lower = {"perplexity": 20.0}
    sized = [entry(kind="finetune", metrics=lower, size_bytes=8e6), entry("a", metrics=lower, size_bytes=4e6)]
    last = entry("b", metrics={"perplexity": 25.0}, size_bytes=2e6, quantization=ternary() | {"packed": None})
    words = plain(chain(run_of(tmp_path, a=sized[0], b=sized[1], c=last))["words"])
    assert words == "c has 25 % of a’s bytes (2.00 MB of 8.00 MB) and a perplexity (25.000 against 20.000)."


def test_arrows_go_from_each_to_the_next():
    stops = [Stop("a", 90e6, 0.85), Stop("b", 50e6, 0.83), Stop("b", 2e6, 0.83, packed=True)]
    with pictures.style():
        axes = path(stops, "accuracy").axes[0]
        arrows = [(text.xyann, text.xy) for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
        assert arrows == [((90e6, 0.85), (50e6, 0.83)), ((50e6, 0.83), (2e6, 0.83))]
        assert axes.get_xlim()[0] > axes.get_xlim()[1]  # smaller is further right
        assert [line.get_marker() for line in axes.lines[:3]] == ["o", "o", "s"]
        same = path([Stop("x", 5e6, 0.5)] * 3, "accuracy").axes[0]
        assert same.get_ylim()[0] < 0.5 < same.get_ylim()[1]
        widths = [
            patch.get_width() for patch in latencies([("a", 4.0, False), ("a, packed", 1.0, True)]).axes[0].patches
        ]
    assert widths == [4.0, 1.0]


def boxes(names, places):
    widths = [1.1 * LETTER * len(name) + 0.01 for name in names]
    return [(x - w / 2, x + w / 2, y - LINE / 2, y + LINE / 2) for (x, y), w in zip(places, widths, strict=True)]


def shared(one, other):
    across = min(one[1], other[1]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[2], other[2])
    return across > 1e-9 and up > 1e-9


@given(
    st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.2, 0.8)), min_size=1, max_size=7),
    st.lists(st.sampled_from(["a", "student", "assistant-two"]), min_size=7, max_size=7),
)
@settings(max_examples=60, deadline=None)
def test_names_stand_near_their_points(points, names):
    names = names[: len(points)]
    places = name_places(names, points)
    for name, (x, y), (a, b) in zip(names, points, places, strict=True):
        assert abs(a - x) <= 0.62 * (1.1 * LETTER * len(name) + 0.04) + 1e-9
        assert abs(b - y) <= 2.1 * LINE + 1e-9
    far = [all(abs(x - a) > 0.35 or abs(y - b) > 0.35 for a, b in points if (a, b) != (x, y)) for x, y in points]
    for (i, one), (j, other) in itertools.combinations(enumerate(boxes(names, places)), 2):
        assert not (far[i] and far[j] and shared(one, other))


def test_crowded_names_stand_apart():
    """A pruned model, its quantized copy of the same bytes, and one of hardly more."""
    names = ["student", "neurons", "quantize", "layers"]
    points = [(0.20, 0.42), (0.26, 0.36), (0.26, 0.22), (0.24, 0.30)]
    found = boxes(names, name_places(names, points))
    assert not any(shared(one, other) for one, other in itertools.combinations(found, 2))
