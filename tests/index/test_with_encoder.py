"""The index with a real (tiny) encoder: what is stored is what the encoder makes, prompts included."""

import json
from pathlib import Path

import numpy as np

from epic_search.encoder import Demonstration, Encoder
from epic_search.index import Searcher, index_corpus
from epic_search.index.document import Document
from epic_search.index.passages import cut

ROWS = [
    {"_id": "short", "title": "A title", "text": "a few words", "year": 2020},
    {"_id": "long", "title": "Another", "text": " ".join(f"word{i}" for i in range(40))},
    {"_id": "plain", "text": "no title here"},
]


def test_hits_are_the_exact_order_of_the_encoders_own_scores(tiny_encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    demonstrations = [Demonstration(query="which year", passage="A title\na few words")]
    report = index_corpus(
        corpus, name="c", encoder=tiny_encoder, home=tmp_path, task="find it", demonstrations=demonstrations
    )
    assert (report.added, report.passages) == (3, report.encoded) and report.passages > 5
    again = index_corpus(corpus, name="c", encoder=tiny_encoder, home=tmp_path)
    assert (again.unchanged, again.encoded) == (3, 0)
    with Searcher.open("c", home=tmp_path) as searcher:
        assert searcher.encoder.reference == tiny_encoder.reference, "found again without being told where"
        assert searcher.prompt.task == "find it" and searcher.prompt.demonstrations == tuple(demonstrations)
        [hits] = searcher.search(["few words"], k=3, mode="dense")
        prompt = tiny_encoder.prompt(task="find it", demonstrations=demonstrations)
        query_E = tiny_encoder.encode_queries(["few words"], prompt=prompt)[0]
        shown = [f"{hit.title}\n{hit.text}" if hit.title else hit.text for hit in hits]
        np.testing.assert_allclose(
            [hit.score for hit in hits], tiny_encoder.encode_passages(shown) @ query_E, atol=0.01
        )
        assert {hit.id for hit in hits} == {"short", "long", "plain"}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert next(hit for hit in hits if hit.id == "short").payload == {"year": 2020}


def test_a_document_with_a_title_alone_is_found_by_it(tiny_encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": "titled", "title": "Sorting by merging", "text": ""}, {"_id": "blank", "title": " ", "text": ""}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = index_corpus(corpus, name="c", encoder=tiny_encoder, home=tmp_path)
    assert (report.added, report.passages, report.problem_counts) == (1, 1, {"empty text": 1})
    with Searcher.open("c", home=tmp_path) as searcher:
        [[hit]] = searcher.search(["merging"], mode="dense")
        vector_E = tiny_encoder.encode_passages(["Sorting by merging"])[0]
        [query_E] = tiny_encoder.encode_queries(["merging"])
        assert (hit.id, hit.title, hit.text) == ("titled", "Sorting by merging", "Sorting by merging")
        assert abs(hit.score - vector_E @ query_E) < 0.01, "the searcher may compute in bfloat16"


def test_token_ids_of_passages_are_those_of_the_texts_that_are_read(tiny_encoder: Encoder) -> None:
    longest = tiny_encoder.config.max_length
    texts = ["short", "x" * longest, "x" * (longest - len("A title") - 1), "word " * 60, ""]
    documents = [
        Document(id=f"{title}{i}", title=title, text=text, payload={}, place="line 1", size=len(text), digest=b"")
        for title in ("", "A title", "T" * 40)
        for i, text in enumerate(texts)
        if title or text
    ]
    for cut_document in cut(documents, tiny_encoder):
        assert cut_document.ids == tiny_encoder.token_ids(cut_document.texts, max_length=10**6)
        assert max(map(len, cut_document.ids)) <= longest


def test_long_rankings_can_do_without_texts(tiny_encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    index_corpus(corpus, name="c", encoder=tiny_encoder, home=tmp_path)
    with Searcher.open("c", home=tmp_path) as searcher:
        [full] = searcher.search(["few words"], k=3, mode="dense")
        [bare] = searcher.search(["few words"], k=3, mode="dense", texts=False)
        assert [(hit.id, hit.score) for hit in bare] == [(hit.id, hit.score) for hit in full]
        assert {(hit.title, hit.text, len(hit.payload)) for hit in bare} == {("", "", 0)}
