"""ONNX files with codes: their values are the model's to the bit, their bytes what the bits promise, and onnxruntime gives torch's outputs."""

import pytest
import torch

from distill_system.export.onnx_qdq import export_qdq
from distill_system.models.grid import Granularity, Grid, OnGrid, grouped
from tests.export.test_onnx import run
from tests.models import on_grids, tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")  # without the extra there is nothing to run the file in


def exported(root, model, tokenizer, grids):
    """(what was written, its initializers by name); the file gives torch's logits also for inputs that weren't shown."""
    model.eval()
    found = export_qdq(model, grids, root / "model.onnx", tiny.batch(tokenizer, "one", "some other text"))
    assert list(root.iterdir()) == found.files == [root / "model.onnx"]
    assert found.difference <= 1e-4
    for texts in [("a fine film", "dull"), ("a",), ("the longest of all these texts, by far", "b", "cc")]:
        inputs = tiny.batch(tokenizer, *texts)
        outputs, expected = run(root / "model.onnx", inputs), tiny.logits(model, inputs)
        real = inputs["attention_mask"].bool() if expected.dim() == 3 else slice(None)
        torch.testing.assert_close(outputs[real], expected[real], rtol=0, atol=1e-4)
    return found, {tensor.name: tensor for tensor in onnx.load(str(root / "model.onnx")).graph.initializer}


def values(tensors, codes: str) -> torch.Tensor:
    """What the numbers of a matrix say, in float64 and one by one."""
    code, scale, zero = (
        torch.from_numpy(onnx.numpy_helper.to_array(tensors[codes.replace("_codes", part)]).astype("float64"))
        for part in ("_codes", "_scale", "_zero")
    )
    if scale.dim() == 1:
        scale, zero = scale[:, None], zero[:, None]
    if scale.dim() == 2:
        scale, zero = (part.repeat_interleave(code.shape[1] // part.shape[1], 1) for part in (scale, zero))
    return ((code - zero) * scale).float()


def is_stored(weight: torch.Tensor, tensors) -> bool:
    """Whether some codes stand for exactly this `[O, I]`."""
    names = [name for name, t in tensors.items() if name.endswith("_codes") and list(t.dims) == list(weight.shape)]
    return any(torch.equal(values(tensors, name), weight) for name in names)


def floats_of(tensors) -> int:
    """Bytes of whole matrices."""
    return sum(
        len(t.raw_data) for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT and len(t.raw_data) > 4096
    )


def test_8_bits_a_row(tmp_path):
    model, tokenizer = tiny.build("bert")
    grids = on_grids.quantize(model, body=256, tables=256)
    found, tensors = exported(tmp_path, model, tokenizer, grids)
    used = [name for name in grids if "token_type" not in name]
    assert set(used) <= set(found.codes)
    assert all(is_stored(model.get_parameter(name).detach(), tensors) for name in used)
    codes = sum(len(t.raw_data) for name, t in tensors.items() if name.endswith("_codes"))
    assert codes == sum(model.get_parameter(name).numel() for name in found.codes)  # a quarter of what floats take
    assert floats_of(tensors) == 0
    assert not [t for t in tensors.values() if t.data_type == onnx.TensorProto.UINT4]


def test_4_bits_in_groups_of_a_model_with_conv1d_and_a_tied_table(tmp_path):
    model, tokenizer = tiny.build("gpt2", "causal_lm")
    grids = on_grids.quantize(model, body=16, tables=16, granularity=Granularity("group", 16))
    found, tensors = exported(tmp_path, model, tokenizer, grids)
    assert (found.codes, found.floats) == (sorted(grids), {})
    for name, on in grids.items():
        weight = model.get_parameter(name).detach()
        assert is_stored(weight if on.input_axis == 1 else weight.t(), tensors)
    stored = {name: t for name, t in tensors.items() if name.endswith("_codes")}
    assert {t.data_type for t in stored.values()} == {onnx.TensorProto.UINT4}
    table, weights = model.lm_head.weight.numel(), sum(model.get_parameter(name).numel() for name in grids)
    codes = sum(len(t.raw_data) for t in stored.values())
    assert codes in (
        weights // 2,
        (weights + table) // 2,
    )  # an eighth of what floats take; the exporter may copy the tied table
    assert floats_of(tensors) == 0


def test_binary_ternary_and_what_stays_float(tmp_path):
    model, tokenizer = tiny.build("bert")
    grids = on_grids.quantize(model, body=2, tables=3)
    layer = "bert.encoder.layer.{}.attention.self.{}.weight"
    uneven, odd, twin = layer.format(0, "key"), layer.format(1, "key"), layer.format(1, "query")
    weight_GN = grouped(model.get_parameter(uneven).detach(), Granularity("row"))
    code_GN = torch.randint(0, 3, weight_GN.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    row = Granularity("row")
    grids[uneven] = OnGrid(on_grids.nearest(weight_GN, 3, levels=True), row)
    grids[odd] = OnGrid(Grid(3, torch.full((32, 1), 0.1), torch.tensor([[0.75]])), row)
    grids[twin] = grids[layer.format(0, "query")]
    for name in (uneven, odd):
        on_grids.put(model.get_parameter(name), grids[name], code_GN)
    model.get_parameter(twin).data.copy_(model.get_parameter(layer.format(0, "query")).data)
    found, tensors = exported(tmp_path, model, tokenizer, grids)
    reasons = {name: found.floats[name] for name in (uneven, odd)}
    assert reasons == {
        uneven: "has levels that aren't evenly spaced",
        odd: "has a zero that lies neither on a code nor half-way between two",
    }
    assert found.codes == sorted(grids.keys() - found.floats.keys())
    assert twin in found.codes
    assert not is_stored(model.get_parameter(uneven).detach(), tensors)
    for name in found.codes:
        assert is_stored(model.get_parameter(name).detach(), tensors)
    stored = [t for name, t in tensors.items() if name.endswith("_codes")]
    assert {t.data_type for t in stored} == {onnx.TensorProto.UINT4}


def test_grids_of_other_weights_are_refused(tmp_path):
    model, tokenizer = tiny.build("bert")
    grids, inputs = on_grids.quantize(model, body=16), tiny.batch(tokenizer)
    with pytest.raises(ValueError, match=r"^nobody has a grid, but the model has no such tensor$"):
        export_qdq(model, grids | {"nobody": next(iter(grids.values()))}, tmp_path / "model.onnx", inputs)
    name = "bert.encoder.layer.0.output.dense.weight"
    model.get_parameter(name).data[0, :2] += 1.0
    with pytest.raises(ValueError, match=rf"^{name} has 2 values that aren't on its grid of 16 levels$"):
        export_qdq(model, grids, tmp_path / "model.onnx", inputs)
    assert list(tmp_path.iterdir()) == []
