"""Quantization in the report: right words and figures, from full records and from those that lack what is optional."""

import io
import json
import warnings

import pytest

from distill_system.tracking import pictures
from distill_system.tracking.comparison import comparison, model_of, pairs
from distill_system.tracking.curves import losses
from distill_system.tracking.progress import summary_table
from distill_system.tracking.quantization import artifact_words, figures_of, quantized, sides, summary, tensor_row
from distill_system.tracking.quantization_panels import quantization_panels, totals
from distill_system.tracking.quantization_parts import alike, elements_of, layer_in, packed_bytes, share_of_zeros, spent
from distill_system.tracking.report import Run, load_run, report_json, write_report
from tests.tracking.fake_quantization import PARTS, RUNS, chain_run, falling, odd_run, single_run, tensor, ternary


def plain(text):
    return text.replace("\u00a0", " ")


def run_of(tmp_path, **phases):
    return Run(tmp_path, "r", {"phases": phases}, [])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = single_run(tmp_path_factory.mktemp("runs") / "single", ternary())
    return folder, plain(write_report(folder).read_text(encoding="utf-8"))


def test_page_has_a_section_for_each_phase_that_quantized(single):
    folder, html = single
    for words in ("Quantization: quantize", "12 linears (3.54M weights) have 3 values, 1.6 bits a weight, by trained ternary.",
                  "3 embeddings (11.9M weights) have 16 values, 4 bits a weight, by kbit.", "Weights of a linear share a scale along a row.",
                  "Bytes: 2.75 MB of 55.4 MB", "What was quantized", "word_embeddings", "2.39 MB codes, 0.214 MB scales", "distill_system.load reads packed/"):  # fmt: skip
        assert words in html, words
    assert (folder / "report" / "bytes_quantize.png").is_file()


def test_report_json_carries_the_record(single):
    phases = json.loads((single[0] / "report" / "report.json").read_text())["phases"]
    manifest = json.loads((single[0] / "manifest.json").read_text())["phases"]
    assert phases["quantize"]["quantization"] == manifest["quantize"]["quantization"]
    assert "quantization" not in phases["teacher"]


@pytest.mark.parametrize("make", RUNS)
def test_layouts_hold(make, tmp_path):
    for panel in quantization_panels(load_run(make(tmp_path / "run"))):
        with pictures.style(), warnings.catch_warnings():
            warnings.simplefilter("error")  # a layout that isn't applied lets texts stand on bars
            assert pictures.svg(panel.draw(), "f", panel.title).startswith("<svg viewBox=")


def test_odd_values_stay_text(tmp_path):
    html = plain(write_report(odd_run(tmp_path / "odd")).read_text())
    assert "<script>alert(&#39;planted" not in html
    assert "The folder model/ has the quantized values as full floats" in html
    assert "7 more</summary>" in html
    assert not (tmp_path / "odd" / "report" / "bytes_quantize.png").exists()
    assert "10 linears (640 weights) have 2 values, 1 bit a weight" in html


def test_words_of_a_fall_of_bits():
    words = " ".join(map(plain, summary(falling())))
    assert words == (
        "112 linears (37.2M weights) have 4 values, 2 bits a weight, by kbit. Weights of a linear share a scale in groups of 64. "
        "21 % of the linears’ weights are zero. Bits fell from 8 to 4 to 2 on the way. "
        "The forward went over to them between 10 % and 40 % of the steps. Inputs of the linears have 8 bits, with learned steps."
    )
    one = {"tensors": [tensor("embeddings.weight", [9, 2], 0.1, levels=2, bits=1)]}
    assert summary(one) == ["1 embedding (18 weights) has 2 values, 1 bit a weight, by kbit."]
    notes = artifact_words(falling())
    assert "Both give the same logits, to the bit." in notes
    assert notes[-1].startswith("Packed, it is no faster than its input at one row")
    assert "Logits of the two differ by up to 2.40e-7." in artifact_words(ternary())
    assert not any("no faster" in note for note in artifact_words(ternary()))
    assert artifact_words(ternary() | {"before": None})[-1] == "Its input was not measured in this run."


def test_tensors_by_kind_worked_by_hand():
    record = {
        "tensors": [
            tensor("m.layers.0.q.weight", [2, 3], 0.5, groups=2),
            tensor("m.layers.1.q.weight", [2, 5], 0.1, groups=2),
            tensor("m.layers.0.o.weight", [4, 4], 0.0, levels=2, bits=1, groups=1),
            tensor("m.layers.2.q.weight", [2, 2], 0.0, levels=16, bits=4, groups=2),
            tensor("m.head.weight", [9, 2], 0.25, groups=9),
        ]
    }
    rows = alike(record)
    assert [(r.stem, r.count, r.weights, r.scales, r.layers, r.levels) for r in rows] == [
        ("q", 2, 16, 4, [0, 1], 3),
        ("o", 1, 16, 1, [0], 2),
        ("q", 1, 4, 2, [2], 16),
        ("head", 1, 18, 9, [], 3),
    ]
    assert share_of_zeros(rows[:1]) == pytest.approx((0.5 * 6 + 0.1 * 10) / 16)
    told = {key: plain(value) for key, value in tensor_row(rows[0]).items()}
    assert told == {
        "name": "q",
        "where": "linear · 2 layers",
        "by": "trained ternary",
        "weights": "16",
        "values": "3",
        "bits": "1.6",
        "scales": "4",
        "zeros": "25 %",
        "range": "10 % to 50 %",
    }
    assert tensor_row(rows[1])["where"] == "linear · layer 0"
    assert tensor_row(rows[3])["where"] == "linear"


def test_small_readers():
    assert layer_in("a.12.b.3.weight") == 12
    assert layer_in("a.weight") is None
    assert elements_of({"shape": [3, 4]}) == 12
    assert elements_of({"shape": ["x", 4]}) == elements_of({}) == 0
    assert packed_bytes(ternary()) == sum(PARTS.values())
    assert packed_bytes({"packed": None}) is packed_bytes(None) is packed_bytes({"packed": {"bytes": "x"}}) is None
    assert list(spent(ternary())) == ["codes", "scales", "what isn’t quantized", "header"]
    assert totals(ternary()) == [("before", 4 * 13_850_000), ("packed", sum(PARTS.values()))]
    assert totals(ternary() | {"before": None})[0] == ("as floats", 4 * 13_850_000)
    assert totals({"packed": {"dense_bytes": 9, "bytes": 3}}) == [("as floats", 9), ("packed", 3)]
    assert totals({}) == []


def test_figures_before_after_and_packed_by_hand():
    record = {
        "before": {"size_bytes": 4_000_000, "latency": {"batch_1": {"p50_ms": 8.0}}, "metrics": {"accuracy": 0.8}},
        "after": {"size_bytes": 4_000_000, "latency": {"batch_1": {"p50_ms": 8.0}}, "metrics": {"accuracy": 0.6}},
        "packed": {"bytes": 250_000, "latency": {"batch_1": {"p50_ms": 4.0}}},
    }
    rows = {row["label"]: row for row in figures_of(record)}
    assert sides(record) == ["before", "after", "packed"]
    assert (rows["file"]["cells"], rows["file"]["ratio"]) == (["4.00 MB", "4.00 MB", "0.250 MB"], "6.2 %")
    assert (rows["latency"]["ratio"], rows["latency"]["sub"]) == ("50.0 %", "2.0× as fast")
    assert (rows["accuracy"]["cells"], rows["accuracy"]["ratio"]) == (["0.8000", "0.6000", "–"], "75.0 %")
    assert "parameters" not in rows
    assert [len(row["cells"]) for row in figures_of(record | {"packed": None})] == [2, 2, 2]
    assert sides(record | {"packed": None}) == ["before", "after"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"tensors": None, "packed": 3, "before": None, "after": 3, "granularity": [], "schedule": [8], "mixing": {}},
        {"tensors": ["x", {}, {"name": None, "shape": None, "zeros": "b", "bits": None}], "packed": {"codes": "y"}},
    ],
)
def test_records_may_lack_anything(tmp_path, record):
    manifest = {"run": "r", "phases": {"p": {"kind": "quantize", "quantization": record}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "Quantization: p</h2>" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("key", list(ternary()))
def test_each_key_of_a_record_is_optional(tmp_path, key):
    record = ternary()
    del record[key]
    run = run_of(tmp_path, quantize={"kind": "quantize", "quantization": record})
    with pictures.style():
        for panel in quantization_panels(run):
            panel.draw()
    (found,) = quantized(run)
    assert found["words"] or key == "tensors"
    assert report_json(run)["phases"]["quantize"]["quantization"] == record


def test_at_a_glance_speaks_of_the_packed_model(tmp_path):
    run = load_run(chain_run(tmp_path / "chain"))
    assert model_of(run, "quantize").figures == {"size": 2_745_360, "parameters": 13_850_000, "latency": 9.42 * 0.24}
    last = pairs(run)[-1]
    assert plain(last["verdict"]).endswith("has 3.0 % of its size (packed) and answers 3.0 times as fast.")
    size = next(group for group in last["groups"] if group["label"] == "size")
    assert (size["hint"], size["bars"][1]["words"]) == ("on disk, packed", "2.75 MB")
    table = comparison(run)
    at = [label for label, _ in table["columns"]].index("size")
    assert table["rows"][-1]["cells"][at] == {"value": "55.4 MB", "sub": "61 % · 2.75 MB packed"}
    assert table["rows"][0]["cells"][at]["sub"] == ""


def test_the_table_in_the_terminal_has_a_column_for_it(tmp_path):
    stream = io.StringIO()
    summary_table(load_run(chain_run(tmp_path / "chain")).manifest, stream=stream)
    assert "packed" in stream.getvalue()
    assert "2.75 MB" in stream.getvalue()
    stream = io.StringIO()
    summary_table({"phases": {"a": {"metrics": {}, "size_bytes": 10}}}, stream=stream)
    assert "packed" not in stream.getvalue()


def test_a_fall_of_bits_is_marked_in_the_curves(tmp_path):
    run = load_run(single_run(tmp_path / "single"))
    (panel,) = losses(run.lines, "quantize")
    assert panel.caption == "thick: running mean · ┆ fewer bits (40, 80)"
    with pictures.style():
        dotted = [line for line in panel.draw().axes[0].lines if list(line.get_xdata()) in ([40, 40], [80, 80])]
    assert len(dotted) == 2
