"""Files for tests of bad inputs, made without torch: a tiny model folder with its tokenizer, tables, and what can be wrong with them."""

import json
import math
import struct
from pathlib import Path

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 4,
    "vocab_size": 6,
    "max_position_embeddings": 64,
    "id2label": {"0": "negative", "1": "positive"},
}
TENSORS = {
    "bert.embeddings.word_embeddings.weight": [6, 4],
    "bert.encoder.layer.0.attention.self.query.weight": [4, 4],
    "classifier.weight": [2, 4],
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad")
GOOD_ROWS = "".join(f"film {i},{'positive' if i % 2 else 'negative'}\n" for i in range(40))


def model_folder(path: Path, words=WORDS, **config) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    write_safetensors(path / "model.safetensors", TENSORS)
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model} | parts
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))


def make_all(root: Path) -> Path:
    """Every file that the cases of test_bad_inputs name as `{files}/...`."""
    model_folder(root / "model")
    model_folder(root / "cats", id2label={"0": "cat", "1": "dog"})
    model_folder(root / "three", id2label={"0": "a", "1": "b", "2": "c"})
    model_folder(root / "words", words=(*WORDS[:4], "bad", "good"))
    model_folder(root / "short", max_position_embeddings=16)
    weights = model_folder(root / "truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (model_folder(root / "garbage") / "model.safetensors").write_bytes(b"this is no model, whatever its name says")
    (model_folder(root / "no_config") / "config.json").unlink()
    (model_folder(root / "bad_config") / "config.json").write_text("{")
    pickled = model_folder(root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (model_folder(root / "no_tokenizer") / "tokenizer.json").unlink()
    tables = {
        "good.csv": "text,label\n" + GOOD_ROWS,
        "empty.csv": "",
        "header.csv": "text,label\n",
        "one_label.csv": "text,label\n" + GOOD_ROWS.replace("negative", "positive"),
        "latin.csv": ("text,label\n" + GOOD_ROWS + "café,positive\n").encode("latin-1"),
        "unseen.csv": "text,label\nfilm,ugly\n",
        "doubled.csv": "text,label,label\n" + GOOD_ROWS.replace("\n", ",x\n"),
        "broken.jsonl": '{"text": "a", "label": "positive"}\n{"text": \n',
        "no.parquet": "this is no parquet file",
        "table.xlsx": "PK",
    }
    for name, content in tables.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root
