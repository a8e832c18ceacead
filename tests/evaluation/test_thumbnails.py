"""Which rows of predictions.json get a picture."""

from distill_system.evaluation import thumbnails


class Store:
    def picture(self, i):
        return f"picture {i}"


def rows(*answers):
    names = ("id", "label", "prediction", "confidence", "teacher_prediction", "teacher_confidence")
    return [dict(zip(names, answer, strict=True)) for answer in answers]


def test_rows_where_the_two_disagree_the_surest_first(monkeypatch):
    monkeypatch.setattr(thumbnails, "MOST", 2)
    found = rows(
        ("a", "x", "x", 0.9, "x", 0.9),
        ("b", "x", "y", 0.5, "x", 0.5),
        ("c", "x", "y", 0.9, "x", 0.5),
        ("d", "x", "y", 0.9, "z", 0.8),
    )
    thumbnails.add_pictures(found, [4, 5, 6, 7], Store())
    assert [row.get("picture") for row in found] == [None, None, "picture 6", "picture 7"]


def test_without_a_teacher_the_mistakes():
    found = rows(("a", "x", "x", 0.9, None, None), ("b", "x", "y", 0.5, None, None))
    thumbnails.add_pictures(found, [0, 1], Store())
    assert [row.get("picture") for row in found] == [None, "picture 1"]


def test_texts_have_none():
    found = rows(("a", "x", "y", 0.9, None, None))
    thumbnails.add_pictures(found, [0], object())
    assert "picture" not in found[0]
