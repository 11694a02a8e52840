"""Search by meaning, by words and by both; filters, facets, groups and pages over an index."""

import json
import subprocess
import sys

import numpy as np
import pytest
from index_helpers import WORDS, document
from stand_in import StandIn

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.contents import Contents
from epic_search.index.corpus import Corpus
from epic_search.index.lexical import Lexical, average_length
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.ranking import rank
from epic_search.index.store.protocol import RRF, Fusion, StoreQuery

COUNT = 300
QUERIES = ["word7 river stone", "honey and the forest", "metal tiger"]
LANGUAGES = ["en", "de", "fr"]


def row(n: int) -> dict[str, object]:
    return document(n) | {"lang": LANGUAGES[n % 3], "score": n / 10, "tags": [f"t{n % 4}", f"t{n % 5}"]}


@pytest.fixture
def searcher(write, encoder, home):
    index_corpus(write(*map(row, range(COUNT))), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as opened:
        yield opened


def text(n: int) -> str:
    return f"Title {n}\n{document(n)['text']}"


def cosines(encoder: StandIn, query: str) -> np.ndarray:
    return encoder.encode_passages([text(n) for n in range(COUNT)]) @ encoder.encode_queries([query])[0]


def bm25(query: str) -> np.ndarray:
    """Scores of every document, by the formula."""
    texts = [text(n) for n in range(COUNT)]
    lexical = Lexical(average_length(texts[:256]))
    passages = [lexical.of_passage(one) for one in texts]
    scores_P = np.zeros(COUNT)
    for term in lexical.of_query(query).terms_T:
        weights_P = np.array([float(p.weights_T[p.terms_T == term].sum()) for p in passages])
        having = (weights_P > 0).sum()
        scores_P += weights_P * np.log((COUNT - having + 0.5) / (having + 0.5) + 1)
    return scores_P


def place(scores_P: np.ndarray, n: int) -> tuple[int, int]:
    """The first and the last rank, from 1, that a document can have among equal scores."""
    return int((scores_P > scores_P[n] + 1e-5).sum()) + 1, int((scores_P >= scores_P[n] - 1e-5).sum())


def test_each_mode_ranks_by_its_own_score(searcher, encoder):
    for query in QUERIES:
        dense_P, lexical_P = cosines(encoder, query), bm25(query)
        for mode, scores_P in (("dense", dense_P), ("lexical", lexical_P)):
            [hits] = searcher.search([query], k=20, mode=mode)
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores_P)[::-1][: len(hits)], rtol=1e-3)
            for hit in hits:
                assert hit.score == pytest.approx(scores_P[int(hit.id[1:])], rel=1e-3)
        [hits] = searcher.search([query], k=20, explained=True)
        for hit in hits:
            n, parts = int(hit.id[1:]), []
            legs = ((dense_P, hit.explanation.dense), (lexical_P, hit.explanation.lexical))
            for (scores_P, found), weight in zip(legs, RRF.weights, strict=True):
                if found is not None:
                    first, last = place(scores_P, n)
                    assert found.rank == first and found.score == pytest.approx(scores_P[n], rel=1e-3)
                    parts.append(1 / ((first + last) / 2 / weight + RRF.k - 1))
            assert hit.score == pytest.approx(sum(parts), rel=1e-4)


def test_hybrid_is_the_default_and_finds_what_only_one_ranking_finds(searcher):
    [default], [hybrid] = searcher.search(["word7"], k=5), searcher.search(["word7"], k=5, mode="hybrid")
    assert default == hybrid and default[0].id == "d7"
    assert searcher.mode() == "hybrid"


def test_explained_hits_name_the_words_they_have(searcher):
    [hits] = searcher.search(["the papers of word7 xylophone"], k=1, explained=True)
    assert (hits[0].id, hits[0].explanation.words) == ("d7", ["papers", "word7"])
    [hits] = searcher.search(["word7"], k=1)
    assert hits[0].explanation is None


def test_stop_words(searcher, encoder):
    assert searcher.search(["the of and"], k=5) == searcher.search(["the of and"], k=5, mode="dense")
    assert not searcher.has_words("the of and") and searcher.has_words("the river")
    with pytest.raises(UserError, match="'the of and' has only words that lexical search leaves out"):
        searcher.search(["river", "the of and"], mode="lexical")
    both = searcher.search(["the of and", "river"], k=5)
    assert both == [searcher.search([query], k=5)[0] for query in ("the of and", "river")]


def test_a_lexical_search_needs_no_encoder(corpus, home, encoder):
    index_corpus(corpus(50), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as one:
        expected = one.search(QUERIES, mode="lexical")
    code = (
        "import sys, json; from pathlib import Path; from epic_search.index import Searcher;"
        f"s = Searcher.open('test', home=Path(sys.argv[1]), lexical_only=True);"
        f"found = s.search({QUERIES!r}, mode='lexical'); s.close();"
        "heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy;"
        "print(json.dumps([[hit.id for hit in hits] for hits in found]))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(home)], check=True, capture_output=True).stdout
    assert json.loads(answer) == [[hit.id for hit in hits] for hits in expected]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_pages_are_one_ranking_cut_in_pieces(searcher, mode, monkeypatch):
    monkeypatch.setattr("epic_search.index.searcher.RRF", Fusion(depth=20))  # pages go far beyond
    for query in ("river", "river stone word7"):
        [few] = searcher.search([query], k=1000, mode=mode, filter="year < 2008")  # between one depth and twice as many
        assert mode == "lexical" or len(few) == sum(row(n)["year"] < 2008 for n in range(COUNT))
        [whole] = searcher.search([query], k=1000, mode=mode)
        pages = [
            hit for offset in range(0, COUNT, 7) for hit in searcher.search([query], k=7, offset=offset, mode=mode)[0]
        ]
        assert [hit.id for hit in pages] == [hit.id for hit in whole]
        assert len({hit.id for hit in whole}) == len(whole)
        if mode != "lexical":
            assert len(whole) == COUNT


def test_a_ranking_of_equal_scores_is_in_the_order_of_ids(write, encoder, home):
    same = [{"_id": f"s{n:03d}", "text": "river stone"} for n in range(100)]
    index_corpus(write(*same), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        for mode in ("dense", "lexical", "hybrid"):
            [hits] = searcher.search(["river"], k=5, offset=20, mode=mode)
            assert [hit.id for hit in hits] == [f"s{n:03d}" for n in range(20, 25)]


def test_the_ranking_does_not_depend_on_how_the_corpus_was_written(write, encoder, home, there):
    """Where many are equal, by words and by meaning: in another order, built again, and on a server."""
    rows = [{"_id": f"d{n:02d}", "text": f"{WORDS[n % 5]} river {WORDS[5 + n % 3]}"} for n in range(150)]
    found = []
    for place, name, order in [(home, "a", rows), (home, "b", rows), (home, "c", rows[::-1]), (there, "a", rows[::-1])]:
        index_corpus(write(*order), name=name, encoder=encoder, home=place)
        with Searcher.open(name, home=place, encoder=encoder) as searcher:
            rankings = searcher.search(["river apple", "the stone", "honey", "tiger river light"], k=40)
            found.append([[(hit.id, pytest.approx(hit.score, rel=1e-6)) for hit in hits] for hits in rankings])
    assert found[0] == found[1] == found[2] == found[3]
    assert all(len(hits) == 40 for hits in found[0])


def test_a_long_document_is_one_hit(write, encoder, home):
    words = " ".join(f"needle{n // 100}" if n % 10 == 0 else f"hay{n}" for n in range(2000))
    others = [{"_id": f"o{n}", "text": f"hay{n} needle7 other"} for n in range(5)]
    index_corpus(write({"_id": "long", "text": words}, *others), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        for mode in ("dense", "lexical", "hybrid"):
            [hits] = searcher.search(["needle7"], k=6, mode=mode)
            assert sorted(hit.id for hit in hits) == ["long", "o0", "o1", "o2", "o3", "o4"]
            assert "needle7" in next(hit.text for hit in hits if hit.id == "long")
        assert searcher.facets(["id"])["id"][0][1] == 1, "facets count documents, not passages"


FILTERS = {
    "year>=2010 and lang=en": lambda r: r["year"] >= 2010 and r["lang"] == "en",
    "lang!=en": lambda r: r["lang"] != "en",
    "not (score < 10.05 or tags in (t1, t2))": lambda r: r["score"] >= 10.05 and not {"t1", "t2"} & set(r["tags"]),
    "id in (d3, d5, d999)": lambda r: r["_id"] in ("d3", "d5"),
    "tags = t4": lambda r: "t4" in r["tags"],
    "lang = xx": lambda r: False,
}


def test_a_filtered_search_is_a_search_of_what_passes(searcher, encoder):
    for filter, passes in FILTERS.items():
        passing = [n for n in range(COUNT) if passes(row(n))]
        for query in QUERIES:
            scores_P = cosines(encoder, query)
            [hits] = searcher.search([query], k=10, mode="dense", filter=filter)
            expected = sorted(scores_P[passing], reverse=True)[:10]
            np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-4, atol=1e-5)
            for mode in ("dense", "lexical", "hybrid"):
                [hits] = searcher.search([query], k=50, mode=mode, filter=filter)
                assert {int(hit.id[1:]) for hit in hits} <= set(passing), (filter, mode)


def test_facets_count_documents_that_pass(searcher):
    facets = searcher.facets(["lang", "tags", "year"], filter="year>=2010", limit=3)
    passing = [row(n) for n in range(COUNT) if row(n)["year"] >= 2010]
    assert dict(facets["lang"]) == {lang: sum(r["lang"] == lang for r in passing) for lang in LANGUAGES}
    for tag, count in facets["tags"]:
        assert count == sum(tag in r["tags"] for r in passing)
    assert len(facets["year"]) == 3
    with pytest.raises(UserError, match="'score' is of type float; only keyword, int and bool"):
        searcher.facets(["score"])
    with pytest.raises(UserError, match=r"cannot be counted by .nope.: fields of index .test. are id"):
        searcher.facets(["nope"])


def test_one_hit_for_each_value_of_a_field(searcher):
    [everything] = searcher.search(["river word7"], k=COUNT)
    [grouped] = searcher.search(["river word7"], k=COUNT, group_by="lang")
    first = {}
    for hit in everything:
        first.setdefault(hit.payload["lang"], hit)
    assert grouped == list(first.values())
    with pytest.raises(UserError, match="cannot be grouped by 'nope'"):
        searcher.search(["river"], group_by="nope")


def test_hits_of_a_least_score(searcher):
    for mode in ("dense", "lexical", "hybrid"):
        [hits] = searcher.search(["river word7"], k=20, mode=mode)
        least = hits[4].score
        [kept] = searcher.search(["river word7"], k=20, mode=mode, min_score=least)
        assert kept == [hit for hit in hits if hit.score >= least]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "both"}, "the mode is 'both'; it must be one of hybrid, dense, lexical"),
        ({"offset": -1}, "the offset is -1"),
        ({"filter": "yaer=1"}, "unknown field 'yaer'"),
    ],
)
def test_mistakes(searcher, options, said):
    with pytest.raises(UserError, match=said):
        searcher.search(["river"], **options)


def test_an_index_without_words_is_searched_densely(corpus, encoder, home):
    """As the indexes of format 1."""
    index_corpus(corpus(5), name="test", encoder=encoder, home=home)
    folder = home / "test"
    old = json.loads((folder / "manifest.json").read_text())
    for key in ("lexical", "types"):
        del old[key]
    (folder / "manifest.json").write_text(json.dumps(old | {"format": 1}))
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert searcher.mode() == "dense" and len(searcher.search(["river"])[0]) == 5
        for mode in ("hybrid", "lexical"):
            with pytest.raises(UserError, match="index the documents again under a new name"):
                searcher.search(["river"], mode=mode)
    report = index_corpus(corpus(6), name="test", encoder=encoder, home=home, fields={"year": "int"})
    assert (report.added, report.unchanged) == (1, 5)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert {hit.id for hit in searcher.search(["river"], filter="year>=2003")[0]} == {"d3", "d4", "d5"}
        assert dict(searcher.facets(["year"])["year"]) == dict.fromkeys(range(2000, 2006), 1)


class TestFields:
    def test_are_inferred_and_reported(self, write, encoder, home):
        path = write(*map(row, range(5)))
        report = index_corpus(path, name="test", encoder=encoder, home=home)
        assert report.inferred == {"year": "int", "lang": "keyword", "score": "float", "tags": "keyword"}
        assert index_corpus(path, name="test", encoder=encoder, home=home).inferred == {}

    def test_a_document_that_does_not_fit_its_declaration_is_skipped(self, write, encoder, home):
        path = write(row(0), row(1) | {"year": "MMXX"}, row(2) | {"year": None})
        report = index_corpus(path, name="test", encoder=encoder, home=home, fields={"year": "int"})
        assert (report.added, report.problem_counts) == (2, {"value does not fit its field": 1})
        said = "line 2: value does not fit its field (id 'd1', field 'year' is int and has 'MMXX')"
        assert str(report.problems[0]) == said
        with pytest.raises(UserError, match="line 2: value does not fit its field"):
            index_corpus(Corpus(path, strict=True), name="s", encoder=encoder, home=home, fields={"year": "int"})

    def test_a_document_that_does_not_fit_what_was_inferred_is_stored_and_counted(self, write, encoder, home):
        many = [row(n) for n in range(300)]
        report = index_corpus(write(*many, row(300) | {"year": "MMXX"}), name="test", encoder=encoder, home=home)
        assert (report.added, report.unfit) == (301, {"year": 1})

    def test_texts_of_a_table_are_read_as_their_declared_type(self, tmp_path, encoder, home):
        (tmp_path / "c.csv").write_text("id,text,year,open\na,river,2020,true\nb,stone, 1999 ,false\nc,cloud,,\n")
        fields = {"year": "int", "open": "bool"}
        assert index_corpus(tmp_path / "c.csv", name="test", encoder=encoder, home=home).added == 3
        report = index_corpus(tmp_path / "c.csv", name="test", encoder=encoder, home=home, fields=fields)
        assert (report.changed, report.unchanged) == (2, 1), "what is stored changes"
        assert index_corpus(tmp_path / "c.csv", name="test", encoder=encoder, home=home).unchanged == 3
        with Searcher.open("test", home=home, encoder=encoder) as searcher:
            for filter, found in (("year < 2000", {"b"}), ("open = true", {"a"}), ("not year exists", {"c"})):
                assert {hit.id for hit in searcher.search(["river"], filter=filter)[0]} == found

    def test_added_to_an_index(self, write, encoder, home):
        path = write(*({"_id": str(n), "text": f"river {n}", "of": {"n": n}} for n in range(20)))
        index_corpus(path, name="test", encoder=encoder, home=home)
        report = index_corpus(path, name="test", encoder=encoder, home=home, fields={"of.n": "int"})
        assert (report.unchanged, report.encoded) == (20, 0)
        with Searcher.open("test", home=home, encoder=encoder) as searcher:
            assert {hit.id for hit in searcher.search(["river"], k=20, filter="of.n < 3")[0]} == {"0", "1", "2"}
            assert dict(searcher.facets(["of.n"], limit=100)["of.n"]) == dict.fromkeys(range(20), 1)


def test_rankings_of_many_queries_are_those_of_each(searcher, encoder, home):
    queries = [f"{one} {other}" for one in WORDS[:5] for other in WORDS[5:]]
    assert searcher.search(queries, k=3) == [searcher.search([query], k=3)[0] for query in queries]


def test_prefetches_reach_deeper_until_there_is_enough(corpus, encoder, home):
    index_corpus(corpus(100), name="test", encoder=encoder, home=home)
    folder = home / "test"
    with Lock(folder) as lock, Contents(folder, Manifest.load(folder), lock=lock) as contents:
        query = StoreQuery(encoder.encode_queries(["river"])[0], contents.lexical.of_query("river"))
        options = {"passages": 100, "key": lambda match: match.payload["id"], "fusion": Fusion(depth=3)}
        [few] = rank(contents.store, [query], need=5, **options)
        [many] = rank(contents.store, [query], need=100, **options)
    assert len(few) == 5 and len(many) == 100
    assert [match.id for match in many[:5]] == [match.id for match in few]


def test_the_best_fused_score_is_what_the_help_says():
    """First in both rankings, and first in the dense one alone."""
    both = [1 / (1 / weight + RRF.k - 1) for weight in RRF.weights]
    assert (round(sum(both), 2), round(both[0], 2)) == (1.17, 0.67)
