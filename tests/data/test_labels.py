"""Noise, labels taken away, classes left out: exact counts, by hash alone, in the training rows alone."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_system.data import labels
from distill_system.data.base import Rows
from distill_system.settings import LabelNoise

NAMES = ["a", "b", "c", "d"]


def rows(count, classes=NAMES):
    return Rows(
        [f"r{i}" for i in range(count)],
        [f"text {i}" for i in range(count)],
        None,
        [classes[i % len(classes)] for i in range(count)],
    )


def test_doctests():
    assert doctest.testmod(labels).failed == 0


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 5), st.sampled_from(["symmetric", "pair"]))
def test_exactly_the_share_of_known_labels_changes(count, rate, seed, kind):
    before = rows(count)
    before.labels = [label if i % 5 else None for i, label in enumerate(before.labels)]
    noise = LabelNoise(rate=rate, kind=kind, seed=seed)
    after = labels.training_rows(before, NAMES, label_noise=noise)
    changed = [i for i in range(count) if after.labels[i] != before.labels[i]]
    known = sum(label is not None for label in before.labels)
    assert len(changed) == round(rate * known)
    assert all(before.labels[i] is not None and after.labels[i] in NAMES for i in changed)
    if rate > 0:
        assert [i for i, true in enumerate(after.true_labels) if true is not None] == changed
        assert all(after.true_labels[i] == before.labels[i] for i in changed)


def test_the_order_of_rows_has_no_say_and_more_noise_hits_the_same_rows():
    before = rows(200)
    after = labels.training_rows(before, NAMES, label_noise=0.2)
    by_id = dict(zip(after.ids, after.labels, strict=True))
    turned = labels.training_rows(before.take(range(199, -1, -1)), NAMES, label_noise=0.2)
    assert dict(zip(turned.ids, turned.labels, strict=True)) == by_id
    more = labels.training_rows(before, NAMES, label_noise=0.4)
    wrong = [{i for i, true in enumerate(part.true_labels) if true is not None} for part in (after, more)]
    assert wrong[0] < wrong[1]
    assert all(after.labels[i] == more.labels[i] for i in wrong[0])
    other = labels.training_rows(before, NAMES, label_noise=LabelNoise(rate=0.2, seed=1))
    assert {i for i, true in enumerate(other.true_labels) if true is not None} != wrong[0]


def test_symmetric_noise_chooses_every_other_class_alike_and_pair_the_next():
    before = rows(12_000)
    after = labels.training_rows(before, NAMES, label_noise=1.0)
    steps = [(NAMES.index(new) - NAMES.index(old)) % 4 for old, new in zip(before.labels, after.labels, strict=True)]
    for step in (1, 2, 3):
        assert steps.count(step) == pytest.approx(4000, abs=160)  # three standard errors
    pair = labels.training_rows(before, NAMES, label_noise=LabelNoise(rate=1.0, kind="pair"))
    assert pair.labels[:4] == ["b", "c", "d", "a"]


def test_a_label_that_is_taken_away_isn_t_changed_before():
    after = labels.training_rows(rows(100), NAMES, label_noise=0.5, labelled=0.3)
    assert sum(label is not None for label in after.labels) == 30
    assert sum(true is not None for true in after.true_labels) == 15
    assert all(after.labels[i] is not None for i, true in enumerate(after.true_labels) if true is not None)
    fewer = labels.training_rows(rows(100), NAMES, labelled=0.1)
    kept = {i for i, label in enumerate(fewer.labels) if label is not None}
    assert len(kept) == 10
    assert all(after.labels[i] is not None for i in kept)  # nested
    assert all(label is None for label in labels.training_rows(rows(10), NAMES, labelled=0.0).labels)


def test_classes_left_out():
    after = labels.training_rows(rows(40), NAMES, without_classes=["b", "d"])
    assert set(after.labels) == {"a", "c"}
    assert after.ids == [f"r{i}" for i in range(0, 40, 2)]
    source = type(
        "S", (), {"label_noise": 0.0, "labelled": 1.0, "without_classes": ["b"], "label_names": lambda self: NAMES}
    )()
    splits = labels.with_training_rows({"train": rows(8), "test": rows(8)}, source)
    assert (len(splits["train"]), len(splits["test"])) == (6, 8)


def test_unlabelled_rows_can_be_dropped():
    after = labels.training_rows(rows(100), NAMES, labelled=0.3, label_noise=0.5, unlabelled="drop")
    whole = labels.training_rows(rows(100), NAMES, labelled=0.3, label_noise=0.5)
    assert len(after) == 30
    assert after.labels == [label for label in whole.labels if label is not None]
    assert sum(true is not None for true in after.true_labels) == 15


def test_nothing_asked_for_changes_nothing():
    before = rows(10)
    after = labels.training_rows(before, NAMES)
    assert (after.labels, after.true_labels) == (before.labels, None)


def test_one_noise_has_one_fingerprint():
    spelt = [0.2, {"rate": 0.2}, LabelNoise(rate=0.2)]
    assert len({str(labels.settings_of(noise)) for noise in spelt}) == 1


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"without_classes": ["bb"]}, "data.without_classes[0]", "'bb', which is no label"),
        ({"without_classes": ["a", "b", "c"]}, "data.without_classes", "leaves 1 of 4 classes"),
        ({"labelled": 0.0, "unlabelled": "drop"}, "data.labelled", "no row is left to train on"),
        ({"label_noise": 0.1, "task": "regression"}, "data.label_noise", "regression task doesn't have"),
        ({"without_classes": ["a"], "task": "multi_label"}, "data.without_classes", "multi_label task doesn't have"),
    ],
)
def test_what_is_refused(settings, key, words):
    (problem,) = labels.setting_problems("data", names=NAMES, **settings)
    assert problem.key == key
    assert words in problem.message


def test_a_sentence_for_the_report():
    (said,) = labels.sentences(labels.training_rows(rows(10), NAMES, label_noise=0.2))
    assert said.startswith("2 of 10 training rows have a wrong label on purpose")
    assert labels.sentences(rows(3)) == []


def test_whether_any_label_is_known(tmp_path):
    from distill_system.data.movie_reviews import MovieReviews
    from distill_system.data.table import Table

    assert labels.none_known(MovieReviews(labelled=0.0))
    assert not labels.none_known(MovieReviews(labelled=0.1))
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"t{i},\n" for i in range(20)))
    assert labels.none_known(Table(str(path), allow_unlabelled=True))
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(20)))
    assert not labels.none_known(Table(str(path), allow_unlabelled=True))
