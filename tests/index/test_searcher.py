"""Queries: ranking, grouping by document, prompts, and what each mistake is told."""

import subprocess
import sys

import numpy as np
import pytest
from index_helpers import document
from stand_in import StandIn

from epic_search.encoder import Demonstration
from epic_search.errors import UserError
from epic_search.index import Hit, Searcher, index_corpus


@pytest.fixture
def searcher(corpus, encoder, home):
    index_corpus(corpus(300), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as opened:
        yield opened


def test_hits_are_what_an_exact_search_finds(searcher, encoder):
    queries = [f"word{n} river stone" for n in range(20)]
    texts = [f"Title {n}\n{document(n)['text']}" for n in range(300)]
    scores_QP = encoder.encode_queries(queries) @ encoder.encode_passages(texts).T
    for query, hits in enumerate(searcher.search(queries, k=10, mode="dense")):
        expected = np.sort(scores_QP[query])[::-1][:10]
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
        for hit in hits:
            assert hit.score == pytest.approx(scores_QP[query][int(hit.id[1:])], abs=1e-5)


def test_a_hit_carries_the_document(searcher):
    hit = searcher.search([f"Title 42 {document(42)['text']}"], k=1)[0][0]
    assert hit == Hit("d42", hit.score, "Title 42", document(42)["text"], {"year": 2002})


def test_a_long_document_is_one_hit_with_its_best_passage(write, encoder, home):
    words = " ".join(f"needle{n // 100}" if n % 10 == 0 else f"hay{n}" for n in range(2000))
    others = [{"_id": f"o{n}", "text": f"hay{n} other"} for n in range(5)]
    index_corpus(write({"_id": "long", "text": words}, *others), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        hits = searcher.search(["needle7 needle7"], k=6)[0]
        assert [hit.id for hit in hits].count("long") == 1
        assert {hit.id for hit in hits} == {"long", "o0", "o1", "o2", "o3", "o4"}
        assert "needle7" in next(hit.text for hit in hits if hit.id == "long")


def test_fewer_documents_than_k(searcher):
    assert len(searcher.search(["river"], k=10**9)[0]) == 300


def test_no_queries(searcher):
    assert searcher.search([]) == []


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(searcher, k):
    with pytest.raises(UserError, match=f"k is {k}"):
        searcher.search(["river"], k=k)


@pytest.mark.parametrize("query", ["", " \n"])
def test_empty_query(searcher, query):
    with pytest.raises(UserError, match="query is empty"):
        searcher.search(["river", query])


def test_unsound_query_vector(searcher, encoder, monkeypatch):
    monkeypatch.setattr(encoder, "encode_queries", lambda texts, prompt=None: np.full((1, 512), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        searcher.search(["river"])


def test_stored_prompt_is_used_without_encoding_it_again(corpus, encoder, home, monkeypatch):
    demonstrations = [Demonstration(query="anything", passage="word42 word42")]
    index_corpus(corpus(100), name="test", encoder=encoder, home=home, demonstrations=demonstrations)
    prompt, shown = encoder.prompt, []
    with monkeypatch.context() as patch:
        patch.setattr(
            encoder, "prompt", lambda **asked: shown.extend(asked.get("demonstrations", ())) or prompt(**asked)
        )
        searcher = Searcher.open("test", home=home, encoder=encoder)
    assert not shown
    with searcher:
        assert {hit.id for hit in searcher.search(["word7"], k=2, mode="dense")[0]} == {"d7", "d42"}
        plain = searcher.search(["word7"], k=2, mode="dense", prompt=encoder.prompt())[0]
        assert plain[0].id == "d7" and plain[0].score > searcher.search(["word7"], k=2, mode="dense")[0][0].score


def test_prompt_file_that_does_not_match_is_encoded_anew(corpus, encoder, home):
    demonstrations = [Demonstration(query="q", passage="p")]
    index_corpus(corpus(3), name="test", encoder=encoder, home=home, demonstrations=demonstrations)
    encoder.prompt(task="other").save(home / "test" / "prompt.safetensors")
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert searcher.prompt.demonstrations == tuple(demonstrations)
    (home / "test" / "prompt.safetensors").unlink()
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert searcher.prompt.demonstrations == tuple(demonstrations)


def test_other_encoder(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match="made by encoder 'stand-in'"):
        Searcher.open("test", home=home, encoder=StandIn("other"))


def test_index_that_is_not_there_names_those_that_are(corpus, encoder, home):
    with pytest.raises(UserError, match="none yet"):
        Searcher.open("test", home=home, encoder=encoder)
    for name in ("one", "two"):
        index_corpus(corpus(3), name=name, encoder=encoder, home=home)
    with pytest.raises(UserError, match="one, two"):
        Searcher.open("test", home=home, encoder=encoder)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, epic_search.index as i; assert not {'numpy', 'torch', 'qdrant_edge'} & set(sys.modules);"
        "i.Searcher, i.index_corpus; heavy = {'torch', 'transformers', 'qdrant_edge'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
