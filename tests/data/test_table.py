"""Tables in every format; and each way a table can be wrong gives a sentence with the right key."""

import json
import random
import time

import pandas
import pytest

from distill_system.data.table import Table
from distill_system.errors import Refusal

ROWS = "".join(f"film {i},{'good' if i % 2 else 'bad'}\n" for i in range(40))
GOOD = "text,label\n" + ROWS


def write(folder, content, name="data.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def flat(splits):
    return {
        i: (text, label)
        for rows in splits.values()
        for i, text, label in zip(rows.ids, rows.texts, rows.labels, strict=True)
    }


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.parquet"])
def test_formats_give_the_same_rows(tmp_path, name):
    frame = pandas.DataFrame({"text": [f'a "b", c {i}' for i in range(30)], "label": [i % 3 for i in range(30)]})
    path = tmp_path / name
    {
        "data.csv": lambda: frame.to_csv(path, index=False),
        "data.tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "data.jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "data.parquet": lambda: frame.to_parquet(path),
    }[name]()
    table = Table(str(path))
    assert table.problems() == []
    assert table.label_names() == ["0", "1", "2"]
    assert flat(table.read()) == {f"data:{i + 1}": (f'a "b", c {i}', str(i % 3)) for i in range(30)}


def test_split_by_fraction_keeps_equal_texts_together(tmp_path):
    path = write(tmp_path, "text,label\n" + 3 * "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(300)))
    splits = Table(path, validation_fraction=0.2, test_fraction=0.2).read()
    texts = {split: set(rows.texts) for split, rows in splits.items()}
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert sum(map(len, splits.values())) == 900


def test_split_by_column_and_by_id(tmp_path):
    words = ["train", "train", "Dev", "test"]
    path = write(
        tmp_path, "text,label,part,key\n" + "".join(f"t{i},{'ab'[i % 2]},{words[i % 4]},k{i // 4}\n" for i in range(80))
    )
    splits = Table(path, split_column="part", id_column="key").read()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 40, "validation": 20, "test": 20}
    splits = Table(path, id_column="key").read()
    ids = {split: set(rows.ids) for split, rows in splits.items()}
    assert not ids["train"] & ids["test"]  # four rows with one id stay together


def test_split_by_files(tmp_path):
    paths = {
        name: write(tmp_path, f"text,label\n{name} x,a\n{name} y,b\n", f"{name}.csv")
        for name in ("path", "validation_path", "test_path")
    }
    splits = Table(**paths).read()
    assert {split: rows.texts for split, rows in splits.items()} == {
        "train": ["path x", "path y"],
        "validation": ["validation_path x", "validation_path y"],
        "test": ["test_path x", "test_path y"],
    }


def test_rows_without_a_label_teach_through_a_teacher_only(tmp_path):
    path = write(tmp_path, GOOD + "".join(f"unknown {i},\n" for i in range(40)))
    splits = Table(path).read()
    assert splits["train"].labels.count(None) == 40
    assert None not in splits["test"].labels + splits["validation"].labels
    path = write(tmp_path, "text\n" + "".join(f"film {i}\n" for i in range(40)))
    table = Table(path, label_column=None, allow_unlabelled=True)
    assert table.problems() == []
    assert table.label_names() == []
    assert set(table.read()) == {"train", "validation", "test"}


def test_pairs_limit_and_words_that_pandas_takes_for_nothing(tmp_path):
    path = write(
        tmp_path, "text,other,label\n" + "".join(f"NA {i},null,{'None' if i % 2 else '007'}\n" for i in range(50))
    )
    table = Table(path, second_text_column="other", limit=7)
    assert table.label_names() == ["007", "None"]
    splits = table.read()
    assert len(splits["train"]) == 7
    assert set(splits["train"].pairs) == {"null"}


def test_byte_order_mark(tmp_path):
    assert Table(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).problems() == []


def test_fingerprint_is_of_the_content_not_the_place(tmp_path):
    first, second = write(tmp_path, GOOD), write(tmp_path, GOOD, "again.csv")
    assert Table(first).fingerprint() == Table(second).fingerprint()
    assert Table(first).fingerprint() != Table(first, test_fraction=0.2).fingerprint()
    assert Table(first).fingerprint() != Table(write(tmp_path, GOOD + "more,good\n", "more.csv")).fingerprint()
    json.dumps(Table(first).fingerprint())


BAD = [  # name, content (None: no file), settings, key, words of the sentence
    ("data.csv", GOOD, {"path": None}, "path", "not set; add data.path=FILE"),
    ("data.csv", GOOD, {"path": "dat.csv"}, "path", "did you mean 'data.csv'"),
    ("data.csv", GOOD, {"path": "nowhere/x.csv"}, "path", "no folder"),
    ("data.csv", GOOD, {"path": "."}, "path", "a folder"),
    ("data.csv", "", {}, "path", "which is empty"),
    ("data.csv", "\n\n", {}, "path", "blank lines"),
    ("data.csv", "text,label\n", {}, "path", "a header but no rows"),
    ("data.xlsx", GOOD, {}, "format", "set data.format"),
    ("data.csv", GOOD.encode() + b"caf\xe9,good\n", {}, "path", "line 42 of data.csv is not UTF-8 (byte 0xE9)"),
    ("data.csv", GOOD, {"text_column": "texts"}, "text_column", "did you mean 'text'?"),
    ("data.csv", GOOD, {"label_column": "stars"}, "label_column", "known: label, text"),
    ("data.csv", GOOD, {"second_text_column": "other"}, "second_text_column", "no column"),
    ("data.csv", GOOD, {"id_column": "id"}, "id_column", "no column"),
    ("data.csv", GOOD, {"split_column": "part"}, "split_column", "no column"),
    ("data.csv", GOOD, {"split_column": "label"}, "split_column", "holds 'bad'"),
    (
        "data.csv",
        "text,label,part\n" + "a,x,test\nb,y,test\n",
        {"split_column": "part"},
        "split_column",
        "no row 'train'",
    ),
    ("data.csv", GOOD + ",good\n", {}, "text_column", "blank in 1 of 41 rows of data.csv (first: row 41)"),
    ("data.csv", "text,label\n" + "film 1,good\n" * 20, {}, "label_column", "one label only ('good')"),
    ("data.csv", "text,label\n" + "film 1,\n" * 20, {}, "label_column", "no label in any training row"),
    ("data.csv", GOOD, {"label_column": None}, "label_column", "allow_unlabelled=true"),
    ("data.csv", GOOD + 'x,"y\n', {}, "path", "not a csv file"),
    ("data.csv", GOOD + "x,y,z\n", {}, "path", "Expected 2 fields in line 42, saw 3"),
    (
        "data.csv",
        GOOD,
        {"test_fraction": 0.6, "validation_fraction": 0.4},
        "validation_fraction",
        "together they must be < 1",
    ),
    ("data.csv", GOOD, {"test_fraction": 1.5}, "test_fraction", "is 1.5"),
    ("data.csv", GOOD, {"split_column": "label", "test_path": "data.csv"}, "split_column", "drop one"),
    ("data.csv", GOOD, {"test_path": "gone.csv"}, "test_path", "doesn't exist"),
    ("data.csv", "text,label\na,x\nb,y\n", {}, "test_fraction", "name data.test_path"),
    ("data.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, "path", "line 2 of data.jsonl is not JSON"),
    ("data.jsonl", '{"text": "a", "label": 1}\n[1]\n', {}, "path", "line 2 of data.jsonl is not a JSON object"),
    ("data.jsonl", '{"text": "\\ud800", "label": 1}\n', {}, "path", "surrogate"),
    ("data.parquet", "not parquet", {}, "path", "not a parquet file"),
]


@pytest.mark.parametrize(("name", "content", "changes", "key", "words"), BAD, ids=lambda value: None)
def test_bad_input_gives_a_sentence(tmp_path, monkeypatch, name, content, changes, key, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, content, name)
    table = Table(**({"path": name} | changes))
    problems = table.problems()
    assert [problem.key for problem in problems] == [f"data.{key}"]
    assert words in problems[0].message
    assert "\n" not in problems[0].message
    with pytest.raises(Refusal):
        table.read()


def test_labels_that_training_lacks(tmp_path):
    test = write(tmp_path, "text,label\nx,goood\ny,bad\n", "test.csv")
    problems = Table(write(tmp_path, GOOD), test_path=test).problems("phases.student.data")
    assert [p.key for p in problems] == ["phases.student.data.label_column"]
    assert "in test that no training row has: 'goood' (did you mean 'good'?)" in problems[0].message


def test_all_problems_at_once(tmp_path):
    keys = {p.key for p in Table(write(tmp_path, GOOD), text_column="a", label_column="b", id_column="c").problems()}
    assert keys == {"data.text_column", "data.label_column", "data.id_column"}


def test_a_large_table_is_checked_in_a_second(tmp_path):
    random.seed(0)
    lines = [f"{' '.join(random.choices('abcdefgh', k=40))} {i},{i % 5}\n" for i in range(10_000)]
    path = write(tmp_path, "text,label\n" + "".join(lines))
    Table(path).problems()  # imports pandas
    start = time.perf_counter()
    assert Table(path).problems() == []
    assert time.perf_counter() - start < 1
