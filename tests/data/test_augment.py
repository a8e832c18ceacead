"""Views of pictures: worked by hand, the same whatever else is in the batch, each changed in the way that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.data.augment import Augmentation, augment, chosen, draws, mix

PICTURE = np.arange(1, 10, dtype=np.uint8).reshape(1, 1, 3, 3)


def views(settings, count=200, picture=PICTURE, **options):
    batch = np.repeat(picture, count, axis=0)
    return augment(batch, np.arange(count), settings=settings, **({"seed": 3, "epoch": 0} | options))


def test_hash_of_the_paper():
    # The first outputs of splitmix64 from the state 0 (Steele, Lea and Flood 2014, reference implementation).
    assert hex(int(mix(np.zeros(1, dtype=np.uint64))[0])) == "0xe220a8397b1dcdaf"
    assert hex(int(mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0])) == "0x6e789e6aa1b965f4"


def test_draws_are_even_and_differ_between_epochs_seeds_and_samples():
    chance = draws(1, 2, np.arange(20_000), 4)
    assert chance.min() >= 0
    assert chance.max() < 1
    assert np.allclose(chance.mean(axis=0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(chance.T) - np.eye(4)).max() < 0.03
    for other in (draws(2, 2, [0], 4), draws(1, 3, [0], 4), draws(1, 2, [1], 4), draws(1 << 32, 2, [0], 4)):
        assert not np.any(other == chance[0])


def test_flip_mirrors_half_of_the_pictures():
    found = views(Augmentation(flip=True))
    mirrored = (found == PICTURE[..., ::-1]).all(axis=(1, 2, 3))
    assert ((found == PICTURE).all(axis=(1, 2, 3)) | mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_shift_moves_by_each_offset_and_lets_black_in():
    found = {view.tobytes() for view in views(Augmentation(shift=1))}
    padded = np.pad(PICTURE[0, 0], 1)
    wanted = {padded[top : top + 3, left : left + 3].tobytes() for top in range(3) for left in range(3)}
    assert found == wanted


def test_cutout_sets_a_square_to_the_fill():
    picture = np.full((1, 2, 8, 8), 9, dtype=np.uint8)
    found = views(Augmentation(cutout=2), picture=picture, fill_C=[1, 0])
    for view in found:
        assert set(np.unique(view[0])) == {1, 9}
        assert set(np.unique(view[1])) == {0, 9}
        assert ((view[0] == 1) == (view[1] == 0)).all()
    assert {int((view[0] == 1).sum()) for view in found} == {1, 2, 4}  # a square at the border is cut itself
    assert (picture == 9).all()  # the input isn't changed


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(0, 2**32), st.integers(0, 50))
def test_a_view_does_not_depend_on_its_neighbours(index, seed, epoch):
    settings = Augmentation(shift=1, flip=True, cutout=1)
    options = {"settings": settings, "seed": seed, "epoch": epoch}
    together = augment(np.repeat(PICTURE, len(index), axis=0), index, **options)
    for i, view in zip(index, together, strict=True):
        assert (augment(PICTURE, [i], **options)[0] == view).all()


def test_settings():
    assert chosen("none", 2, True, 3) is None
    assert chosen("standard", 0, False, 0) is None
    assert chosen("standard", 2, True, 3) == Augmentation(2, True, 3)
    assert [p.key for p in Augmentation(28, False, 30).problems("data", 28)] == ["data.shift", "data.cutout"]
    assert Augmentation(27, True, 27).problems("data", 28) == []


@pytest.mark.parametrize("settings", [Augmentation(), Augmentation(shift=0, flip=False)])
def test_nothing_to_do(settings):
    assert (views(settings, count=3) == PICTURE).all()
