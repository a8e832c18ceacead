"""Packed files that were cut, changed or forged: refused in words, or read as they were; nothing is half loaded, and nothing else ever happens."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distill_system.models.checked_file import write_checked
from distill_system.models.packed_file import KIND, read_packed_head, read_stored, read_tensors
from distill_system.models.packed_matrix import PackedMatrix
from distill_system.models.weights import PACKED
from tests.models.on_grids import attempt
from tests.models.test_packed_file import equal, sample


def refused(folder, words: str) -> None:
    for read in (read_stored, read_tensors):
        with pytest.raises(ValueError, match=words) as caught:
            read(folder)
        assert str(folder) in str(caught.value)


def replace(folder, content: bytes) -> None:
    """A new file: the old one may still be in use."""
    (folder / PACKED).unlink(missing_ok=True)
    (folder / PACKED).write_bytes(content)


def test_600_files_with_changed_bytes_are_refused_or_read_the_same(tmp_path):
    """Only spaces that fill the header up may change without harm."""
    tensors = sample(tmp_path)
    whole = (tmp_path / PACKED).read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(0)
    harmless = 0
    for number in range(600):
        broken = bytearray(whole)
        places = [generator.randrange(*((begin, len(whole)) if number % 2 else (0, begin)))]
        places += [generator.randrange(len(whole)) for _ in range(number % 3)]
        for place in places:
            broken[place] ^= generator.randrange(1, 256)
        replace(tmp_path, bytes(broken))
        loaded = attempt(read_tensors, tmp_path)
        if isinstance(loaded, str):
            assert str(tmp_path) in loaded
            continue
        harmless += 1
        assert all(place < begin for place in places)
        assert equal(loaded, tensors)
    assert harmless < 12


def test_200_files_cut_short_or_made_longer_are_refused(tmp_path):
    sample(tmp_path)
    whole = (tmp_path / PACKED).read_bytes()
    for length in [*range(0, 40), *np.linspace(41, len(whole) - 1, 150, dtype=int).tolist()]:
        replace(tmp_path, whole[:length])
        refused(tmp_path, "is damaged")
    for more in range(1, 11):
        replace(tmp_path, whole + bytes(more))
        refused(tmp_path, "is damaged: it is longer than its header says")


NASTY = [
    -1,
    0,
    1,
    2,
    3,
    5,
    7,
    255,
    256,
    257,
    2**31,
    2**40,
    2**63,
    2**200,
    1.5,
    1e300,
    "x",
    "64",
    None,
    True,
    [],
    {},
    [1],
    "row",
]


def forge(folder, change, source=None) -> None:
    """Writes the sample anew with changed layout or pieces, and the right checksums: a forger knows them too."""
    if source is None:
        sample(source := folder)
    layout, pieces = copy.deepcopy(read_packed_head(source).layout), load_file(source / PACKED)
    change(layout, pieces)
    (folder / PACKED).unlink(missing_ok=True)
    write_checked(folder / PACKED, KIND, pieces, layout)


def at_random(generator: random.Random):
    """A change of one field of the layout, or of one piece."""

    def change(layout, pieces) -> None:
        name = generator.choice(sorted(layout))
        kind = generator.randrange(8)
        if kind < 3:
            layout[name][generator.choice([*layout[name], "outputs", "common", "size"])] = generator.choice(NASTY)
        elif kind == 3:
            layout[name].pop(generator.choice(sorted(layout[name])))
        elif kind == 4:
            layout[generator.choice([name, "bias", "other"])] = generator.choice([*NASTY, layout[name]])
        else:
            part = generator.choice(sorted(one for one in pieces if one.startswith(f"{name}:")))
            piece = pieces.pop(part)
            if kind == 5:
                pieces[generator.choice([part + "x", "other:codes", name, "other"])] = piece
            elif kind == 6:
                shapes = [
                    piece.flatten(),
                    piece[None],
                    piece[:-1],
                    piece[:0],
                    piece.repeat(2, *[1] * (piece.dim() - 1)),
                ]
                pieces[part] = generator.choice(shapes).contiguous()
            else:
                values = torch.randint(
                    0, 256, piece.shape, generator=torch.Generator().manual_seed(generator.randrange(99))
                )
                pieces[part] = values.to(generator.choice([torch.uint8, torch.int64, torch.float16, torch.float32]))

    return change


def test_400_forged_files_are_refused_or_sound(tmp_path):
    """What checksums can't tell is whether values are the right ones; whatever is read can be computed with."""
    generator = random.Random(1)
    read = 0
    (tmp_path / "source").mkdir()
    sample(tmp_path / "source")
    for _ in range(400):
        forge(tmp_path, at_random(generator), tmp_path / "source")
        stored = attempt(read_stored, tmp_path)
        if isinstance(stored, str):
            assert str(tmp_path) in stored
            continue
        read += 1
        for piece in stored.values():
            if isinstance(piece, PackedMatrix):
                assert piece.codes().numel() == 0 or int(piece.codes().max()) < piece.count
                assert piece.dense().shape == piece.shape
    assert read < 120


def setting(name: str, **values):
    return lambda layout, pieces: layout[name].update(values)


def piece(name: str, change):
    return lambda layout, pieces: pieces.update({name: change(pieces[name]).contiguous()})


FORGERIES = {
    "more inputs": (setting("ternary", inputs=36), "expected rows of 8 bytes for 36 of 3 levels"),
    "fewer inputs": (setting("ternary", inputs=30), "expected rows of 6 bytes"),
    "inputs that groups don't divide": (setting("binary.grouped", inputs=36), "has groups whose size doesn't divide"),
    "no inputs": (setting("ternary", inputs=0), "impossible layout"),
    "a negative side": (setting("ternary", inputs=-33), "impossible layout"),
    "a fraction": (setting("ternary", inputs=33.0), "impossible layout"),
    "a word": (setting("ternary", inputs="33"), "impossible layout"),
    "a truth value": (setting("ternary", inputs=True), "impossible layout"),
    "only half a bitmap": (setting("ternary", common=1), "impossible layout"),
    "a bitmap that isn't there": (setting("ternary", common=1, outputs=12), "not those of its layout: ternary"),
    "a bitmap of more rows": (setting("pruned", outputs=41), "has a bitmap of .* for 41 rows of 90"),
    "a common code too large": (setting("pruned", common=16), "codes beyond its 16 levels"),
    "a promise of terabytes": (setting("pruned", outputs=2**40), "would fill .* bytes of memory"),
    "another count": (setting("three", count=6), "codes beyond its 6 levels"),
    "fewer levels": (setting("levels", count=2), "impossible shapes"),
    "another granularity": (setting("ternary", granularity="tensor"), "has 12 grids for 1 groups"),
    "other groups": (setting("binary.grouped", size=4), "has 30 grids for 60 groups"),
    "a layout that is a list": (lambda layout, pieces: layout.update(ternary=[]), "impossible layout"),
    "one tensor less": (lambda layout, pieces: layout.pop("ternary"), "not those of its layout: ternary:codes"),
    "one tensor more": (lambda layout, pieces: layout.update(x=layout["ternary"]), "not those of its layout: x"),
    "a tensor twice": (lambda layout, pieces: pieces.update(ternary=torch.ones(1)), "not those of its layout: ternary"),
    "codes of nobody": (lambda layout, pieces: pieces.update({"x:codes": torch.ones(1)}), "not those of its layout: x:codes"),
    "no codes": (lambda layout, pieces: pieces.pop("ternary:codes"), "not those of its layout: ternary"),
    "codes beyond 3": (piece("ternary:codes", lambda t: t | 255), "codes beyond its 3 levels"),
    "codes beyond 7": (piece("three:codes", lambda t: t | 255), "codes beyond its 7 levels"),
    "codes cut": (piece("ternary:codes", lambda t: t[:, :-1]), "expected rows of 7 bytes"),
    "rows cut": (piece("ternary:codes", lambda t: t[:-1]), "has 12 grids for 11 groups"),
    "codes in a row": (piece("ternary:codes", lambda t: t.flatten()), "has 12 grids for 84 groups|expected rows"),
    "codes as floats": (piece("ternary:codes", lambda t: t.float()), "has torch.float32 codes"),
    "a scalar": (piece("ternary:codes", lambda t: t[0, 0]), "has 0 rows"),
    "a bitmap all kept": (piece("pruned:kept", lambda t: t | 255), "its bitmap keeps 3600 weights"),
    "a bitmap cut": (piece("pruned:kept", lambda t: t[:-1]), "has a bitmap of"),
    "kept codes beyond": (lambda layout, pieces: (setting("pruned", count=9)(layout, pieces), piece("pruned:codes", lambda t: t | 255)(layout, pieces)), "codes beyond its 9 levels"),
    "scales of others": (piece("ternary:scale", lambda t: t[:-1]), "impossible shapes"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(name, tmp_path):
    change, words = FORGERIES[name]
    forge(tmp_path, change)
    refused(tmp_path, words)


def test_forging_nothing_is_read(tmp_path):
    """The forger above writes sound files, so that what is refused is refused for the change."""
    forge(tmp_path, lambda layout, pieces: None)
    assert equal(read_tensors(tmp_path), sample(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "has version 2 of the format, this program reads 1: update distill_system"),
        ({"version": "1"}, "is no packed model of distill_system"),
        ({"version": True}, "is no packed model of distill_system"),
        ({"format": "pt"}, "is no packed model of distill_system"),
        ({"checksum": 1}, "its header has another checksum"),
        ({"layout": {}}, "its header has another checksum"),
        ({"layout": []}, "doesn't tell its layout"),
        ({"checksums": []}, "not the checksums of its pieces"),
        ({"checksums": None}, "not the checksums of its pieces"),
    ],
)
def test_headers_of_others_are_refused(change, words, tmp_path):
    sample(tmp_path)
    pieces = load_file(tmp_path / PACKED)
    with safe_open(tmp_path / PACKED, framework="pt") as file:
        header = json.loads(file.metadata()[KIND.format])
    save_file(pieces, tmp_path / PACKED, metadata={KIND.format: json.dumps(header | change)})
    refused(tmp_path, words)


def test_swapped_pieces_and_renamed_dtypes_are_refused(tmp_path):
    """The file's own header is under the checksum too: names, shapes and dtypes."""
    sample(tmp_path)
    whole = (tmp_path / PACKED).read_bytes()
    for old, new in [
        (b'"eight:codes"', b'"eighu:codes"'),
        (b'"dtype":"F16"', b'"dtype":"I16"'),
        (b'"shape":[12,7]', b'"shape":[7,12]'),
    ]:
        assert old in whole
        replace(tmp_path, whole.replace(old, new, 1))
        refused(tmp_path, "its header has another checksum")


def test_no_file_and_no_safetensors(tmp_path):
    refused(tmp_path, f"holds no {PACKED}")
    replace(tmp_path, b"this is no model, whatever its name says")
    refused(tmp_path, "is damaged")
    header = b'{"__metadata__":{"distill_packed":' + b"[" * 100_000
    replace(tmp_path, len(header).to_bytes(8, "little") + header)
    refused(tmp_path, "is damaged")
    save_file({"a": torch.zeros(1)}, tmp_path / PACKED, metadata={KIND.format: "[" * 100_000})
    refused(tmp_path, "is no packed model of distill_system")
    save_file({"a": torch.zeros(1)}, tmp_path / PACKED)
    refused(tmp_path, "is no packed model of distill_system")
