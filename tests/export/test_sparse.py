"""Sparse files: every bit comes back, they are as small as they can be, and no file that was cut, damaged or forged is half loaded."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distill_system.export.dense import named_tensors, save_model
from distill_system.export.sparse import blocks_of, is_sparse, read_layout, read_tensors, write_sparse
from distill_system.models import gaps
from distill_system.models.sparse_file import FORMAT, _restore, compress, entropy_bytes, header_in
from distill_system.models.weights import SPARSE
from tests.models import tiny


class Config:
    """What of a config is needed here."""

    def save_pretrained(self, folder):
        (Path(folder) / "config.json").write_text("{}")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def pruned(rows: int, columns: int, share: float, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    kept = torch.rand(rows, columns, generator=generator) >= share
    return torch.where(kept, weight, torch.zeros(())).to(dtype)


def in_blocks(rows: int, columns: int, block: tuple[int, int], share: float, seed: int = 0) -> torch.Tensor:
    mask = pruned(rows // block[0], columns // block[1], share, seed) != 0
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1), weight, torch.zeros(()))


def sample(folder):
    tensors = {
        "a.weight": pruned(64, 96, 0.9),
        "b.weight": in_blocks(64, 64, (16, 8), 0.75),
        "c.weight": torch.randn(40, 40, generator=torch.Generator().manual_seed(1)),
        "d.bias": torch.zeros(2000),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }
    write_sparse(folder, tensors.items(), {"b.weight": (16, 8)}, Config(), None)
    return tensors


def test_every_layout_comes_back_bit_for_bit(tmp_path):
    tensors = sample(tmp_path)
    assert is_sparse(tmp_path)
    assert not is_sparse(tmp_path / "nothing")
    loaded = read_tensors(tmp_path)
    assert list(loaded) == list(tensors)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    layout = read_layout(tmp_path)
    assert {name: stored.kept for name, stored in layout.items()} == {
        "a.weight": int(tensors["a.weight"].count_nonzero()),
        "b.weight": int(tensors["b.weight"].count_nonzero()) // 128,
        "c.weight": None,
        "d.bias": 0,
        "steps": None,
        "empty": None,
    }
    assert blocks_of(tmp_path) == {"b.weight": (16, 8)}


def test_a_blocks_elements_lie_together_in_the_file(tmp_path):
    weight = torch.zeros(64, 64)
    weight[16:32, 8:16] = torch.arange(128.0).view(16, 8) + 1  # row of blocks 1, column 1 of 8: block 9
    write_sparse(tmp_path, [("w", weight)], {"w": (16, 8)}, Config(), None)
    stored = load_file(tmp_path / SPARSE)
    assert stored["w:values"].tolist() == [weight[16:32, 8:16].tolist()]
    assert gaps.decode(
        gaps.Gaps(read_layout(tmp_path)["w"].low_bits, stored["w:high"].numpy(), stored["w:low"].numpy()), 1, 32
    ).tolist() == [9]


@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 70)),
    share=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]),
    block=st.sampled_from([None, (1, 1), (4, 1), (2, 7), (8, 8)]),
    odd=st.lists(st.sampled_from([-0.0, float("nan"), float("-inf"), 1e-45, -1e-45]), max_size=5),
    seed=st.integers(0, 5),
)
def test_any_tensor_comes_back_bit_for_bit(shape, share, dtype, block, odd, seed):
    if block is not None:
        shape = (shape[0] // block[0] * block[0], shape[1] // block[1] * block[1])
    tensor = pruned(*shape, share, seed).to(torch.float64)
    for i, value in enumerate(odd[: tensor.numel()]):
        tensor.view(-1)[(i * 37) % tensor.numel()] = value
    tensor = tensor.to(dtype)
    stored, parts = compress(tensor, block)
    assert same(_restore(stored, parts), tensor)
    assert sum(part.nbytes for part in parts.values()) <= tensor.nbytes


def test_minus_zero_and_nan_with_a_payload_are_values():
    weight = torch.zeros(64, 64)
    weight.view(torch.int32)[3, 5] = 0x7FC01234
    weight[60, 1] = -0.0
    stored, parts = compress(weight)
    assert stored.kept == 2
    assert parts[":values"].view(torch.int32).tolist() == [0x7FC01234, -(1 << 31)]
    assert same(_restore(stored, parts), weight)


@pytest.mark.parametrize(("share", "limit"), [(0.8, 0.226), (0.9, 0.12), (0.95, 0.062)])
def test_size_of_the_file(share, limit, tmp_path):
    weight = pruned(512, 512, share)
    write_sparse(tmp_path, [("w", weight)], {}, Config(), None)
    size = (tmp_path / SPARSE).stat().st_size
    kept = int(weight.count_nonzero())
    assert size <= limit * weight.nbytes
    assert entropy_bytes(weight.numel(), kept, 4) <= size <= 1.02 * entropy_bytes(weight.numel(), kept, 4)


def test_entropy_by_hand():
    """One of four: 4 H(1/4) = 4 (1/4 * 2 + 3/4 * log2(4/3)) = 3.245 bits, and 4 bytes of values."""
    assert entropy_bytes(4, 1, 4) == pytest.approx(4 + 3.2451125 / 8)
    assert entropy_bytes(8, 8, 4) == 32
    assert entropy_bytes(8, 0, 4) == 0


def test_plain_from_pretrained_finds_no_weights(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = tiny.build("bert")
    save_model(tmp_path, model, tokenizer)
    write_sparse(tmp_path, named_tensors(model), {}, model.config, tokenizer)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == [SPARSE]
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.load_state_dict(read_tensors(tmp_path), strict=True)


def test_what_can_not_be_written(tmp_path):
    weight = torch.zeros(8, 8)
    for tensors, blocks, words in [
        ([("a", weight), ("a", weight)], {}, "a was handed over twice"),
        ([], {}, "without tensors"),
        ([("a:b", weight)], {}, "a:b can't be stored"),
        ([("a", weight)], {"b": (2, 2)}, "b should be stored in blocks, but the model has no such tensor"),
        ([("a", weight)], {"a": (3, 2)}, r"a has shape \[8, 8\], which blocks of 3x2 don't divide"),
        ([("a", weight)], {"a": (0, 2)}, "blocks of 0x2"),
        ([("a", weight[0])], {"a": (2, 2)}, r"a has shape \[8\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            write_sparse(tmp_path, tensors, blocks, Config(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_view_does_not_bring_its_buffer_along(tmp_path):
    flat = torch.arange(100_000.0)
    write_sparse(tmp_path, [("a", flat[10:20]), ("b", flat[10:20])], {}, Config(), None)
    assert (tmp_path / SPARSE).stat().st_size < 1500
    assert torch.equal(read_tensors(tmp_path)["b"], flat[10:20])


def refused(folder, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_tensors(folder)
    assert str(folder) in str(caught.value)


def test_files_cut_at_200_places_are_refused(tmp_path):
    sample(tmp_path)
    whole = (tmp_path / SPARSE).read_bytes()
    places = [*range(0, 40), len(whole) - 1, *np.linspace(41, len(whole) - 2, 159, dtype=int).tolist()]
    for length in places:
        (tmp_path / SPARSE).write_bytes(whole[:length])
        refused(tmp_path, "is damaged")
    assert len(places) == 200


def test_files_with_a_flipped_byte_are_refused_or_read_the_same(tmp_path):
    """A byte of padding in the header may change without harm; no other."""
    tensors = sample(tmp_path)
    whole = (tmp_path / SPARSE).read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(0)
    places = [generator.randrange(begin) for _ in range(150)] + [
        generator.randrange(begin, len(whole)) for _ in range(150)
    ]
    harmless = 0
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << generator.randrange(8)
        (tmp_path / SPARSE).write_bytes(bytes(broken))
        try:
            loaded = read_tensors(tmp_path)
        except ValueError:
            continue
        harmless += 1
        assert place < begin
        assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert harmless < 10


def forge(folder, change, **metadata: str) -> None:
    """Writes the sample anew with a changed layout whose checksums are right: a forger knows them too."""
    sample(folder)
    pieces = load_file(folder / SPARSE)
    with safe_open(folder / SPARSE, framework="pt") as file:
        header = header_in(file.metadata())
    layout = json.loads(header["layout"])
    layout = change(layout, pieces) or layout
    for name, stored in layout.items():
        if isinstance(stored, dict) and isinstance(stored.get("checksums"), dict):
            present = {suffix: pieces.get(name + suffix) for suffix in stored["checksums"]}
            stored["checksums"] |= {s: zlib.crc32(bytes(bits(p).numpy())) for s, p in present.items() if p is not None}
    text = json.dumps(layout)
    header |= {"layout": text, "checksum": str(zlib.crc32(text.encode()))} | metadata
    save_file(pieces, folder / SPARSE, metadata={FORMAT: json.dumps(header)})


def setting(name: str, **values):
    return lambda layout, pieces: layout[name].update(values)


def piece(name: str, change):
    return lambda layout, pieces: pieces.update({name: change(pieces[name]).contiguous()})


FORGERIES = {
    "another kept count": (setting("a.weight", kept=3), "a.weight:values has shape"),
    "more kept than there are": (setting("b.weight", kept=33), "33 of 32 units"),
    "a larger matrix": (setting("a.weight", shape=[1 << 20, 1 << 24]), "would fill .* bytes of memory"),
    "a smaller matrix": (setting("a.weight", shape=[64, 80]), "a.weight holds"),
    "a negative side": (setting("a.weight", shape=[-64, -96]), "no whole number"),
    "a fraction": (setting("a.weight", shape=[64.0, 96]), "no whole number"),
    "a word": (setting("a.weight", shape="64"), "no whole number"),
    "a truth value": (setting("a.weight", low_bits=True), "no whole number"),
    "no such dtype": (setting("a.weight", dtype="float31"), "dtype 'float31'"),
    "a function for a dtype": (setting("a.weight", dtype="load"), "dtype 'load'"),
    "another dtype": (setting("a.weight", dtype="int32"), "is stored as torch.float32, its layout says int32"),
    "more low bits": (setting("a.weight", low_bits=9), "a.weight:low has shape"),
    "blocks that don't divide": (setting("b.weight", block=[5, 8]), "don't divide"),
    "a block of nothing": (setting("b.weight", block=[0, 8]), "incomplete"),
    "a block of three": (setting("b.weight", block=[16, 8, 1]), "incomplete"),
    "blocks of another form": (setting("b.weight", block=[8, 16]), "b.weight:values has shape"),
    "an unknown key": (setting("b.weight", extra=1), "layout can't be read"),
    "a dense tensor of another shape": (setting("c.weight", shape=[1600]), "c.weight has shape"),
    "no checksums": (setting("c.weight", checksums={}), "incomplete"),
    "one tensor less": (lambda layout, pieces: layout.pop("c.weight") and None, "not those of its layout: c.weight"),
    "one tensor more": (lambda layout, pieces: layout.update(x=layout["c.weight"]), "not those of its layout: x"),
    "one piece less": (
        lambda layout, pieces: pieces.pop("a.weight:low") is None,
        "not those of its layout: a.weight:low",
    ),
    "one piece more": (lambda layout, pieces: pieces.update({"a:x": torch.ones(1)}), "not those of its layout: a:x"),
    "a layout that is a list": (lambda layout, pieces: {"a": []}, "layout can't be read"),
    "positions beyond the end": (piece("a.weight:low", lambda t: t | 255), "beyond its 6144 units"),
    "positions of nothing": (piece("a.weight:high", torch.zeros_like), "holds 0 positions"),
    "positions all kept": (piece("a.weight:high", lambda t: t | 255), "positions in"),
    "positions cut": (piece("a.weight:high", lambda t: t[:-9]), "positions in"),
    "positions without end": (piece("a.weight:high", lambda t: t.repeat(9)), "too many"),
    "positions in a square": (piece("b.weight:high", lambda t: t[None]), "positions of shape"),
    "positions as floats": (piece("b.weight:high", lambda t: t.float()), "its layout says uint8"),
    "values as halves": (piece("a.weight:values", lambda t: t.half()), "is stored as torch.float16"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(name, tmp_path):
    change, words = FORGERIES[name]
    forge(tmp_path, lambda layout, pieces: result if isinstance(result := change(layout, pieces), dict) else None)
    refused(tmp_path, words)


def test_forging_nothing_is_read(tmp_path):
    """The forger above writes sound files, so that what is refused is refused for the change."""
    forge(tmp_path, lambda layout, pieces: None)
    assert len(read_tensors(tmp_path)) == 6


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"version": "2"}, "has version 2 of the format, this program reads 1: update distill_system"),
        ({"version": "one"}, "is no sparse model of distill_system"),
        ({"format": "pt"}, "is no sparse model of distill_system"),
        ({"checksum": "1"}, "its layout has another checksum"),
        ({"layout": "{}"}, "its layout has another checksum"),
    ],
)
def test_headers_of_others_are_refused(metadata, words, tmp_path):
    forge(tmp_path, lambda layout, pieces: None, **metadata)
    refused(tmp_path, words)


def test_no_file_and_no_safetensors(tmp_path):
    refused(tmp_path, f"holds no {SPARSE}")
    (tmp_path / SPARSE).write_bytes(b"this is no model, whatever its name says")
    refused(tmp_path, "is damaged")
    save_file({"a": torch.zeros(1)}, tmp_path / SPARSE)
    refused(tmp_path, "is no sparse model of distill_system")
