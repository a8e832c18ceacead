"""Pruning in the report: right words and figures, from full records and from those that lack what is optional."""

import copy
import json
import warnings

import pytest

from distill_system.tracking import pictures, pruning_plots
from distill_system.tracking.curves import curve_panels, losses
from distill_system.tracking.pruning import artifact_words, before_after, rolled_back_words, sensitivity_words, summary
from distill_system.tracking.pruning_panels import (
    most_harmed,
    pruning_panels,
    round_panels,
    row_names,
    sensitivity_panels,
    share_panels,
)
from distill_system.tracking.pruning_parts import (
    Part,
    asked_of,
    bound_of,
    layers_that_stay,
    part_of,
    short_stems,
    stem_of,
)
from distill_system.tracking.pruning_plots import Point, change_words, scale_of, spaced, within_reach
from distill_system.tracking.report import Run, load_run, report_json, write_report
from tests.tracking.fake_pruning import RUNS, layers_record, neurons, odd_run, pruning_run, sensitivity, weights

BACK = {"round": 3, "step": 60, "metric": 0.71, "bound": "accuracy >= 0.8", "sparsity": 0.75, "handed_on": 2}


def plain(text):
    return text.replace("\u00a0", " ")


def drawn(panels):
    with pictures.style():
        return {panel.file: pictures.svg(panel.draw(), "f", panel.title) for panel in panels}


def run_of(tmp_path, **phases):
    return Run(tmp_path, "r", {"phases": phases}, [])


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = pruning_run(tmp_path_factory.mktemp("runs") / "chain")
    return folder, plain(write_report(folder).read_text(encoding="utf-8"))


def test_page_has_a_section_for_each_phase_that_pruned(chain):
    _, html = chain
    for words in ("Pruning: prune", "Pruning: narrow", "Pruning: shorten", "Sensitivity to pruning: sensitivity", "Sparsity by layer", "Which layers stay",
                  "Accuracy against what remains", "Suggested sparsity by layer", "Change of loss", "4,608 of 9,216 neurons were removed (50 %).",
                  "Chosen by mean activation in 5 rounds, linear schedule, towards 50 %.", "3 of 6 layers were removed (50 %).", "28 more</summary>",
                  "Rolled back in round 6 at step 120: accuracy was 0.7123 with 90 % removed, and the gate asks for at least 0.8."):  # fmt: skip
        assert words in html
    assert html.count("What was removed</h3>") == 3
    files = {path.name for path in (chain[0] / "report").iterdir()}
    assert files >= {
        "sparsity_prune.png",
        "rounds_prune.png",
        "layers_shorten.png",
        "sensitivity_sensitivity.png",
        "suggested_sensitivity.png",
    }


def test_report_json_carries_the_records(chain):
    phases = json.loads((chain[0] / "report" / "report.json").read_text())["phases"]
    manifest = json.loads((chain[0] / "manifest.json").read_text())["phases"]
    assert phases["prune"]["pruning"] == manifest["prune"]["pruning"]
    assert phases["sensitivity"]["sensitivity"]["groups"][0]["suggested"] == sensitivity()["groups"][0]["suggested"]
    assert "pruning" not in phases["teacher"]


def test_what_only_measured_is_no_model_among_models(chain):
    table = chain[1].split("At a glance")[1].split("</table>")[0]
    assert 'scope="row">shorten<' in table
    assert 'scope="row">sensitivity<' not in table


@pytest.mark.parametrize("make", RUNS)
def test_every_figure_can_be_drawn(make, tmp_path):
    run = load_run(make(tmp_path / "run"))
    panels = pruning_panels(run)
    assert len({panel.file for panel in panels}) == len(panels) >= 5
    assert all(svg.startswith("<svg viewBox=") for svg in drawn(panels).values())


@pytest.mark.parametrize("make", RUNS)
def test_layouts_hold(make, tmp_path):
    for panel in pruning_panels(load_run(make(tmp_path / "run"))):
        with pictures.style(), warnings.catch_warnings():
            warnings.simplefilter("error")  # a layout that isn't applied lets texts stand on bars
            pictures.png(panel.draw())


def test_odd_values_stay_text(tmp_path):
    html = plain(write_report(odd_run(tmp_path / "odd")).read_text())
    assert "<script>alert(&#39;planted" not in html
    assert "&lt;script&gt;alert(&#39;planted&#39;)&lt;/script&gt; of a name" in html
    assert "Nothing was removed." in html
    assert "No round was good enough: what is handed on is the input, unpruned." in html
    assert "127k of 3.54M weights, in blocks, were removed (3.6 %)." in html


@pytest.mark.parametrize(
    "record", [{}, {"kind": "neurons"}, {"groups": None, "rounds": None, "removed": None, "before": None, "after": 3, "rolled_back": {}, "schedule": [],
                                         "monitor": None}, {"groups": ["x", {}, {"name": None, "layer": "a", "sparsity": "b"}], "rounds": ["y", {}]}]
)  # fmt: skip
@pytest.mark.parametrize("key", ["pruning", "sensitivity"])
def test_records_may_lack_anything(tmp_path, record, key):
    (tmp_path / "manifest.json").write_text(json.dumps({"run": "r", "phases": {"p": {"kind": "prune", key: record}}}))
    assert ": p</h2>" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("key", list(neurons()))
def test_each_key_of_a_record_is_optional(tmp_path, key):
    record = weights()
    del record[key]
    run = run_of(tmp_path, prune={"kind": "prune", "pruning": record})
    drawn(pruning_panels(run))
    assert report_json(run)["phases"]["prune"]["pruning"] == record
    for words in (summary, before_after, rolled_back_words, artifact_words):
        assert isinstance(words(record), list | str)


def test_a_rollback_is_told_in_a_sentence():
    rounds = [{"round": 2, "sparsity": 0.521, "metric": 0.8312}]
    assert plain(rolled_back_words({"rolled_back": BACK, "rounds": rounds, "monitor": "accuracy"})) == (
        "Rolled back in round 3 at step 60: accuracy was 0.7100 with 75 % removed, and the gate asks for at least 0.8. "
        "What is handed on is round 2 (52 % removed, accuracy 0.8312)."
    )
    assert rolled_back_words({"rolled_back": {"round": 1}}) == "Rolled back in round 1."
    assert rolled_back_words({"rolled_back": None}) == ""
    words = rolled_back_words({"rolled_back": BACK | {"bound": "nll at least 0.1 and at most 0.7", "handed_on": 0}})
    assert "NLL was 0.7100" in words
    assert "the gate asks for at least 0.1 and at most 0.7. No round was good enough" in words


def test_bounds_are_read_from_the_gate_or_from_the_rollback():
    assert bound_of({"monitor": "valid/accuracy"}, {"metric": "accuracy", "at_least": 0.8}) == (0.8, "at least 0.8")
    assert bound_of({"monitor": "nll", "rolled_back": BACK}, {"metric": "accuracy", "at_least": 0.9}) == (
        0.8,
        "at least 0.8",
    )
    assert bound_of({"monitor": "nll"}, None) is None
    assert bound_of({"rolled_back": {"bound": "never"}}, None) is None
    assert asked_of({"bound": "perplexity at most 24"}) == ("perplexity", "at most 24")


def test_before_and_after_by_hand():
    before = {
        "size_bytes": 4_000_000,
        "parameters": 1_000_000,
        "latency": {"batch_1": {"p50_ms": 8.0}},
        "metrics": {"accuracy": 0.8, "r2": 0.5},
    }
    after = {
        "size_bytes": 1_000_000,
        "parameters": 250_000,
        "latency": {"batch_1": {"p50_ms": 4.0}},
        "metrics": {"accuracy": 0.76, "r2": -0.1},
    }
    rows = {row["label"]: row for row in before_after({"before": before, "after": after})}
    assert list(rows) == ["file", "parameters", "latency", "accuracy", "R²"]
    assert (rows["file"]["before"], rows["file"]["after"], rows["file"]["ratio"]) == ("4.00 MB", "1.00 MB", "25.0 %")
    assert (rows["latency"]["ratio"], rows["latency"]["sub"]) == ("50.0 %", "2.0× as fast")
    assert rows["accuracy"]["ratio"] == "95.0 %"
    assert rows["R²"]["ratio"] == "–"  # a share of a figure that may be below 0 says nothing
    alone = before_after({"before": None, "after": after})
    assert {row["before"] for row in alone} == {row["ratio"] for row in alone} == {"–"}


def test_what_became_of_the_file_is_said_as_it_is():
    assert artifact_words({"cut": True, "loads_plainly": True}) == [
        "The removed parts are cut out of the model.",
        "from_pretrained loads it as it is.",
    ]
    slow = {
        "cut": False,
        "before": {"latency": {"batch_1": {"p50_ms": 8.0}}},
        "after": {"latency": {"batch_1": {"p50_ms": 7.9}}},
    }
    assert "It is no faster" in artifact_words(slow)[-1]
    fast = copy.deepcopy(slow)
    fast["after"]["latency"]["batch_1"]["p50_ms"] = 4.0
    assert not [words for words in artifact_words(fast) if "faster" in words]
    assert artifact_words({"cut": False, "rolled_back": BACK | {"handed_on": 0}}) == []
    assert artifact_words({"after": {"parameters": 1}}) == ["Its input was not measured in this run."]


def test_layers_that_stay():
    assert layers_that_stay(layers_record(4, (0, 3))) == {0: True, 1: False, 2: False, 3: True}
    assert layers_that_stay(neurons()) == {}


def test_parts_of_a_layer_are_told_apart_by_their_names():
    stems = [stem_of(f"{side}.block.2.layer.0.SelfAttention.q.weight", 2) for side in ("encoder", "decoder")]
    assert list(short_stems(stems).values()) == [
        "encoder.block.layer.*.SelfAttention.q",
        "decoder.block.layer.*.SelfAttention.q",
    ]
    assert list(short_stems(["neurons"]).values()) == ["neurons"]
    assert short_stems([]) == {}
    assert part_of({"name": "layer 12 neurons", "layer": 12, "units": 4, "kept": 1}) == Part(12, "neurons", 4.0, 0.75)
    assert part_of({"name": "x"}) is None


def test_numbered_copies_in_a_layer_share_a_strip_by_their_size():
    groups = [
        {"name": f"m.layers.0.experts.{e}.up.weight", "layer": 0, "units": units, "sparsity": s}
        for e, (units, s) in enumerate([(100, 0.2), (300, 0.6)])
    ]
    (panel,) = share_panels("g", "f", "Sparsity", [part_of(group) for group in groups])
    ((strip,), _) = panel.draw.args
    assert (strip.layers, strip.shares) == ([0], [pytest.approx(0.5)])


def test_rounds_need_two_points_that_are_known():
    record = {
        "monitor": "accuracy",
        "rounds": [{"round": 0, "remaining": 10, "metric": 0.8}, {"round": 1, "remaining": 5, "metric": None}],
    }
    assert round_panels("g", "n", record, None) == []
    record["rounds"].append({"round": 2, "remaining": 4, "metric": 0.7, "state": "rolled_back"})
    (panel,) = round_panels("g", "n", record, {"metric": "accuracy", "at_least": 0.75})
    assert panel.caption == "numbers: rounds · × rolled back · dashed: the gate asks for at least 0.75"
    assert [(p.round, p.kept) for p in panel.draw.args[0]] == [(0, True), (2, False)]


def test_only_what_went_wrong_is_crossed():
    def crosses(points):
        with pictures.style():
            return [line for line in pruning_plots.rounds(points, "a").axes[0].lines if line.get_marker() == "x"]

    assert len(crosses([Point(0, 10, 0.9), Point(1, 5, 0.5, kept=False)])) == 1
    assert crosses([Point(0, 10, 0.9), Point(1, 5, 0.5)]) == []


def test_a_bound_far_away_is_not_drawn():
    assert within_reach(0.8, [0.85, 0.75])
    assert within_reach(0.7, [0.85, 0.75])
    assert not within_reach(0.1, [0.85, 0.84])


def test_ticks_keep_both_ends_and_their_distance():
    assert spaced([5, 4, 3, 2, 1], [0.0, 0.1, 0.3, 0.95, 1.0], 0.19) == [5, 3, 1]
    assert spaced([5], [0.5], 0.19) == [5]


def test_scales_and_changes_by_hand():
    assert [scale_of([share]) for share in (0.0, 0.05, 0.06, 0.5, 1.0)] == [5.0, 5.0, 10.0, 100.0, 100.0]
    assert [change_words(v) for v in (0.0995, 0.996, 9.96, -1200.0, 3e7)] == ["+0.10", "+1.0", "+10", "-1k", "+3e+07"]


def test_the_heat_map_shows_what_suffers_most():
    changes = [[0.0, 0.1 * i] for i in range(10)]
    changes[2] = [0.0, None]
    assert most_harmed(changes, 1, 3) == [2, 8, 9]
    assert most_harmed(changes, -1, 3) == [0, 1, 2]
    assert most_harmed(changes, 1, 10) == list(range(10))


def test_rows_are_named_by_layer_and_by_part_where_there_are_several():
    assert row_names([{"name": "layer 3 heads", "layer": 3}]) == ["layer 3"]
    names = [{"name": f"h.3.{part}.weight", "layer": 3} for part in ("attn.out", "mlp.out")]
    assert row_names(names) == ["3 attn.out", "3 mlp.out"]


def test_sensitivity_knows_which_way_is_harm():
    told = [plain(words) for words in sensitivity_words(sensitivity(2))]
    assert told[0] == "Neurons were removed from one part at a time, on trial; the whole model has loss 0.3100."
    assert told[1].startswith("With 90 % removed, loss changes most for layer")
    record = {"kind": "heads", "metric": "accuracy", "baseline": 0.8, "levels": [0.5], "target": 0.25,
              "groups": [{"name": "a", "layer": 0, "values": [0.5], "suggested": 0.1}, {"name": "b", "layer": 1, "values": [0.79], "suggested": 0.4}]}  # fmt: skip
    assert (
        plain(sensitivity_words(record)[1])
        == "With 50 % removed, accuracy changes most for a (-0.30) and least for b (-0.010)."
    )
    heat, bars = sensitivity_panels("g", "n", record)
    assert heat.draw.args[3] == -1
    assert heat.draw.args[2] == [[pytest.approx(-0.3)], [pytest.approx(-0.01)]]
    assert bars.draw.args[1] == 0.25
    record |= {"metric": "kl", "baseline": 0.0}
    (heat, _) = sensitivity_panels("g", "n", record)
    assert (heat.title, heat.caption, heat.draw.args[3]) == (
        "Rise of KL divergence",
        "the stronger the shade, the worse",
        1,
    )


def test_curves_mark_rounds_and_rollbacks(tmp_path):
    lines = [{"phase": "p", "step": step, "loss": 1.0} for step in range(1, 9)]
    lines += [{"phase": "p", "step": step, "event": "prune"} for step in (2, 4)] + [
        {"phase": "p", "step": 6, "event": "rollback"}
    ]
    (panel,) = losses(lines, "p")
    assert panel.caption == "│ pruned (2, 4) · ◂ rolled back (6)"
    with pictures.style():
        axes = panel.draw().axes[0]
    uprights = [
        line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert uprights == [2, 4, 6]


def test_marks_of_a_later_phase_stand_behind_those_before(tmp_path):
    lines = [
        {"phase": phase, "step": step, "loss": 1.0, "grad_norm": 1.0, "valid/accuracy": 0.5}
        for phase in ("a", "b")
        for step in range(1, 11)
    ]
    lines.append({"phase": "b", "step": 3, "event": "prune"})
    run = Run(tmp_path, "r", {"phases": {"a": {}, "b": {}}}, lines)
    marks = {panel.file: panel.draw.args[1] for panel in curve_panels(run)}
    assert marks["grad_norm"].pruned == marks["valid_accuracy"].pruned == [13]
