"""Grids beside plain weights: they come back to the bit, and what is damaged or somebody else's is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_system.models.checked_file import write_checked
from distill_system.models.grid import Granularity, Grid, OnGrid
from distill_system.models.grids_file import GRIDS, KIND, read_grids, write_grids
from tests.models.on_grids import attempt, same

ROW, GROUP, TENSOR = Granularity("row"), Granularity("group", 32), Granularity("tensor")


def sample() -> dict[str, OnGrid]:
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    shared = torch.ones(1, 1)
    return {
        "a.weight": OnGrid(Grid(3, random(8, 1), shared), ROW),
        "b.weight": OnGrid(Grid(3, random(6, 1), shared), ROW, 0),
        "c.weight": OnGrid(Grid(2, random(16, 1), torch.full((1, 1), 0.5)), GROUP),
        "d.weight": OnGrid(Grid(256, random(1, 1), random(1, 1) * 255), TENSOR),
        "e.weight": OnGrid(Grid(3, levels_GL=random(8, 3)), ROW),
        "f.weight": OnGrid(Grid(16, random(8, 1).half(), torch.arange(8.0).view(8, 1).half()), ROW),
        "g.weight": OnGrid(Grid(16, random(8, 1), torch.full((8, 1), -1.0)), ROW),
    }


def test_grids_come_back_to_the_bit(tmp_path):
    grids = sample()
    write_grids(tmp_path, grids)
    again = read_grids(tmp_path)
    assert list(again) == list(grids)
    for name, on in grids.items():
        assert (again[name].granularity, again[name].input_axis) == (on.granularity, on.input_axis)
        assert again[name].grid.count == on.grid.count
        tensors = again[name].grid.tensors()
        assert tensors.keys() == on.grid.tensors().keys()
        assert all(same(tensors[part], tensor) for part, tensor in on.grid.tensors().items())


def test_zeros_that_are_codes_take_a_byte(tmp_path):
    write_grids(tmp_path, sample())
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / GRIDS).items() if name.endswith(":zero")}
    assert dtypes["a.weight:zero"] == dtypes["f.weight:zero"] == torch.uint8
    assert dtypes["c.weight:zero"] == dtypes["d.weight:zero"] == dtypes["g.weight:zero"] == torch.float32


def test_a_zeros_sign_is_not_kept(tmp_path):
    """Codes aren't negative: 0 - -0.0 is 0.0, as 0 - 0.0 is."""
    on = OnGrid(Grid(16, torch.rand(8, 1), torch.full((8, 1), -0.0)), ROW)
    write_grids(tmp_path, {"w": on})
    assert load_file(tmp_path / GRIDS)["w:zero"].dtype == torch.uint8
    code_GN = torch.arange(16, dtype=torch.uint8).expand(8, 16)
    assert same(read_grids(tmp_path)["w"].grid.decode(code_GN), on.grid.decode(code_GN))


def test_the_same_grids_make_the_same_file(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_grids(tmp_path / name, sample())
    assert (tmp_path / "one" / GRIDS).read_bytes() == (tmp_path / "other" / GRIDS).read_bytes()


def test_without_grids_there_is_no_file(tmp_path):
    assert read_grids(tmp_path) == {}
    write_grids(tmp_path, sample())
    write_grids(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="a:b can't be stored"):
        write_grids(tmp_path, {"a:b": sample()["a.weight"]})


def test_every_changed_byte_is_refused_or_harmless(tmp_path):
    write_grids(tmp_path, {name: on for name, on in sample().items() if name in ("a.weight", "c.weight", "e.weight")})
    whole, before = (tmp_path / GRIDS).read_bytes(), read_grids(tmp_path)
    begin = 8 + int.from_bytes(whole[:8], "little")
    harmless = []
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        (tmp_path / GRIDS).write_bytes(bytes(broken))
        found = attempt(read_grids, tmp_path)
        if isinstance(found, str):
            assert str(tmp_path) in found
            continue
        harmless.append(place)
        assert {n: on.grid.count for n, on in found.items()} == {n: on.grid.count for n, on in before.items()}
    assert all(place < begin for place in harmless)
    assert len(harmless) < 8  # spaces that fill the header up


def forge(folder, change) -> None:
    grids = {"w": OnGrid(Grid(3, torch.rand(8, 1), torch.ones(1, 1)), GROUP)}
    write_grids(folder, grids)
    pieces, layout = load_file(folder / GRIDS), {"w": {"count": 3, "granularity": "group", "input_axis": 1, "size": 32}}
    change(layout, pieces)
    write_checked(folder / GRIDS, KIND, pieces, layout)


FORGERIES = {
    "no count": (lambda layout, pieces: layout["w"].pop("count"), "other entries"),
    "more than it should": (lambda layout, pieces: layout["w"].update(bits=3), "other entries"),
    "one level": (lambda layout, pieces: layout["w"].update(count=1), "impossible numbers"),
    "too many levels": (lambda layout, pieces: layout["w"].update(count=257), "impossible numbers"),
    "a fraction": (lambda layout, pieces: layout["w"].update(count=3.0), "other entries"),
    "a truth value": (lambda layout, pieces: layout["w"].update(input_axis=True), "other entries"),
    "no such axis": (lambda layout, pieces: layout["w"].update(input_axis=2), "impossible numbers"),
    "no group": (lambda layout, pieces: layout["w"].update(size=0), "impossible numbers"),
    "no such granularity": (lambda layout, pieces: layout["w"].update(granularity="column"), "granularity"),
    "a list": (lambda layout, pieces: layout.update(w=[]), "granularity"),
    "no scales": (lambda layout, pieces: pieces.pop("w:scale"), "must be of one floating-point type|impossible shapes"),
    "no zeros": (lambda layout, pieces: pieces.pop("w:zero"), "impossible shapes"),
    "a row of scales": (lambda layout, pieces: pieces.update({"w:scale": torch.ones(8)}), "impossible shapes"),
    "zeros of others": (lambda layout, pieces: pieces.update({"w:zero": torch.ones(7, 1)}), "impossible shapes"),
    "both": (lambda layout, pieces: pieces.update({"w:levels": torch.ones(8, 3)}), "impossible shapes"),
    "whole numbers": (lambda layout, pieces: pieces.update({"w:scale": torch.ones(8, 1).int()}), "floating-point"),
    "two types": (lambda layout, pieces: pieces.update({"w:scale": torch.ones(8, 1).double(), "w:zero": torch.full((1, 1), 0.5)}), "floating-point"),
    "a stranger": (lambda layout, pieces: pieces.update({"v:scale": torch.ones(8, 1)}), "not those of its layout: v:scale"),
    "one more": (lambda layout, pieces: layout.update(v=layout["w"]), "v has a grid of nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(name, tmp_path):
    change, words = FORGERIES[name]
    forge(tmp_path, lambda layout, pieces: None)
    assert list(read_grids(tmp_path)) == ["w"]
    forge(tmp_path, change)
    with pytest.raises(ValueError, match=words) as caught:
        read_grids(tmp_path)
    assert "is damaged" in str(caught.value)


def test_files_of_others(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / GRIDS)
    with pytest.raises(ValueError, match="is no file of grids of distill_system"):
        read_grids(tmp_path)
    write_grids(tmp_path, sample())
    pieces = load_file(tmp_path / GRIDS)
    header = {"format": KIND.format, "version": 2, "layout": {}, "checksums": []}
    save_file(pieces, tmp_path / GRIDS, metadata={KIND.format: json.dumps(header)})
    with pytest.raises(ValueError, match="has version 2 of the format, this program reads 1: update distill_system"):
        read_grids(tmp_path)
