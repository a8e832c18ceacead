"""The movie reviews: parsing by hand, and the real rows out of the package (fetched once into the cache)."""

import pytest

from distill_system.data.movie_reviews import MovieReviews, parse


def test_parse_drops_zeros():
    rows = parse("1\t2.26\tA ''splash'' it is.\r\n2\t0\tA film.\r\n3\t-0.6\tToo tepid. \r\n")
    assert rows.ids == ["1", "3"]
    assert rows.texts == ["A ''splash'' it is.", "Too tepid."]
    assert rows.labels == ["positive", "negative"]


def test_checks_need_no_download(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert MovieReviews().problems() == []
    assert MovieReviews().label_names() == ["negative", "positive"]
    problems = MovieReviews(validation_fraction=0.5, test_fraction=0.5).problems("data")
    assert [problem.key for problem in problems] == ["data.validation_fraction"]
    assert list(tmp_path.iterdir()) == []


def test_the_real_rows():
    splits = MovieReviews().read()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8526, "validation": 533, "test": 1509}
    assert splits["train"].ids[:3] == ["1", "2", "3"]
    positive = sum(label == "positive" for rows in splits.values() for label in rows.labels)
    assert positive / 10_568 == pytest.approx(0.5, abs=0.01)
    few = MovieReviews(limit=100, validation_fraction=0.2).read()
    assert {split: len(rows) for split, rows in few.items()} == {"train": 100, "validation": 100, "test": 100}
    assert set(few["test"].ids) <= set(splits["test"].ids)
