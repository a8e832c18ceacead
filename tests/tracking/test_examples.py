"""Pictures in the report's examples: only those that an evaluation wrote go into the page as they are."""

import pytest

from distill_system.tracking.examples import disagreements

PNG = "data:image/png;base64,iVBORw0KGgo="


def shown(picture):
    row = {"id": "a", "text": "a.png", "label": "x", "prediction": "x", "teacher_prediction": "y", "picture": picture}
    (found,) = disagreements({"student": {"labels": ["x", "y"], "rows": [row]}}, {"student": ["teacher"]})
    return found["shown"][0]


def test_a_picture_is_shown():
    assert shown(PNG)["picture"] == PNG
    assert shown(PNG)["text"] == "a.png"


@pytest.mark.parametrize(
    "picture", [None, 3, "https://example.org/a.png", f'{PNG}" onerror="x', "data:text/html;base64,AA"]
)
def test_nothing_else_is(picture):
    assert shown(picture)["picture"] is None
