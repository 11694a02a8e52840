"""A local folder of evaluation data: which of the six kinds it is, and its rows, read and checked as a whole.

- retrieval, as BEIR lays it out: `corpus.jsonl` (_id, title, text; the title may be missing), `queries.jsonl`
  (_id, text) and `qrels/test.tsv` (query id, document id, grade; with or without a header line)
- reranking: `test.jsonl` of query, positive [texts], negative [texts]
- sts: `test.jsonl` of sentence1, sentence2, score; pair_classification: the same with a label of 0 or 1
- classification: `train.jsonl` and `test.jsonl` of text, label; clustering: only a `test.jsonl` of these

A training split is read wherever there is one (`train.jsonl`, `qrels/train.tsv`). Another split (`dev.jsonl`,
`qrels/dev.tsv`) can be read in place of the test; other files are not looked at.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epic_search.errors import UserError
from epic_search.evaluation.kinds import KINDS, Kind
from epic_search.training.pairs import read_jsonl

TEST, TRAIN = "test", "train"
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
FIELDS: dict[Kind, tuple[str, ...]] = {
    "reranking": ("query", "positive", "negative"),
    "sts": ("sentence1", "sentence2", "score"),
    "pair_classification": ("sentence1", "sentence2", "label"),
    "classification": ("text", "label"),
    "clustering": ("text", "label"),
}

Columns = dict[str, list[Any]]  # name -> one value a row


@dataclass(frozen=True)
class Folder:
    """The data of a folder. `splits` holds "test" and, where there is one, "train".

    Columns of a split: those of its kind's rows; classification and clustering: text, label (0 to n - 1), label_text;
    retrieval and reranking: id, text and relevant ({document id: grade}) of each query, and in reranking candidates
    ([document id]). Only these two have a `corpus`: id, title, text. `digest` is a hash over the files that were read.
    """

    path: Path
    kind: Kind
    splits: dict[str, Columns]
    corpus: Columns | None
    digest: str


def read_folder(path: Path, *, kind: Kind | None = None, split: str = TEST) -> Folder:
    """Read a folder of data, of the kind that its files tell unless `kind` says it.

    `split`: which one is read as the test; where it is "train", there is no training split beside it.
    Raises UserError that names what is wrong: the missing file, or the file, the line and the id or the field.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a folder of evaluation data")
    there = sorted({file.stem for file in (*path.glob("*.jsonl"), *path.glob("qrels/*.tsv"))} - {"corpus", "queries"})
    if split != TEST and split not in there:
        choice = f"; choose one of {', '.join(there)}" if there else ""
        raise UserError(f"{path} has no split '{split}'{choice}")
    kind = kind or find_kind(path, split=split)
    file_by_split = _files(path, kind, split)
    if kind == "retrieval":
        corpus, splits = _read_retrieval(path, file_by_split)
    else:
        splits = {name: _read_rows(path / file, kind) for name, file in file_by_split.items()}
        corpus = None
        if kind == "reranking":
            corpus, splits = _with_corpus(splits)
        elif kind in ("classification", "clustering"):
            if kind == "classification":
                _check_classes(path, splits)
            splits = _with_label_names(splits)
    names = [*([CORPUS, QUERIES] if kind == "retrieval" else []), *file_by_split.values()]
    return Folder(path, kind, splits, corpus, _digest(path, names))


def find_kind(path: Path, *, split: str = TEST) -> Kind:
    """The kind that a folder's files and the fields of its first test row tell; UserError where they tell none."""
    if any((path / name).exists() for name in (CORPUS, QUERIES, "qrels")):
        return "retrieval"
    test = path / f"{split}.jsonl"
    if not test.is_file():
        raise UserError(
            f"{path} is not a folder of evaluation data: it has neither {split}.jsonl nor, for retrieval, "
            f"{CORPUS}, {QUERIES} and qrels/{split}.tsv"
        )
    _, row = next(read_jsonl(test), (0, {}))
    for kind, fields in FIELDS.items():
        if set(fields) <= row.keys() and (kind != "classification" or (path / "train.jsonl").exists()):
            return kind
    raise UserError(
        f"{test}: the fields of its first row ({', '.join(row) or 'none'}) are those of no kind of task; "
        + "; ".join(f"{kind} has {', '.join(fields)}" for kind, fields in FIELDS.items() if kind != "classification")
    )


def _files(path: Path, kind: Kind, split: str) -> dict[str, str]:
    """The files of "test", for which `split` stands in, and, where there is one, of "train", relative to the folder.

    The first missing one that a folder of this kind needs is a UserError.
    """
    assert kind in KINDS, f"{kind!r} is none of {KINDS}"
    pattern = "qrels/{}.tsv" if kind == "retrieval" else "{}.jsonl"
    test, train = pattern.format(split), pattern.format(TRAIN)
    needed = [*([CORPUS, QUERIES] if kind == "retrieval" else []), test]
    for name in needed:
        if not (path / name).is_file():
            raise UserError(f"{path} lacks {name}; a folder for {kind} holds {', '.join(needed)}")
    return {TEST: test} | ({TRAIN: train} if train != test and (path / train).is_file() else {})


def _digest(path: Path, names: list[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        with (path / name).open("rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _read_rows(path: Path, kind: Kind) -> Columns:
    fields = FIELDS[kind]
    columns: Columns = {field: [] for field in fields}
    for number, row in read_jsonl(path):
        place = f"{path}, line {number}"
        for field in fields:
            columns[field].append(_value(row, field, kind, place))
    if not columns[fields[0]]:
        raise UserError(f"{path} holds no rows; a row of {kind} has the fields {', '.join(fields)}")
    return columns


def _value(row: Mapping[str, Any], field: str, kind: Kind, place: str) -> Any:
    if field not in row:
        raise UserError(f"{place}: '{field}' is missing; a row of {kind} has the fields {', '.join(FIELDS[kind])}")
    value = row[field]
    match field:
        case "positive" | "negative":
            if not isinstance(value, list) or not value:
                raise UserError(f"{place}: '{field}' must be a list of at least one text, not {value!r:.60}")
            return [_text(text, field, place) for text in value]
        case "score":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{place}: 'score' must be a number, not {value!r:.60}")
            return float(value)
        case "label" if kind == "pair_classification":
            if value not in (0, 1):
                raise UserError(f"{place}: 'label' must be 1 (the texts belong together) or 0, not {value!r:.60}")
            return int(value)
        case "label":
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise UserError(f"{place}: 'label' must be one text or whole number, not {value!r:.60}")
            return value
        case _:
            return _text(value, field, place)


def _text(value: Any, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: '{field}' must be a text, not {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: '{field}' holds half of a surrogate pair, which is no character") from error
    return value


def _check_classes(path: Path, splits: Mapping[str, Columns]) -> None:
    if "train" in splits:
        known = set(map(str, splits["train"]["label"]))
        unknown = next((str(label) for label in splits["test"]["label"] if str(label) not in known), None)
        if unknown is not None:
            raise UserError(f"{path}: the test has the label '{unknown}', which no row of train.jsonl shows")


def _with_label_names(splits: Mapping[str, Columns]) -> dict[str, Columns]:
    """Labels numbered from 0 in the order of their names (of the numbers, if all are), and the names beside them."""
    labels = {label for columns in splits.values() for label in columns["label"]}
    ordered = sorted(labels) if all(isinstance(label, int) for label in labels) else sorted(map(str, labels))
    numbers = {name: i for i, name in enumerate(dict.fromkeys(map(str, ordered)))}
    return {
        split: {
            "text": columns["text"],
            "label": [numbers[str(label)] for label in columns["label"]],
            "label_text": [str(label) for label in columns["label"]],
        }
        for split, columns in splits.items()
    }


def _with_corpus(splits: Mapping[str, Columns]) -> tuple[Columns, dict[str, Columns]]:
    """Each query's texts as documents of its own.

    Their ids are in random order: metrics break ties by id, and must not favour the positives or the negatives.
    """
    corpus: Columns = {"id": [], "title": [], "text": []}
    asked: dict[str, Columns] = {}
    rng = np.random.default_rng(0)
    for split, columns in splits.items():
        asked[split] = {"id": [], "text": columns["query"], "relevant": [], "candidates": []}
        for i, (positives, negatives) in enumerate(zip(columns["positive"], columns["negative"], strict=True)):
            query, texts = f"{split}-{i}", [*positives, *negatives]
            order = rng.permutation(len(texts))
            ids = [f"{query}-{j:05d}" for j in range(len(texts))]
            asked[split]["id"].append(query)
            asked[split]["relevant"].append({name: int(j < len(positives)) for name, j in zip(ids, order, strict=True)})
            asked[split]["candidates"].append(ids)
            corpus["id"] += ids
            corpus["title"] += [""] * len(texts)
            corpus["text"] += [texts[j] for j in order]
    return corpus, asked


def _read_retrieval(path: Path, file_by_split: Mapping[str, str]) -> tuple[Columns, dict[str, Columns]]:
    corpus = _read_texts(path / CORPUS)
    queries = _read_texts(path / QUERIES)
    text_by_query = dict(zip(queries["id"], queries["text"], strict=True))
    documents = frozenset(corpus["id"])
    splits = {}
    for split, file in file_by_split.items():
        judged = _read_qrels(path / file, text_by_query, documents)
        asked = [query for query in text_by_query if query in judged]
        splits[split] = {
            "id": asked,
            "text": [text_by_query[query] for query in asked],
            "relevant": [judged[query] for query in asked],
        }
    return corpus, splits


def _read_texts(path: Path) -> Columns:
    """id, title and text of a corpus or of queries."""
    columns: Columns = {"id": [], "title": [], "text": []}
    line_by_id: dict[str, int] = {}
    for number, row in read_jsonl(path):
        place = f"{path}, line {number}"
        name = row.get("_id", row.get("id"))
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise UserError(f"{place}: '_id' must be a text or a whole number, not {name!r:.60}")
        if "text" not in row:
            raise UserError(f"{place}: 'text' is missing; a row has the fields _id, text and, in a corpus, title")
        name = _text(str(name), "_id", place)
        if name in line_by_id:
            raise UserError(f"{place}: the id '{name}' stands already in line {line_by_id[name]}")
        line_by_id[name] = number
        columns["id"].append(name)
        columns["title"].append(_text(row.get("title") or "", "title", place))
        columns["text"].append(_text(row["text"], "text", place))
    if not line_by_id:
        raise UserError(f"{path} holds no rows; a row has the fields _id, text and, in a corpus, title")
    return columns


def _read_qrels(path: Path, queries: Collection[str], documents: Collection[str]) -> dict[str, dict[str, int]]:
    """{query id: {document id: grade}}; a query or document that does not exist is a UserError."""
    judged: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        fields = [field.strip() for field in line.split("\t")]
        if fields == [""]:
            continue
        if len(fields) != 3:
            raise UserError(f"{place}: expected query id, document id and grade, parted by tabs, not {line!r:.80}")
        query, document, grade = fields
        try:
            value = int(grade.removesuffix(".0"))
        except ValueError as error:
            if number == 1 and query not in queries:
                continue  # the header
            raise UserError(f"{place}: the grade must be a whole number, not '{grade}'") from error
        if query not in queries:
            raise UserError(f"{place}: the query '{query}' is not in {QUERIES}")
        if document not in documents:
            raise UserError(f"{place}: the document '{document}' is not in {CORPUS}")
        if judged.setdefault(query, {}).setdefault(document, value) != value:
            raise UserError(
                f"{place}: '{query}' and '{document}' were judged {judged[query][document]} in a line before"
            )
    if not any(value > 0 for grades in judged.values() for value in grades.values()):
        raise UserError(
            f"{path} names no relevant document; a line is query id, document id and grade (above 0), parted by tabs"
        )
    return judged
