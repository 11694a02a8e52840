"""Search through the index ranks as exact search does, and both answer with documents, not passages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")

import mteb
from datasets import Dataset

from epic_search.encoder import Encoder
from epic_search.evaluation.models import Condition, EncoderModel, Search, Settings, find_model
from epic_search.evaluation.tasks import folder_task
from tests.evaluation.conftest import WORDS, write_rows

CORPUS = [
    {"_id": "long", "title": "Rivers", "text": " ".join(f"{WORDS[i % 4]} sentence {i}." for i in range(12))},
    {"_id": "long-untitled", "text": " ".join(f"{WORDS[3 - i % 4]} line {i}." for i in range(12))},
    {"_id": "empty", "title": "", "text": ""},
    {"_id": "title-alone", "title": "guitar song chord", "text": ""},
    {"_id": "long-title", "title": "stock market price " * 4, "text": "quotes"},
    *({"_id": f"d{i}", "title": f"Title {i}" if i % 2 else "", "text": f"{WORDS[i % 4]} {i}"} for i in range(40)),
]
QUERIES = [f"{words} {i}" for i, words in enumerate(WORDS * 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with documents of several passages, with and without titles, and one without any text."""
    folder = tmp_path_factory.mktemp("search") / "mixed"
    write_rows(folder / "corpus.jsonl", CORPUS)
    write_rows(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)])
    (folder / "qrels").mkdir()
    judged = [f"q{i}\td{i}\t1\nq{i}\tlong\t1\n" for i in range(len(QUERIES))]
    (folder / "qrels" / "test.tsv").write_text("".join(judged))
    return folder


@pytest.fixture(scope="module")
def models(tiny_encoder_folder: Path) -> dict[Search, EncoderModel]:
    """The tiny encoder with either search, in float32 so that near scores stay apart."""
    found = {}
    for search in ("index", "exact"):
        settings = Settings(search=search, device="cpu", dtype="float32")
        found[search] = find_model(str(tiny_encoder_folder), settings=settings)
    return found


def bind(model: EncoderModel, work: Path, *, instruction: str | None = "Find the like") -> Any:
    return model.bind(instruction=instruction, pool=None, condition=Condition(), work=work)


def opened(bound: Any, folder: Path, queries: list[str] = QUERIES) -> tuple[Any, Dataset]:
    """A bound model that was handed the corpus, and the queries."""
    task = folder_task(folder).make()
    task.load_data()
    corpus = task.dataset["default"]["test"]["corpus"]
    bound.model.index(corpus, task_metadata=task.metadata, hf_split="test", hf_subset="default")
    return bound.model, Dataset.from_dict({"id": [f"q{i}" for i in range(len(queries))], "text": queries})


def ranking(found: dict[str, float]) -> list[str]:
    return sorted(found, key=lambda document: (-round(found[document], 6), document))


@pytest.mark.parametrize("top_k", [3, 1000])
def test_the_index_ranks_as_exact_search(
    models: dict[Search, EncoderModel], folder: Path, tmp_path: Path, top_k: int
) -> None:
    found = {}
    for search, model in models.items():
        searcher, queries = opened(bind(model, tmp_path), folder)
        found[search] = searcher.search(queries, top_k=top_k)
    assert list(found["index"]) == list(found["exact"]) == [f"q{i}" for i in range(len(QUERIES))]
    for query, expected in found["exact"].items():
        answer = found["index"][query]
        assert ranking(answer) == ranking(expected)
        assert len(answer) == min(top_k, len(CORPUS) - 1)
        np.testing.assert_allclose([answer[document] for document in expected], list(expected.values()), atol=1e-5)
        assert "empty" not in expected


def test_main_scores_are_the_same(models: dict[Search, EncoderModel], folder: Path, tmp_path: Path) -> None:
    scores = {}
    for search, model in models.items():
        bound = bind(model, tmp_path)
        result = mteb.evaluate(
            bound.model, folder_task(folder).make(), cache=None, show_progress_bar=False, co2_tracker=False
        )
        scores[search] = result.task_results[0].main_score
    assert 0 < scores["exact"] < 1
    assert scores["index"] == pytest.approx(scores["exact"], abs=0.001)


@pytest.mark.parametrize("search", ["index", "exact"])
def test_a_document_counts_by_its_best_passage(
    models: dict[Search, EncoderModel], folder: Path, tmp_path: Path, search: Search, tiny_encoder: Encoder
) -> None:
    bound = bind(models[search], tmp_path, instruction=None)
    searcher, queries = opened(bound, folder, ["river bank water sentence 0."])
    score = searcher.search(queries, top_k=100)["q0"]["long"]
    text = next(document["text"] for document in CORPUS if document["_id"] == "long")
    [passages] = tiny_encoder.split([text], titles=["Rivers"])
    assert len(passages) > 3
    passages_PE = tiny_encoder.encode_passages([f"Rivers\n{passage}" for passage in passages])
    [query_E] = tiny_encoder.encode_queries(["river bank water sentence 0."])
    assert score == pytest.approx((passages_PE @ query_E).max(), abs=1e-5)


@pytest.mark.parametrize("search", ["index", "exact"])
def test_candidates_alone_are_ranked_where_they_are_given(
    models: dict[Search, EncoderModel], folder: Path, tmp_path: Path, search: Search
) -> None:
    searcher, queries = opened(bind(models[search], tmp_path), folder, QUERIES[:2])
    given = {"q0": ["d3", "long", "empty"], "q1": ["d7", "d1"]}
    found = searcher.search(queries, top_k=1000, top_ranked=given)
    assert {query: set(documents) for query, documents in found.items()} == {"q0": {"d3", "long"}, "q1": {"d1", "d7"}}
    everything = searcher.search(queries, top_k=1000)
    for query, documents in found.items():
        for document, score in documents.items():
            assert score == pytest.approx(everything[query][document], abs=1e-5)


@pytest.mark.parametrize("search", ["index", "exact"])
def test_passages_are_encoded_once_for_all_prompts(
    models: dict[Search, EncoderModel], folder: Path, tmp_path: Path, search: Search
) -> None:
    models[search]._corpora.clear()
    rankings, passages = [], []
    for instruction in (None, "Find what is said about money"):
        bound = bind(models[search], tmp_path, instruction=instruction)
        searcher, queries = opened(bound, folder)
        rankings.append(searcher.search(queries, top_k=1000))
        assert bound.meter.queries == len(QUERIES)
        passages.append(bound.meter.texts - bound.meter.queries)
    assert passages[0] > len(CORPUS) and passages[1] == 0
    assert rankings[0] != rankings[1]


def test_the_meter_counts_what_the_encoder_reads(
    models: dict[Search, EncoderModel], folder: Path, tmp_path: Path, tiny_encoder: Encoder
) -> None:
    bound = bind(models["exact"], tmp_path)
    searcher, queries = opened(bound, folder)
    searcher.search(queries, top_k=5)
    around = len(tiny_encoder.template.query(task="Find the like", demonstrations=0))
    expected = sum(around + len(ids) for ids in tiny_encoder.token_ids(QUERIES))
    assert bound.meter.query_tokens == pytest.approx(expected)
    assert bound.meter.encode_seconds > 0
    assert bound.meter.some_queries == QUERIES
    assert 0 < bound.query_seconds(QUERIES[0]) < 5
