"""Folders of data: each kind is told from its files, and each mistake is named with its file, line and id."""

import json
from pathlib import Path

import pytest

from epic_search.errors import UserError
from epic_search.evaluation.folder import find_kind, read_folder

DOCUMENTS = [{"_id": 1, "title": "One", "text": "first"}, {"_id": "b", "text": "second"}, {"_id": "c", "text": ""}]
QUERIES = [{"_id": 7, "text": "which?"}, {"_id": "q8", "text": "what?"}, {"_id": "unasked", "text": "never"}]
PAIR = {"sentence1": "a", "sentence2": "b"}


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path):
    write(tmp_path / "corpus.jsonl", DOCUMENTS)
    write(tmp_path / "queries.jsonl", QUERIES)
    write(tmp_path / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore\n", "q8\tb\t1\n", "7\t1\t2\n", "7\tc\t0\n"])
    return tmp_path


def test_retrieval(beir):
    folder = read_folder(beir)
    assert folder.kind == "retrieval"
    assert folder.corpus == {"id": ["1", "b", "c"], "title": ["One", "", ""], "text": ["first", "second", ""]}
    assert folder.splits == {
        "test": {"id": ["7", "q8"], "text": ["which?", "what?"], "relevant": [{"1": 2, "c": 0}, {"b": 1}]}
    }


def test_qrels_need_no_header_and_may_end_lines_as_windows_does(beir):
    with_header = read_folder(beir).splits
    write(beir / "qrels" / "test.tsv", ["q8\tb\t1\r\n", "7\t1\t2\r\n", "7\tc\t0\r\n", "\r\n"])
    assert read_folder(beir).splits == with_header


def test_training_qrels_become_the_training_split_and_dev_is_not_looked_at(beir):
    write(beir / "qrels" / "train.tsv", ["unasked\tb\t1\n"])
    write(beir / "qrels" / "dev.tsv", ["nonsense"])
    folder = read_folder(beir)
    assert folder.splits["train"] == {"id": ["unasked"], "text": ["never"], "relevant": [{"b": 1}]}
    assert folder.splits.keys() == {"test", "train"}


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        ("qrels/test.tsv", ["7\t1\t1\n", "q9\t1\t1\n"], "test.tsv, line 2: the query 'q9' is not in queries.jsonl"),
        ("qrels/test.tsv", ["h\th\th\n", "7\tx\t1\n"], "test.tsv, line 2: the document 'x' is not in corpus.jsonl"),
        ("qrels/test.tsv", ["7\t1\tmuch\n"], "line 1: the grade must be a whole number, not 'much'"),
        ("qrels/test.tsv", ["7 1 1\n"], "line 1: expected query id, document id and grade, parted by tabs"),
        ("qrels/test.tsv", ["query-id\tcorpus-id\tscore\n"], "names no relevant document"),
        ("corpus.jsonl", [{"_id": "1", "title": "no text"}], "corpus.jsonl, line 1: 'text' is missing"),
        ("corpus.jsonl", [{"text": "no id"}], "corpus.jsonl, line 1: '_id' must be a text or a whole number, not None"),
        ("corpus.jsonl", [*DOCUMENTS, {"_id": "1", "text": "x"}], "line 4: the id '1' stands already in line 1"),
        ("corpus.jsonl", [DOCUMENTS[0], "{broken\n"], "corpus.jsonl, line 2: not JSON"),
        ("queries.jsonl", [], "queries.jsonl holds no rows"),
        ("queries.jsonl", ['{"_id": "7", "text": "\\ud800"}\n'], "queries.jsonl, line 1: 'text' holds half"),
    ],
)
def test_what_is_wrong_in_a_retrieval_folder_is_named(beir, file, rows, message):
    write(beir / file, rows)
    with pytest.raises(UserError) as error:
        read_folder(beir)
    assert message in str(error.value)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_of_a_retrieval_folder_is_named(beir, file):
    (beir / file).unlink()
    with pytest.raises(UserError, match=f"lacks {file}; a folder for retrieval holds corpus.jsonl, queries.jsonl"):
        read_folder(beir)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("reranking", {"query": "q", "positive": ["p"], "negative": ["n"]}),
        ("sts", {**PAIR, "score": 2.5, "source": "news"}),
        ("pair_classification", {**PAIR, "label": 1}),
        ("clustering", {"text": "t", "label": "x"}),
    ],
)
def test_the_fields_of_the_first_row_tell_the_kind(tmp_path, kind, row):
    write(tmp_path / "test.jsonl", [row])
    assert find_kind(tmp_path) == kind
    assert read_folder(tmp_path).kind == kind


def test_a_training_split_tells_classification_from_clustering(tmp_path):
    write(tmp_path / "test.jsonl", [{"text": "t", "label": "x"}])
    write(tmp_path / "train.jsonl", [{"text": "u", "label": "x"}])
    assert read_folder(tmp_path).kind == "classification"
    assert read_folder(tmp_path, kind="clustering").kind == "clustering"


def test_a_class_that_training_does_not_show(tmp_path):
    write(tmp_path / "test.jsonl", [{"text": "t", "label": "x"}, {"text": "t", "label": 3}])
    write(tmp_path / "train.jsonl", [{"text": "u", "label": "x"}])
    with pytest.raises(UserError, match=r"the test has the label '3', which no row of train.jsonl shows"):
        read_folder(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "t", "label": "x"}\n{"text": "u", "label": "y"}\n')
    assert read_folder(tmp_path).splits["test"]["text"] == ["t", "u"]


def test_a_document_judged_twice(beir):
    write(beir / "qrels" / "test.tsv", ["7\t1\t1\n", "7\t1\t1.0\n"])
    assert read_folder(beir).splits["test"]["relevant"] == [{"1": 1}]
    write(beir / "qrels" / "test.tsv", ["7\t1\t1\n", "7\t1\t0\n"])
    with pytest.raises(UserError, match="line 2: '7' and '1' were judged 1 in a line before"):
        read_folder(beir)


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ["dog", "cat", "dog"]),
        ([10, 2, 2], [1, 0, 0], ["10", "2", "2"]),
        (["1", 0, 1], [1, 0, 1], ["1", "0", "1"]),
    ],
)
def test_labels_are_numbered_and_keep_their_names(tmp_path, labels, numbers, names):
    write(tmp_path / "test.jsonl", [{"text": "t", "label": label} for label in labels])
    test = read_folder(tmp_path).splits["test"]
    assert test == {"text": ["t"] * 3, "label": numbers, "label_text": names}


def test_labels_have_one_number_in_both_splits(tmp_path):
    write(tmp_path / "test.jsonl", [{"text": "t", "label": "c"}])
    write(tmp_path / "train.jsonl", [{"text": "t", "label": "b"}, {"text": "t", "label": "c"}])
    splits = read_folder(tmp_path).splits
    assert (splits["test"]["label"], splits["train"]["label"]) == ([1], [0, 1])


def test_reranking_candidates_are_documents_in_an_order_that_favours_neither_side(tmp_path):
    row = {"query": "q", "positive": ["yes"], "negative": [f"no {i}" for i in range(9)]}
    write(tmp_path / "test.jsonl", [row] * 200)
    folder = read_folder(tmp_path)
    test, corpus = folder.splits["test"], folder.corpus
    texts = dict(zip(corpus["id"], corpus["text"], strict=True))
    places = []
    for candidates, relevant in zip(test["candidates"], test["relevant"], strict=True):
        assert candidates == sorted(candidates)
        assert sorted(texts[name] for name in candidates) == sorted(row["positive"] + row["negative"])
        assert [texts[name] for name, grade in relevant.items() if grade] == ["yes"]
        places.append([texts[name] for name in candidates].index("yes"))
    assert 3.5 < sum(places) / len(places) < 5.5  # 4.5 in the mean of many
    assert read_folder(tmp_path) == folder


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "score": 1}, "the fields of its first row (sentence1, score) are those of no kind"),
        ({**PAIR, "score": "high"}, "test.jsonl, line 1: 'score' must be a number, not 'high'"),
        ({**PAIR, "score": float("nan")}, "line 1: 'score' must be a number, not nan"),
        ({**PAIR, "label": "yes"}, "line 1: 'label' must be 1 (the texts belong together) or 0, not 'yes'"),
        ({"text": "t", "label": ["a", "b"]}, "line 1: 'label' must be one text or whole number, not ['a', 'b']"),
        ({"text": 3, "label": "a"}, "line 1: 'text' must be a text, not 3"),
        ({"query": "q", "positive": [], "negative": ["n"]}, "'positive' must be a list of at least one text, not []"),
        ({"query": "q", "positive": [1], "negative": ["n"]}, "line 1: 'positive' must be a text, not 1"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(tmp_path, row, message):
    write(tmp_path / "test.jsonl", [row])
    with pytest.raises(UserError) as error:
        read_folder(tmp_path)
    assert message in str(error.value)


def test_a_missing_field_is_named_with_the_line_and_all_fields(tmp_path):
    write(tmp_path / "test.jsonl", [{**PAIR, "score": 1}, {"sentence1": "a", "score": 1}])
    with pytest.raises(
        UserError, match=r"line 2: 'sentence2' is missing; a row of sts has the fields sentence1, sentence2, score"
    ):
        read_folder(tmp_path)


def test_a_folder_without_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"neither test.jsonl nor, for retrieval, corpus.jsonl"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"lacks test.jsonl; a folder for sts holds test.jsonl"):
        read_folder(tmp_path, kind="sts")


def test_the_digest_is_that_of_the_files_that_count(beir):
    digest = read_folder(beir).digest
    write(beir / "README.md", ["something else"])
    assert read_folder(beir).digest == digest
    write(beir / "queries.jsonl", [*QUERIES, {"_id": "new", "text": "more"}])
    assert read_folder(beir).digest != digest
