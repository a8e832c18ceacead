"""Folders with tensors of torchao: our weights to the bit, outputs to 1e-5 of the largest, and words for what torchao can't express."""

import pytest
import torch

from distill_system.export.dense import load, save_model
from distill_system.export.packed import pack
from distill_system.export.torchao_export import FILE, read_torchao, write_torchao
from distill_system.models.grid import Granularity, Grid, OnGrid, grouped
from distill_system.models.grids_file import read_grids, write_grids
from distill_system.pruning.cut import cut
from tests.models import cuttable, on_grids, tiny

pytest.importorskip("torchao")  # without the extra there is nothing to make tensors of

EIGHT, INTX = "Int8Tensor", "IntxUnpackedToInt8Tensor"


def kinds(model) -> dict[str, str]:
    """Those weights that are no plain tensors."""
    named = {name: type(parameter).__name__ for name, parameter in model.named_parameters()}
    return {name: kind for name, kind in named.items() if kind != "Parameter"}


def is_the_same(source, target) -> dict[str, str]:
    """The torchao weights of a written folder, once all its values and outputs are those of the source."""
    expected, found = load(source), read_torchao(target)
    assert type(found).__name__ == type(expected).__name__
    assert not any(module.training for module in found.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    after = dict(found.named_parameters())
    for name, parameter in expected.named_parameters():
        value = after[name].dequantize() if name in kinds(found) else after[name]
        assert torch.equal(value, parameter), name
    inputs = cuttable.inputs("bert")
    with torch.no_grad():
        one, other = expected(**inputs).logits, found(**inputs).logits
    assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
    return kinds(found)


HOW = {
    "8 bits a row": ({"body": 256}, EIGHT, torch.int8),
    "8 bits a tensor": ({"body": 256, "tables": None, "granularity": Granularity("tensor")}, EIGHT, torch.int8),
    "8 bits in groups": ({"body": 256, "granularity": Granularity("group", 8)}, INTX, torch.int8),
    "4 bits in groups": ({"body": 16, "granularity": Granularity("group", 8)}, INTX, torch.int4),
    "4 bits a row": ({"body": 16}, INTX, torch.int4),
    "ternary": ({"body": 3}, INTX, torch.int4),
    "binary": ({"body": 2}, INTX, torch.int4),
}


@pytest.mark.parametrize("how", HOW)
def test_linears(how, tmp_path):
    options, kind, dtype = HOW[how]
    grids = on_grids.folder(tmp_path / "model", cuttable.build("bert"), **options)
    lines = write_torchao(tmp_path / "model", tmp_path / "torchao")
    linears = sorted(name for name in grids if "embeddings" not in name)
    tables = sorted(grids.keys() - set(linears))
    assert lines[1] == f"{len(linears)} of {len(grids)} quantized matrices lie in it as codes"
    reason = "as floats, because it belongs to Embedding, where torchao only has products of linears"
    assert lines[2:] == ([f"{reason}: {tables[0]} and {len(tables) - 1} more"] if tables else [])
    assert is_the_same(tmp_path / "model", tmp_path / "torchao") == dict.fromkeys(linears, kind)
    weights = dict(read_torchao(tmp_path / "torchao").named_parameters())
    assert {weights[name].qdata.dtype for name in linears} == {torch.int8}
    assert {getattr(weights[name], "target_dtype", torch.int8) for name in linears} == {dtype}
    parts = [part for name in linears for part in (weights[name].qdata, weights[name].scale)]
    others = [weight for name, weight in weights.items() if name not in linears]
    # A byte a weight, the scales, at most a byte of zero beside each scale, and the header.
    bound = sum(part.nbytes for part in [*parts, *others]) + sum(weights[name].scale.numel() for name in linears)
    assert (tmp_path / "torchao" / FILE).stat().st_size <= bound + 30_000


def test_codes_and_scales_are_ours(tmp_path):
    grids = on_grids.folder(tmp_path / "model", cuttable.build("bert"), body=256, tables=None)
    write_torchao(tmp_path / "model", tmp_path / "torchao")
    expected, found = load(tmp_path / "model"), read_torchao(tmp_path / "torchao")
    for name, on in grids.items():
        code_OI = on.codes(expected.get_parameter(name).detach())
        assert torch.equal(found.get_parameter(name).qdata.short(), code_OI.short() - 128)
        assert torch.equal(found.get_parameter(name).scale, on.grid.scale_G1)


def test_zeros_that_are_not_in_the_middle(tmp_path):
    """`Int8Tensor` forgets a zero in its products, so these must be of the other kind."""
    model = cuttable.build("bert")
    grids = on_grids.quantize(model, body=256, tables=None)
    for i, (name, on) in enumerate(grids.items()):
        weight_GN = grouped(model.get_parameter(name).detach(), on.granularity)
        zero_G1 = torch.randint(0, 256, (len(weight_GN), 1), generator=torch.Generator().manual_seed(i)).float()
        grids[name] = OnGrid(Grid(256, on.grid.scale_G1, zero_G1), on.granularity)
        on_grids.put(
            model.get_parameter(name),
            grids[name],
            torch.arange(weight_GN.numel()).view(weight_GN.shape).to(torch.uint8),
        )
    save_model(tmp_path / "model", model, None)
    write_grids(tmp_path / "model", grids)
    write_torchao(tmp_path / "model", tmp_path / "torchao")
    assert is_the_same(tmp_path / "model", tmp_path / "torchao") == dict.fromkeys(grids, INTX)


def test_llama_with_tied_table_uneven_levels_and_generation(tmp_path):
    model, tokenizer = tiny.build("llama", "causal_lm", tie_word_embeddings=True)
    grids = on_grids.quantize(model, body=256)
    uneven = "model.layers.0.mlp.up_proj.weight"
    weight_GN = grouped(model.get_parameter(uneven).detach(), Granularity("row"))
    grids[uneven] = OnGrid(on_grids.nearest(weight_GN, 3, levels=True), Granularity("row"))
    on_grids.put(
        model.get_parameter(uneven),
        grids[uneven],
        (torch.arange(weight_GN.numel()).view(weight_GN.shape) % 3).to(torch.uint8),
    )
    save_model(tmp_path / "model", model.eval(), tokenizer)
    write_grids(tmp_path / "model", grids)
    lines = write_torchao(tmp_path / "model", tmp_path / "torchao")
    assert f"as floats, because it has levels that aren't evenly spaced: {uneven}" in lines
    expected, found = load(tmp_path / "model"), read_torchao(tmp_path / "torchao")
    assert found.lm_head.weight is found.get_input_embeddings().weight
    assert uneven not in kinds(found)
    assert set(kinds(found).values()) == {EIGHT}
    inputs = tiny.batch(tokenizer, "one", "another text")
    torch.testing.assert_close(tiny.logits(found, inputs), tiny.logits(expected, inputs), rtol=0, atol=1e-4)
    told = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(found.generate(**inputs, **told), expected.generate(**inputs, **told))
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    names = {path.name for path in (tmp_path / "torchao").iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", FILE} <= names
    assert not names & {"model.safetensors", "grids.safetensors"}


def test_a_cut_model_and_rounded_inputs(tmp_path):
    model = cuttable.build("bert")
    cut(model, cuttable.surgery(model, "neurons", ragged=True))
    grids = on_grids.quantize(model, body=256, tables=None)
    steps = {name.removesuffix(".weight"): 0.05 for name in grids}
    model.config.quantized = {"activations": {"bits": 4, "steps": steps}}
    save_model(tmp_path / "model", model, None)
    write_grids(tmp_path / "model", grids)
    write_torchao(tmp_path / "model", tmp_path / "torchao")
    found = read_torchao(tmp_path / "torchao")
    assert found.config.reshape
    assert set(kinds(found)) == set(grids)
    place = next(iter(steps))
    module, x = found.get_submodule(place), torch.randn(3, found.get_submodule(place).in_features)
    rounded = (x / 0.05).round().clamp(-8, 7) * 0.05
    expected = rounded @ load(tmp_path / "model").get_submodule(place).weight.t() + module.bias
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-4)


def test_what_is_refused(tmp_path):
    save_model(tmp_path / "plain", cuttable.build("bert"), None)
    with pytest.raises(ValueError, match=r"plain has no grids.safetensors: its weights lie on no grids"):
        write_torchao(tmp_path / "plain", tmp_path / "out")
    on_grids.folder(tmp_path / "gpt2", cuttable.build("gpt2"))
    with pytest.raises(ValueError, match=r"^no matrix of .*gpt2 can be a tensor of torchao \(.*belongs to Conv1D"):
        write_torchao(tmp_path / "gpt2", tmp_path / "out")
    model = cuttable.build("bert")
    name = next(iter(on_grids.folder(tmp_path / "off", model, tables=None)))
    model.get_parameter(name).data[0, 0] += 1.0
    grids = read_grids(tmp_path / "off")
    save_model(tmp_path / "off", model, None)
    write_grids(tmp_path / "off", grids)
    with pytest.raises(ValueError, match=rf"^{name} has 1 values that aren't on its grid of 3 levels$"):
        write_torchao(tmp_path / "off", tmp_path / "out")
    pack(tmp_path / "gpt2", tmp_path / "packed")
    with pytest.raises(ValueError, match="packed is packed; take the model it was packed from"):
        write_torchao(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    on_grids.folder(tmp_path / "model", cuttable.build("bert"), body=256)
    write_torchao(tmp_path / "model", tmp_path / "torchao")
    path = tmp_path / "torchao" / FILE
    with safe_open(path, framework="pt") as opened:
        pieces = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    scale, bias = (next(name for name in pieces if name.endswith(end)) for end in ("_weight_scale", ".bias"))
    for missing in (scale, bias):
        save_file({name: piece for name, piece in pieces.items() if name != missing}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"torchao.safetensors (isn't whole|can't be read)"):
            read_torchao(tmp_path / "torchao")
    save_file(pieces, path)
    with pytest.raises(ValueError, match="can't be read"):
        read_torchao(tmp_path / "torchao")
    save_file(pieces, path, metadata={name: text.replace(EIGHT, "Strange") for name, text in metadata.items()})
    with pytest.raises(ValueError, match=r"can't be read \(Unsupported tensor type: Strange\)"):
        read_torchao(tmp_path / "torchao")
    save_file(pieces, path, metadata=metadata)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="can't be read"):
        read_torchao(tmp_path / "torchao")
    path.unlink()
    with pytest.raises(ValueError, match=r"has no torchao\.safetensors"):
        read_torchao(tmp_path / "torchao")


def test_a_file_with_other_values_is_noticed(tmp_path, monkeypatch):
    on_grids.folder(tmp_path / "model", cuttable.build("bert"), body=256)
    monkeypatch.setattr("distill_system.export.torchao_export._values", lambda tensor: torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"does not give .* back after reloading"):
        write_torchao(tmp_path / "model", tmp_path / "torchao")
    assert not (tmp_path / "torchao" / "config.json").exists()
