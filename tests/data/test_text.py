"""Texts from files and folders; and each way they can be wrong gives a sentence with the right key."""

import json

import pytest

from distill_system.data.base import Rows
from distill_system.data.text import Text, boundary, split_by_position


def fill(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_folder_of_documents(tmp_path):
    fill(tmp_path, **{f"a__{i}_dot_txt": f"text {i}" for i in range(40)})
    fill(
        tmp_path, b_dot_jsonl="".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(40)), c_dot_md="not read"
    )
    splits = Text(str(tmp_path), test_fraction=0.2, validation_fraction=0.2).read()
    texts = [text for rows in splits.values() for text in rows.texts]
    assert sorted(texts) == sorted([f"text {i}" for i in range(40)] + [f"line {i}" for i in range(40)])
    assert set(splits) == {"train", "validation", "test"}
    ids = {id_ for rows in splits.values() for id_ in rows.ids}
    assert {"a/0.txt", "b.jsonl:1"} <= ids
    only = Text(str(tmp_path), pattern="a/*.txt").read()
    assert sum(map(len, only.values())) == 40


def test_one_file_is_split_by_position(tmp_path):
    text = "".join(f"Paragraph {i} speaks.\n\n" for i in range(100))
    fill(tmp_path, one_dot_txt=text)
    splits = Text(str(tmp_path / "one.txt")).read()
    joined = "".join(splits[split].texts[0] for split in ("train", "validation", "test"))
    assert joined == text
    assert all(splits[split].texts[0].startswith("Paragraph") for split in splits)
    assert len(splits["test"].texts[0]) == pytest.approx(0.1 * len(text), rel=0.15)


@pytest.mark.parametrize("text", ["word " * 50, "x" * 200, "line\n" * 40, "a"])
def test_position_loses_nothing(text):
    parts = split_by_position(Rows(["d"], [text]), 0.1, 0.2)
    assert "".join(part.texts[0] for part in parts.values()) == text
    assert "test" in parts or len(text) < 5


def test_boundary_by_hand():
    assert boundary("aa\n\nbb bb bb", 0.5) == 6  # no paragraph ends in the tenth before, nor a word: the exact place
    assert boundary("aaaa\n\nbbbb", 0.6) == 6
    assert boundary("abc", 1.0) == 3


def test_fractions_of_zero_leave_all_for_training(tmp_path):
    fill(tmp_path, a_dot_txt="one two three")
    assert set(Text(str(tmp_path), validation_fraction=0.0, test_fraction=0.0).read()) == {"train"}


def test_fingerprint(tmp_path):
    first, second = fill(tmp_path / "x", a_dot_txt="one"), fill(tmp_path / "y", a_dot_txt="one")
    assert Text(str(first)).fingerprint() == Text(str(second)).fingerprint()
    fill(second, a_dot_txt="two")
    assert Text(str(first)).fingerprint() != Text(str(second)).fingerprint()


BAD = [
    ({}, {"path": None}, "path", "not set; add data.path=FILE"),
    ({}, {"path": "gone"}, "path", "doesn't exist"),
    ({}, {}, "path", "without .txt or .jsonl"),
    ({"a_dot_txt": " \n"}, {}, "path", "holds no text"),
    ({"a_dot_txt": ""}, {"path": "a.txt"}, "path", "is empty"),
    ({"a_dot_md": "x"}, {"path": "a.md"}, "path", "must be a .txt or .jsonl file"),
    ({"a_dot_txt": b"one\n\xff"}, {}, "path", "line 2 of a.txt is not UTF-8"),
    ({"a_dot_jsonl": '{"text": "x"}\nnonsense\n'}, {}, "path", "line 2 of a.jsonl is not JSON"),
    ({"a_dot_jsonl": '{"txt": "x"}\n'}, {}, "text_field", "did you mean 'txt'?"),
    ({"a_dot_jsonl": '{"text": 5}\n'}, {}, "text_field", "no text in object 1"),
    ({"a_dot_txt": "x"}, {"pattern": "*.md"}, "pattern", "fits no"),
    ({"a_dot_txt": "x"}, {"pattern": "/x"}, "pattern", "must be a pattern"),
    ({"a_dot_txt": "x"}, {"block_size": 1}, "block_size", "must be >= 2"),
    ({"a_dot_txt": "x"}, {"validation_fraction": 0.9, "test_fraction": 0.2}, "validation_fraction", "together"),
]


@pytest.mark.parametrize(("files", "changes", "key", "words"), BAD)
def test_bad_input_gives_a_sentence(tmp_path, monkeypatch, files, changes, key, words):
    monkeypatch.chdir(fill(tmp_path, **files))
    problems = Text(**({"path": "."} | changes)).problems()
    assert [problem.key for problem in problems] == [f"data.{key}"]
    assert words in problems[0].message
    assert "\n" not in problems[0].message
