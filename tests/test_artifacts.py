"""Artifacts: digests that follow the model and nothing else, passports that are read back, model cards that can't be broken by text."""

import json
import subprocess
import sys

import pytest
import yaml

from distill_system.artifacts import Artifact, digest_artifact, passport_of_copy, write_passport

LINEAGE = [
    {"phase": "teacher", "kind": "finetune", "digest": "abc"},
    {"phase": "student", "kind": "distill", "teachers": {"main": "teacher"}},
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("[]")
    return folder


def write(folder, **more):
    metrics = {"accuracy": 0.84321987, "samples": 1494, "note": "text"}
    return write_passport(
        folder, task="classification", lineage=LINEAGE, settings={"lr": 1e-4}, metrics=metrics, **more
    )


def test_the_passport_is_read_back(folder):
    written = write(folder, base_models=["owner/model"], extra={"format": "packed"})
    read = Artifact.read(folder)
    assert read == written
    assert (read.task, read.lineage, read.settings) == ("classification", LINEAGE, {"lr": 1e-4})
    assert read.metrics["accuracy"] == 0.84321987
    assert read.passport["format"] == "packed"
    assert read.passport["size_bytes"] == 2 + 7 + 2
    assert read.is_intact()


def test_the_digest_follows_the_model_and_nothing_else(folder, tmp_path):
    before = digest_artifact(folder)
    write(folder)
    (folder / ".part-leftover").write_text("x")
    assert digest_artifact(folder) == before
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("tokenizer.json", "model.safetensors", "config.json"):  # another order of creation
        (other / name).write_bytes((folder / name).read_bytes())
    assert digest_artifact(other) == before
    (other / "tokenizer.json").rename(other / "tokenizer2.json")
    assert digest_artifact(other) != before
    (folder / "model.safetensors").write_bytes(b"weighty")
    assert digest_artifact(folder) != before
    assert not Artifact.read(folder).is_intact()


def test_swapped_contents_change_the_digest(folder):
    before = digest_artifact(folder)
    (folder / "config.json").write_text("[]")
    (folder / "tokenizer.json").write_text("{}")
    assert digest_artifact(folder) != before


def test_a_model_from_elsewhere_has_no_passport(folder):
    artifact = Artifact.read(folder)
    assert artifact.digest == digest_artifact(folder)
    assert artifact.lineage == []
    assert artifact.task is None


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_passport_is_said(folder, content):
    (folder / "compression.json").write_text(content)
    with pytest.raises(ValueError, match=r"compression.json is (damaged|no passport)"):
        Artifact.read(folder)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        digest_artifact(tmp_path)


def test_the_card(folder):
    write(
        folder,
        base_models=["owner/model", "./local", "a-package"],
        license_note="Apache-2.0",
        title="A <b>student</b> | small",
        command="distill run x",
    )
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["base_model"] == ["owner/model"]
    assert meta["pipeline_tag"] == "text-classification"
    assert "distillation" in meta["tags"]
    assert "# A &lt;b>student&lt;/b> \\| small" in body
    assert "| accuracy | 0.8432 |" in body
    assert "note" not in body.split("## Figures")[1].split("##")[0]
    assert 'AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")' in body
    assert '| student | distill | teachers: {"main": "teacher"} |' in body
    assert "Apache-2.0" in body
    assert "distill run x" in body


def test_an_unknown_licence_is_not_hidden(folder):
    write(folder, base_models=["owner/model"])
    assert "Not known here" in (folder / "README.md").read_text()


def test_numbers_that_json_cant_hold_are_refused(folder):
    with pytest.raises(ValueError, match="JSON"):
        write_passport(folder, task="causal_lm", lineage=[], settings={}, metrics={"perplexity": float("inf")})
    assert not (folder / "compression.json").exists()


def test_no_torch():
    code = "import sys, distill_system.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_passport_is_plain_json(folder):
    write(folder)
    assert json.loads((folder / "compression.json").read_text())["version"] == 1


def test_card_of_a_model_of_pictures(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    artifact = write_passport(tmp_path, task="classification", lineage=[], settings={}, metrics={})
    assert artifact.passport["inputs"] == "images"
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "AutoModelForImageClassification.from_pretrained" in card
    assert "AutoImageProcessor.from_pretrained" in card
    assert "Tokenizer" not in card


FULL = {
    "size": {"size_bytes": 1_234_567, "parameters": 1000, "nonzeros": 640, "folder_bytes": 9},
    "bits": {"mean": 3.25, "weights": {"1": 10, "1.6": 700, "32": 290}},
    "latency": {"batch_1": {"p50_ms": 3.3141, "p95_ms": 4.0}, "batch_32": {"p50_ms": 40.2}},
    "calibration": {"bins": [{"confidence": 0.55, "accuracy": 0.5, "count": 0}, {"confidence": 0.9171, "accuracy": 0.9, "count": 12}]},
    "teacher": {"main": {"agreement": 0.91237, "kl": 0.08}, "other": {}},
    "exported_from": "abc",
}  # fmt: skip


def test_the_card_tells_size_bits_speed_calibration_and_agreement(folder):
    artifact = write(folder, extra=FULL)
    card = (folder / "README.md").read_text()
    sections = {part.split("\n")[0]: part for part in card.split("\n## ")[1:]}
    assert [line for line in sections["Size and speed"].splitlines() if line.startswith("| ")][2:] == [
        "| bytes of the folder | 11 |",
        "| bytes of the weights | 1,234,567 |",
        "| parameters | 1,000 |",
        "| of these not zero | 640 |",
        "| bits of a weight, mean | 3.25 |",
        "| weights of 1 bit | 10 |",
        "| weights of 1.6 bits | 700 |",
        "| weights of 32 bits | 290 |",
        "| latency, batch of 1 (median) | 3.314 ms |",
        "| latency, batch of 32 (median) | 40.2 ms |",
    ]
    assert "| 0.9171 | 0.9 | 12 |" in sections["Calibration"]
    assert "0.55" not in sections["Calibration"]
    assert "| main | agreement 0.9124, kl 0.08 |" in sections["Agreement with its teachers"]
    assert "other" not in sections["Agreement with its teachers"]
    assert f"Digest of this model: `{artifact.digest}`, exported from `abc`." in sections["Lineage"]
    assert {key: artifact.passport[key] for key in FULL} == FULL


@pytest.mark.parametrize("key", list(FULL))
@pytest.mark.parametrize("value", [None, {}, [], "x", {"bins": None, "weights": None, "main": 3, "batch_1": "y"}])
def test_what_a_passport_lacks_the_card_leaves_out(folder, key, value):
    write(folder, extra=FULL | {key: value})
    card = (folder / "README.md").read_text()
    heading = {"bits": "", "exported_from": "", "size": "", "latency": ""}.get(
        key, {"calibration": "## Calibration", "teacher": "## Agreement"}.get(key)
    )
    assert not heading or heading not in card
    assert "## How to load it" in card


def test_the_split_is_named(folder):
    write_passport(folder, task="causal_lm", lineage=[], settings={}, metrics={"nll": 3.0, "split": "validation"})
    assert "## Figures on the validation split" in (folder / "README.md").read_text()


def test_code_beside_the_weights_is_told_and_asked_for(folder):
    config = {
        "auto_map": {
            "AutoConfig": "modeling_lstm.LstmConfig",
            "AutoModel": "modeling_lstm.LstmModel",
            "AutoX": "elsewhere.X",
        }
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_lstm.py").write_text("")
    assert write(folder).passport["code"] == ["modeling_lstm.py"]
    card = (folder / "README.md").read_text()
    assert card.count('from_pretrained("path/to/this/folder", trust_remote_code=True)') == 2
    write(folder, extra={"format": "packed"})
    assert "trust_remote_code" not in (folder / "README.md").read_text()
    (folder / "config.json").write_text("{}")
    assert "code" not in write(folder).passport
    write(folder, extra={"format": "cut"})
    assert (folder / "README.md").read_text().count("trust_remote_code=True") == 1


def test_a_copy_in_another_form_has_a_passport_of_its_own(folder, tmp_path):
    source = write(folder, extra=FULL, license_note="x: MIT", base_models=["owner/model"], command="distill run x")
    copy = tmp_path / "packed"
    copy.mkdir()
    (copy / "config.json").write_text("{}")
    (copy / "packed.safetensors").write_bytes(b"few")
    latency = {"batch_1": {"p50_ms": 1.5}}
    made = passport_of_copy(source, copy, "packed", title="x, packed", extra={"latency": latency})
    assert made.is_intact()
    assert made.digest != source.digest
    assert (made.passport["format"], made.passport["exported_from"]) == ("packed", source.digest)
    assert (made.passport["size_bytes"], made.passport["latency"]) == (5, latency)
    same = ("task", "lineage", "settings", "metrics", "license_note", "base_models", "command", "bits", "teacher")
    assert {key: made.passport[key] for key in same} == {key: source.passport[key] for key in same}
    card = (copy / "README.md").read_text()
    assert "distill_system.load" in card
    assert "# x, packed" in card
    again = passport_of_copy(source, copy, "dense", command="distill export x")
    assert again.passport["command"] == "distill export x"
