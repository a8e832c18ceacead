"""Tables of other tasks than classification: several labels, numbers, tags; extra texts without labels; wrong labels on purpose."""

import json

import pytest

from distill_system.data.table import Table


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(source):
    return [str(problem) for problem in source.problems()]


def test_several_labels_from_a_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{'b;a' if i % 2 else ';'}\n" for i in range(40)) + "open,\n")
    source = Table(str(path), task="multi_label", label_separator=";")
    assert source.problems() == []
    assert source.label_names() == ["a", "b"]
    splits = source.read()
    assert {tuple(label) for label in splits["test"].labels} <= {("b", "a"), ()}
    unknown = [text for text, label in zip(splits["train"].texts, splits["train"].labels, strict=True) if label is None]
    assert unknown == ["open"]


def test_several_labels_as_lists_and_a_rare_one_goes_to_train(tmp_path):
    rows = [{"text": f"t{i}", "label": ["x", "y"] if i % 2 else []} for i in range(60)]
    rows += [{"text": f"rare {i}", "label": ["x", f"only{i}"]} for i in range(10)]
    source = Table(jsonl(tmp_path / "x.jsonl", rows), task="multi_label")
    assert source.problems() == []
    assert len(source.label_names()) == 12
    splits = source.read()
    assert sum(text.startswith("rare") for text in splits["train"].texts) == 10


def test_one_label_is_enough_for_yes_or_no(tmp_path):
    rows = [{"text": f"t{i}", "label": ["spam"] if i % 2 else []} for i in range(30)]
    assert Table(jsonl(tmp_path / "x.jsonl", rows), task="multi_label").problems() == []


def test_numbers(tmp_path):
    rows = [{"text": f"t{i}", "label": i / 4} for i in range(40)] + [{"text": "open", "label": None}]
    source = Table(jsonl(tmp_path / "x.jsonl", rows), task="regression")
    assert source.problems() == []
    assert source.label_names() == []
    train = source.read()["train"]
    known = dict(zip(train.texts, train.labels, strict=True))
    assert known.pop("open") is None
    assert all(number == int(text[1:]) / 4 for text, number in known.items())


def test_words_that_should_be_numbers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,1\nb,two\n")
    (said,) = problems(Table(str(path), task="regression"))
    assert said.startswith("data.label_column: holds 'two' in row 2 of x.csv, which is not a number")
    path.write_text("text,label\na,\nb,\n")
    (said,) = problems(Table(str(path), task="regression"))
    assert "no label in any training row" in said


def test_tags(tmp_path):
    rows = [{"text": ["Ada", f"w{i}"], "label": ["B-PER", "O"]} for i in range(30)] + [
        {"text": ["open"], "label": None}
    ]
    source = Table(jsonl(tmp_path / "x.jsonl", rows), task="token_classification")
    assert source.problems() == []
    assert source.label_names() == ["B-PER", "O"]
    splits = source.read()
    assert splits["test"].words[0][0] == "Ada"
    assert splits["test"].texts[0].startswith("Ada w")
    assert "open" in splits["train"].texts


def test_tags_from_conll(tmp_path):
    path = tmp_path / "x.conll"
    block = "Ada NNP B-PER\nwrote VBD O\n\n"
    path.write_text("-DOCSTART- -X- O\n\n" + "".join(block.replace("wrote", f"w{i}") for i in range(20)) + "# N O\n")
    source = Table(str(path), task="token_classification")
    assert source.problems() == []
    splits = source.read()
    assert sum(map(len, splits.values())) == 21
    assert splits["train"].words[0] == ["Ada", splits["train"].words[0][1]]
    assert {tuple(label) for part in splits.values() for label in part.labels} == {("B-PER", "O"), ("O",)}
    path.write_text("alone\n")
    (said,) = problems(Table(str(path), task="token_classification"))
    assert "line 1 of x.conll is 'alone', must be a word and its tag" in said
    (said,) = problems(Table(str(path), task="token_classification", id_column="id"))
    assert said.startswith("data.id_column: is 'id', but x.conll is a CoNLL file")


def test_tags_that_don_t_fit_the_words(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"text": ["a", "b"], "label": ["O"]}])
    (said,) = problems(Table(path, task="token_classification"))
    assert said == "data.label_column: has 1 tags for 2 words in row 1 of x.jsonl; must be as many"
    path = jsonl(tmp_path / "y.jsonl", [{"text": "a b", "label": ["O", "O"]}])
    (said,) = problems(Table(path, task="token_classification", second_text_column=None))
    assert "not a list; token_classification needs a list of words" in said


def test_extra_texts_have_no_labels_and_only_teach_through_a_teacher(tmp_path):
    path, more = tmp_path / "x.csv", tmp_path / "more.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    more.write_text("text\n" + "".join(f"m{i}\n" for i in range(25)))
    source = Table(str(path), transfer_path=str(more))
    assert source.problems() == []
    alone, both = Table(str(path)).read(), source.read()
    assert len(both["train"]) == len(alone["train"]) + 25
    assert both["train"].labels[-25:] == [None] * 25
    assert both["train"].ids[-1] == "more:25"
    assert both["test"] == alone["test"]
    assert source.fingerprint() != Table(str(path)).fingerprint()
    assert problems(Table(str(path), transfer_path=str(tmp_path / "mor.csv")))[0].startswith("data.transfer_path: is")


def test_wrong_and_absent_labels_of_a_table(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{'abc'[i % 3]}\n" for i in range(300)))
    plain, noisy = Table(str(path)).read(), Table(str(path), label_noise={"rate": 0.2, "kind": "pair"}).read()
    changed = sum(a != b for a, b in zip(plain["train"].labels, noisy["train"].labels, strict=True))
    assert changed == round(0.2 * len(plain["train"]))
    assert (noisy["test"], noisy["validation"]) == (plain["test"], plain["validation"])
    without = Table(str(path), without_classes=["c"])
    assert without.label_names() == ["a", "b", "c"]
    assert set(without.read()["train"].labels) == {"a", "b"}
    assert "c" in without.read()["test"].labels
    (said,) = problems(Table(str(path), without_classes=["C"]))
    assert said.startswith("data.without_classes[0]: is 'C', which is no label")
    half = Table(str(path), labelled=0.5).read()["train"]
    assert sum(label is not None for label in half.labels) == round(0.5 * len(half))


@pytest.mark.parametrize(
    ("settings", "key"), [({"label_noise": 0.1}, "label_noise"), ({"without_classes": ["O"]}, "without_classes")]
)
def test_what_speaks_of_one_label_a_row_is_refused_elsewhere(tmp_path, settings, key):
    path = jsonl(tmp_path / "x.jsonl", [{"text": f"t{i}", "label": i} for i in range(20)])
    assert problems(Table(path, task="regression", **settings))[0].startswith(f"data.{key}: ")
