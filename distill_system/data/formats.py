"""Reads csv, tsv, jsonl, parquet, CoNLL and text files into columns of texts or lists, and says in words what is wrong with a file."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from distill_system.errors import Problem, Refusal, nearest, refuse

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
}

Columns = dict[str, list[Any]]  # texts, and lists of texts where they are wanted; None: the cell is empty


def file_problems(path: str | None, key: str) -> list[Problem]:
    """A path that isn't set, isn't there, is a folder, or is an empty file."""
    if path is None:
        return [Problem(key, f"is not set; add {key}=FILE")]
    file = Path(path).expanduser()
    if not file.exists():
        names = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        where = "" if file.parent.is_dir() else f"; there is no folder {str(file.parent)!r} either"
        hint = nearest(file.name, names)
        return [Problem(key, f"is {path!r}, which doesn't exist{hint if 'did you mean' in hint else where}")]
    if file.is_dir():
        return [Problem(key, f"is {path!r}, a folder; must be a file")]
    if file.stat().st_size == 0:
        return [Problem(key, f"is {path!r}, which is empty")]
    return []


def read_utf8(path: Path, key: str) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        Refusal: it can't be read, or isn't UTF-8; the message gives the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise refuse(key, f"is {str(path)!r}, which can't be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        text = f"line {line} of {path.name} is not UTF-8 (byte 0x{byte:02X}); convert the file, for example: iconv -f latin1 -t utf-8"
        raise refuse(key, text) from error


def as_text(value: Any) -> str | None:
    """A cell as text: whole numbers without a point, nothing for null and NaN."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_objects(path: Path, key: str) -> list[dict[str, Any]]:
    """The objects of a jsonl file; blank lines are skipped."""
    rows = []
    for number, line in enumerate(read_utf8(path, key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\ud" in line.lower():  # an escape can spell half a character, which no tokenizer takes
                json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise refuse(
                key, f"line {number} of {path.name} is not JSON: {error.msg} at column {error.colno}"
            ) from error
        except (UnicodeEncodeError, RecursionError) as error:
            raise refuse(
                key, f"line {number} of {path.name} holds half a surrogate pair or is nested too deep"
            ) from error
        if not isinstance(row, dict):
            raise refuse(
                key, f'line {number} of {path.name} is not a JSON object such as {{"text": "...", "label": "..."}}'
            )
        rows.append(row)
    return rows


def as_cell(value: Any, with_lists: bool) -> str | list[str | None] | None:
    """A cell as text, blank ones as None; a list as a list of texts where lists are wanted."""
    if with_lists and isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    return _blank(as_text(value))


def read_columns(
    path: str, kind: str, wanted: dict[str, str], key: str, lists: frozenset[str] = frozenset()
) -> Columns:
    """The wanted columns of a table.

    Args:
        path: the file; exists.
        kind: csv, tsv, jsonl, parquet, conll, or auto: by the suffix.
        wanted: column name by the setting that names it (`{"text_column": "review"}`).
        key: config key of the path; its siblings are the settings of `wanted`.
        lists: settings whose cells may be lists (jsonl and parquet) or are (conll).

    Raises:
        Refusal: the file can't be read, has no rows, or lacks a column.
    """
    file, parent = Path(path).expanduser(), key.rpartition(".")[0]
    if kind == "auto":
        if file.suffix.lower() not in SUFFIXES:
            raise refuse(
                f"{parent}.format",
                f"is auto, but {file.name!r} doesn't end in .csv, .tsv, .jsonl, .parquet or .conll; set {parent}.format",
            )
        kind = SUFFIXES[file.suffix.lower()]
    if kind == "conll":
        return _read_conll(file, wanted, key)
    names, columns = {"jsonl": _read_jsonl, "parquet": _read_parquet}.get(kind, _read_csv)(
        file, kind, set(wanted.values()), key, {wanted[setting] for setting in lists if setting in wanted}
    )
    missing = [
        Problem(f"{parent}.{setting}", f"is {name!r}, which is no column of {file.name}{nearest(name, names)}")
        for setting, name in wanted.items()
        if name not in names
    ]
    if missing:
        raise Refusal(missing)
    if not next(iter(columns.values()), []):
        raise refuse(
            key,
            f"is {path!r}, which has a header but no rows"
            if kind in ("csv", "tsv")
            else f"is {path!r}, which has no rows",
        )
    return columns


def _read_csv(file: Path, kind: str, wanted: set[str], key: str, lists: set[str]) -> tuple[list[str], Columns]:
    import pandas

    text = read_utf8(file, key)
    try:
        # Everything is text, also "NA" and "007"; the empty cell alone is nothing. `index_col` refuses rows with a cell too many.
        options = {"dtype": str, "keep_default_na": False, "index_col": False, "low_memory": False}
        table = pandas.read_csv(io.StringIO(text), sep="\t" if kind == "tsv" else ",", on_bad_lines="error", **options)
    except pandas.errors.EmptyDataError as error:
        raise refuse(key, f"is {file.name!r}, which holds nothing but blank lines") from error
    except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise refuse(
            key,
            f"{file.name} is not a {kind} file that can be read: {reason}; put texts with separators into double quotes",
        ) from error
    header = next(csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter="\t" if kind == "tsv" else ","), [])
    doubled = sorted(name for name in wanted if header.count(name) > 1)
    if doubled:  # the library would take the first and say nothing
        raise refuse(
            key, f"{file.name} has {header.count(doubled[0])} columns named {doubled[0]!r}; rename all but one"
        )
    columns: Columns = {}
    for name in wanted & set(table.columns):
        cells = table[name].tolist()  # a short row's missing cells are NaN
        columns[name] = [cell if isinstance(cell, str) and cell.strip() else None for cell in cells]
    return [str(name) for name in table.columns], columns


def _read_jsonl(file: Path, kind: str, wanted: set[str], key: str, lists: set[str]) -> tuple[list[str], Columns]:
    rows = read_objects(file, key)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [as_cell(row.get(name), name in lists) for row in rows] for name in wanted & set(names)}
    return names or sorted(wanted), columns


def _read_parquet(file: Path, kind: str, wanted: set[str], key: str, lists: set[str]) -> tuple[list[str], Columns]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
        table = pyarrow.parquet.read_table(file, columns=sorted(wanted & set(names)))
    except (pyarrow.ArrowException, OSError) as error:
        raise refuse(
            key, f"{file.name} is not a parquet file that can be read: {str(error).splitlines()[0]}"
        ) from error
    return names, {
        name: [as_cell(cell, name in lists) for cell in table[name].to_pylist()] for name in table.column_names
    }


def _read_conll(file: Path, wanted: dict[str, str], key: str) -> Columns:
    """Sentences parted by blank lines, a word and its tag a line: the first and the last column; `-DOCSTART-` lines are skipped.

    The columns have no names in the file: whatever `text_column` and `label_column` are, they are the words and the tags.
    """
    parent = key.rpartition(".")[0]
    other = sorted(set(wanted) - {"text_column", "label_column"})
    if other:
        raise refuse(
            f"{parent}.{other[0]}",
            f"is {wanted[other[0]]!r}, but {file.name} is a CoNLL file, which has words and tags only",
        )
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for number, line in enumerate(read_utf8(file, key).split("\n"), start=1):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if words[-1]:
                words.append([])
                tags.append([])
            continue
        if len(cells) < 2 and "label_column" in wanted:
            raise refuse(key, f"line {number} of {file.name} is {line.strip()[:40]!r}, must be a word and its tag")
        words[-1].append(cells[0])
        tags[-1].append(cells[-1])
    sentences = [i for i, sentence in enumerate(words) if sentence]
    if not sentences:
        raise refuse(key, f"is {str(file)!r}, which has no sentences")
    columns: dict[str, list[Any]] = {
        "text_column": [words[i] for i in sentences],
        "label_column": [tags[i] for i in sentences],
    }
    return {name: columns[setting] for setting, name in wanted.items()}


def _blank(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None
