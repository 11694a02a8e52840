"""Folders as mteb tasks: evaluated by mteb itself, with the scores that the same data get in mteb's own classes."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_search.errors import UserError
from epic_search.evaluation.kinds import KINDS
from epic_search.evaluation.tasks import MAIN_SCORES, folder_task

mteb = pytest.importorskip("mteb")

WORDS = ["river bank water", "stock market price", "guitar song chord", "cell protein gene"]


class WordEncoder:
    """A vector is the sum of its words' random ones: texts with the same words are alike."""

    def __init__(self) -> None:
        from mteb.models.model_meta import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "tests/words", "revision": "1"})
        self.splits: list[str] = []

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **options: Any) -> np.ndarray:
        self.splits.append(hf_split)
        texts = [text for batch in inputs for text in batch["text"]]
        return np.stack([self._vector(text) for text in texts])

    def similarity(self, a: Any, b: Any) -> np.ndarray:
        return np.asarray(a) @ np.asarray(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> np.ndarray:
        return (np.asarray(a) * np.asarray(b)).sum(axis=1)

    def _vector(self, text: str) -> np.ndarray:
        vector_D = np.full(64, 1e-3)
        for word in text.lower().split():
            vector_D += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(64)
        return vector_D / np.linalg.norm(vector_D)


def evaluate(task: Any) -> dict[str, Any]:
    result = mteb.evaluate(WordEncoder(), [task], cache=None, show_progress_bar=False, co2_tracker=False)
    return result.task_results[0].scores["test"][0]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(kind: str, count: int, *, start: int = 0) -> list[dict]:
    rows = []
    for i in range(start, start + count):
        text, other = f"{WORDS[i % 4]} number{i}", f"{WORDS[(i + 1) % 4]} number{i + 1}"
        rows.append(
            {
                "reranking": {"query": text, "positive": [f"{text} yes"], "negative": [other, "nothing at all"]},
                "sts": {"sentence1": text, "sentence2": (other, f"{text} too")[i % 2], "score": (0.5, 4.5)[i % 2]},
                "pair_classification": {"sentence1": text, "sentence2": (other, text)[i % 2], "label": i % 2},
                "classification": {"text": text, "label": "abcd"[i % 4]},
                "clustering": {"text": text, "label": "abcd"[i % 4]},
            }[kind]
        )
    return rows


@pytest.fixture
def folder(tmp_path):
    def make(kind: str, *, test: int = 40, train: int = 0) -> Path:
        path = tmp_path / kind
        if kind == "retrieval":
            rows = [{"_id": f"d{i}", "title": WORDS[i % 4], "text": f"number{i}"} for i in range(test)]
            write(path / "corpus.jsonl", rows)
            write(
                path / "queries.jsonl",
                [{"_id": f"q{i}", "text": f"{WORDS[i % 4]} number{i}"} for i in range(test + train)],
            )
            (path / "qrels").mkdir()
            for split, ids in (("test", range(test)), ("train", range(test, test + train))):
                if ids:
                    lines = [f"q{i}\td{i % test}\t1\n" for i in ids]
                    (path / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
            return path
        write(path / "test.jsonl", rows_of(kind, test))
        if train or kind == "classification":
            write(path / "train.jsonl", rows_of(kind, train or 40, start=test))
        return path

    return make


def loaded(task: Any) -> Any:
    made = task.make()
    made.load_data()
    return made.dataset.get("default", made.dataset)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_every_kind_is_evaluated_by_mteb(folder, kind):
    task = folder_task(folder(kind))
    assert (task.kind, task.name) == (kind, kind)
    made = task.make()
    scores = evaluate(made)
    assert scores["main_score"] == scores[MAIN_SCORES[kind]]
    assert scores["main_score"] > 0.85, scores[
        "main_score"
    ]  # words tell everything; two values of STS cap its rank correlation
    again = evaluate(task.make())
    assert again["main_score"] == scores["main_score"]
    assert made.metadata.prompt == (
        {"query": task.instruction} if kind in ("retrieval", "reranking") else task.instruction
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_split_stands_beside_the_test_and_is_not_evaluated(folder, kind):
    path = folder(kind, train=12)
    task = folder_task(path, kind=kind)
    splits = loaded(task)
    assert set(splits) == {"test", "train"}
    train = splits["train"]["queries"] if kind in ("retrieval", "reranking") else splits["train"]
    assert len(train) == 12
    assert list(task.make().eval_splits) == ["test"]
    if kind in ("classification", "clustering"):
        assert train["label_text"][:2] == ["a", "b"]
    if kind in ("retrieval", "reranking"):
        ids = set(splits["train"]["corpus"]["id"])
        assert all(ids >= documents.keys() for documents in splits["train"]["relevant_docs"].values())
    assert evaluate(task.make())["main_score"] > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_limit_and_set_aside_part_the_test_rows_always_in_the_same_way(folder, kind):
    path = folder(kind)
    (path / "train.jsonl").unlink(missing_ok=True)

    def texts(task: Any, split: str) -> list[str]:
        data = loaded(task)[split]
        return list(data["queries"]["text"] if kind in ("retrieval", "reranking") else data[data.column_names[0]])

    whole = texts(folder_task(path, kind=kind, set_aside=8), "test")
    task = folder_task(path, kind=kind, limit=10, set_aside=8)
    test, train = texts(task, "test"), texts(task, "train")
    assert (len(whole), len(test), len(train)) == (32, 10, 8)
    assert set(test) < set(whole) and not set(train) & set(whole)
    assert texts(folder_task(path, kind=kind, limit=10, set_aside=8), "test") == test
    if kind == "retrieval":
        assert len(loaded(task)["test"]["corpus"]) == 40
    if kind != "classification":  # a classifier needs a training split
        assert len(texts(folder_task(path, kind=kind, limit=1000), "test")) == 40


def test_the_revision_tells_versions_of_the_data_and_options_apart(folder):
    path = folder("sts")

    def revision(**options: Any) -> str:
        return folder_task(path, **options).make().metadata.revision

    first = revision()
    assert len(first) == 16 and int(first, 16) >= 0
    assert first == revision() == revision(name="other", instruction="other")
    others = {first, revision(limit=5), revision(set_aside=5), revision(limit=5, set_aside=5)}
    write(path / "test.jsonl", rows_of("sts", 39))
    assert len(others | {revision()}) == 5
    assert folder_task(path).make().metadata.dataset["path"] == "sts"


def test_a_query_does_not_find_its_own_document(tmp_path):
    write(tmp_path / "corpus.jsonl", [{"_id": f"{i}", "text": f"{WORDS[i % 4]} n{i}"} for i in range(8)])
    write(tmp_path / "queries.jsonl", [{"_id": f"t{i}", "text": f"{WORDS[i % 4]} n{i}"} for i in range(4)])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("".join(f"t{i}\t{i + 4}\t1\n" for i in range(4)), encoding="utf-8")
    assert evaluate(folder_task(tmp_path).make())["ndcg_at_1"] == 0
    assert evaluate(folder_task(tmp_path, own_document="t").make())["ndcg_at_1"] == 1
    with pytest.raises(UserError, match="the id of the query 't0' does not begin with own_document = 'x'"):
        folder_task(tmp_path, own_document="x")


def test_options_that_do_not_fit(folder):
    with pytest.raises(UserError, match=r"own_document = 't' is for retrieval, and .* is sts"):
        folder_task(folder("sts"), own_document="t")
    with pytest.raises(UserError, match="has a training split of its own; leave out set_aside = 3"):
        folder_task(folder("classification"), set_aside=3)
    with pytest.raises(UserError, match="set_aside = 40 leaves nothing of the 40 test rows"):
        folder_task(folder("clustering"), set_aside=40)
    with pytest.raises(UserError, match=r"lacks train.jsonl, which a classifier learns from"):
        folder_task(folder("clustering"), kind="classification")
    with pytest.raises(UserError, match=r"the label of all 1 test rows is '0'"):
        folder_task(folder("pair_classification"), limit=1)


def test_each_make_gives_a_new_task_that_can_be_unloaded(folder):
    task = folder_task(folder("clustering"))
    one, other = task.make(), task.make()
    assert one is not other
    one.load_data()
    one.unload_data()
    assert one.metadata.name == "clustering"
    assert one.max_document_to_embed == 2048 and one.max_fraction_of_documents_to_embed is None


def test_the_scale_of_sts_scores_is_that_of_the_data(folder):
    path = folder("sts")
    assert folder_task(path).make().max_score == 5
    rows = [{**row, "score": row["score"] / 5} for row in rows_of("sts", 10)]
    write(path / "test.jsonl", rows)
    assert (folder_task(path).make().min_score, folder_task(path).make().max_score) == (0, 1)


MOCKS = {
    "retrieval": "MockRetrievalTask",
    "reranking": "MockRerankingTask",
    "sts": "MockSTSTask",
    "pair_classification": "MockPairClassificationTask",
    "classification": "MockClassificationTask",
    "clustering": "LegacyMockClusteringFastTask",
}


@pytest.mark.parametrize("kind", KINDS)
def test_mock_tasks_of_mteb_score_the_same_as_folders_of_their_data(tmp_path, kind):
    import mteb.mocks.mock_tasks as mocks

    mock = getattr(mocks, MOCKS[kind])()
    mock.load_data()
    write_mock(tmp_path, kind, mock.dataset.get("default", mock.dataset))
    ours = folder_task(tmp_path, name="ours", kind=kind).make()
    if kind == "clustering":
        for name in ("max_document_to_embed", "n_clusters", "max_documents_per_cluster"):
            setattr(ours, name, getattr(mock, name))
    metric = MAIN_SCORES[kind]
    assert evaluate(ours)[metric] == pytest.approx(evaluate(mock)[metric], abs=1e-12)


def write_mock(path: Path, kind: str, dataset: Any) -> None:
    """The data of a loaded mock task in our layout."""
    test = dataset["test"]
    if kind in ("retrieval", "reranking"):
        queries = {row["id"]: row["text"] for row in test["queries"]}
        documents = {row["id"]: row for row in test["corpus"]}
        if kind == "reranking":  # our rows have no titles
            texts = {name: f"{row['title']} {row['text']}" for name, row in documents.items()}
            rows = [
                {
                    "query": queries[query],
                    "positive": [texts[name] for name in names if test["relevant_docs"][query][name]],
                    "negative": [texts[name] for name in names if not test["relevant_docs"][query][name]],
                }
                for query, names in test["top_ranked"].items()
            ]
            write(path / "test.jsonl", rows)
            return
        write(path / "corpus.jsonl", [{**row, "_id": row["id"]} for row in documents.values()])
        write(path / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
        (path / "qrels").mkdir()
        lines = [f"{q}\t{d}\t{grade}\n" for q, judged in test["relevant_docs"].items() for d, grade in judged.items()]
        (path / "qrels" / "test.tsv").write_text("".join(lines), encoding="utf-8")
        return
    renamed = {"sentences": "text", "labels": "label"}
    for split in {"test", "train"} & set(dataset):
        columns = dataset[split].to_dict()
        names = [renamed.get(name, name) for name in columns]
        write(
            path / f"{split}.jsonl", [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        )
