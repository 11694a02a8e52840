"""What a user teaches: it changes related queries at once, follows its documents, and is never lost."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from index_helpers import document
from stand_in import StandIn

from epic_search.encoder import Demonstration
from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.feedback import REACH, weights
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.suggest import queries_of_documents, suggest
from epic_search.index.taught_folder import TaughtFolder
from epic_search.index.taught_pair import Lesson, label
from epic_search.index.ways import Ways, set_ways

ROOT = Path(__file__).parents[2]
BARE = Ways("none", boost=0.0)


@pytest.fixture
def searcher(corpus, encoder, home):
    index_corpus(corpus(60), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as opened:
        yield opened


def again(home, encoder):
    return Searcher.open("test", home=home, encoder=encoder)


def ids(searcher, query, k=3, **options):
    return [hit.id for hit in searcher.search([query], k=k, **options)[0]]


@pytest.fixture(params=["dense", "hybrid"])
def mode(request):
    return request.param


class TestTeach:
    def test_the_taught_query_finds_its_document_and_related_ones_come_nearer(self, searcher, encoder, mode):
        taught, related, other = "colour of the sky", "colour of the evening sky", "entirely different words"
        before = {query: searcher.search([query], k=60, mode=mode)[0] for query in (taught, related, other)}
        encoder.encoded.clear()
        (pair,) = searcher.teach(taught, ["d42"])
        assert encoder.encoded == [], "the passage's vector comes out of the index"
        assert (pair.query, pair.document, pair.title) == (taught, "d42", "Title 42")
        assert pair.passage == f"Title 42\n{document(42)['text']}"
        assert ids(searcher, taught, mode=mode)[0] == "d42"
        place = [hit.id for hit in before[related]].index("d42")
        assert ids(searcher, related, k=60, mode=mode).index("d42") < max(1, place)
        assert searcher.search([other], k=60, mode=mode)[0] == before[other], "no neighbour, no change"
        assert searcher.search([related], k=60, mode=mode, ways=BARE)[0] == before[related]

    def test_the_move_is_rocchios(self, searcher, encoder):
        searcher.teach("colour of the sky", ["d42", "d7"])
        query_E = encoder.encode_queries(["colour of the evening sky"])[0]
        near_E = encoder.encode_queries(["colour of the sky"])[0]
        passages_PE = encoder.encode_passages([f"Title {n}\n{document(n)['text']}" for n in (42, 7)])
        weights_P = weights(np.full(2, query_E @ near_E), reach=REACH)
        expected_E = query_E + 0.5 * weights_P @ passages_PE
        moved_E = searcher.adapt(["colour of the evening sky"], ways=Ways(boost=0.5)).vectors_QE[0]
        np.testing.assert_allclose(moved_E, expected_E / np.linalg.norm(expected_E), atol=1e-5)

    def test_nearest_pairs_go_into_the_prompt_the_nearest_last(self, searcher, encoder, monkeypatch):
        searcher.teach_all([Lesson(f"sky {word}", document=f"d{n}") for n, word in enumerate("abcdef")])
        seen = []
        plain = encoder.encode_queries

        def spy(texts, *, prompts=None, **options):
            if prompts is not None:
                seen.extend(prompts)
            return plain(texts, prompts=prompts, **options)

        monkeypatch.setattr(encoder, "encode_queries", spy)
        ways = Ways("nearest", demos_k=2, boost=0.0)
        adapted = searcher.adapt(["sky c", "sky e f"], ways=ways)
        assert adapted.uses[0][0].neighbour.pair.query == "sky c"
        assert {use.neighbour.pair.query for use in adapted.uses[1]} == {"sky e", "sky f"}
        for prompt, used in zip(seen, adapted.uses, strict=True):
            pairs = [use.neighbour.pair for use in reversed(used)]
            assert prompt.demonstrations == tuple(Demonstration(p.query, p.passage) for p in pairs)
            encoded = encoder.prompt(demonstrations=prompt.demonstrations)
            np.testing.assert_allclose(prompt.vectors_SE, encoded.vectors_SE, atol=1e-5)
        assert ids(searcher, "sky c", ways=ways) != ids(searcher, "sky c", ways=BARE)

    def test_of_a_long_document_the_passage_nearest_to_the_query(self, write, encoder, home):
        words = " ".join(f"needle{n // 100}" if n % 10 == 0 else f"hay{n}" for n in range(2000))
        index_corpus(write({"_id": "long", "title": "T", "text": words}), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            (pair,) = searcher.teach("needle7 needle7", ["long"])
        assert pair.passage.startswith("T\n") and "needle7" in pair.passage

    def test_twice_is_stored_once(self, searcher):
        first = searcher.teach("sky", ["d1", "d2"])
        assert [pair.document for pair in first] == ["d1", "d2"]
        assert [pair.document for pair in searcher.teach(" sky ", ["d2", "d3", "d3"])] == ["d3"]
        assert len(searcher.taught()) == 3 == searcher.manifest.taught

    def test_own_words(self, searcher, encoder):
        (pair,) = searcher.teach_all([Lesson("sky", passage="word9 word9 word9")])
        assert (pair.document, pair.passage) == (None, "word9 word9 word9")
        assert ids(searcher, "sky")[0] == "d9"
        assert searcher.forget("sky", [label(pair)]) == [pair]
        assert searcher.taught() == []

    def test_it_stays(self, corpus, encoder, home):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            searcher.teach("sky", ["d5"])
        with again(home, encoder) as opened:
            assert [(pair.query, pair.document) for pair in opened.taught()] == [("sky", "d5")]
            assert ids(opened, "sky")[0] == "d5"

    def test_forget(self, searcher):
        before = ids(searcher, "sky")
        searcher.teach("sky", ["d1", "d2"])
        searcher.teach("sea", ["d3"])
        assert [pair.document for pair in searcher.forget("sky", ["d2"])] == ["d2"]
        assert [pair.document for pair in searcher.forget("sky")] == ["d1"]
        assert ids(searcher, "sky") == before
        assert searcher.forget_all() == 1 and searcher.taught() == [] and searcher.manifest.taught == 0


class TestMistakes:
    def test_an_unknown_document_names_those_written_like_it_and_stores_nothing(self, searcher):
        with pytest.raises(UserError, match="has no document 'd420'; written like it are 'd42'"):
            searcher.teach("sky", ["d1", "d420"])
        assert searcher.taught() == []
        with pytest.raises(UserError, match="has no document 'zzzzzz'; give the id of a hit"):
            searcher.teach("sky", ["zzzzzz"])

    @pytest.mark.parametrize(
        ("lesson", "said"),
        [
            (Lesson(" ", document="d1"), "the query is empty"),
            (Lesson("sky", passage=""), "the passage is empty"),
            (Lesson("sky " * 101, document="d1"), "takes more than the 100 tokens that stand-in reads"),
            (Lesson("sky", passage="sea " * 101), "takes more than the 100 tokens that stand-in reads"),
        ],
    )
    def test_texts_that_are_not_read_whole(self, searcher, lesson, said):
        with pytest.raises(UserError, match=said):
            searcher.teach_all([Lesson("sea", document="d2"), lesson])
        assert searcher.taught() == []

    def test_what_was_never_taught_cannot_be_forgotten(self, searcher):
        searcher.teach("colour of the sky", ["d1"])
        with pytest.raises(UserError, match="for the query 'colour of sky'; taught are 'colour of the sky'"):
            searcher.forget("colour of sky")
        with pytest.raises(UserError, match="'d2' is not taught for the query 'colour of the sky'; taught are 'd1'"):
            searcher.forget("colour of the sky", ["d2"])
        assert len(searcher.taught()) == 1

    @pytest.mark.parametrize(
        ("values", "said"), [({"demos_k": 0}, "is 0"), ({"boost": -1.0}, "is -1"), ({"boost": np.nan}, "is nan")]
    )
    def test_ways_that_cannot_be(self, values, said):
        with pytest.raises(UserError, match=said):
            Ways(**values)

    def test_pairs_of_another_encoder(self, corpus, home):
        for name, encoder in (("test", StandIn()), ("other", StandIn("other"))):
            index_corpus(corpus(3), name=name, encoder=encoder, home=home)
        with again(home, StandIn()) as searcher:
            searcher.teach("sky", ["d1"])
        shutil.copytree(home / "test" / "taught", home / "other" / "taught")
        with pytest.raises(UserError, match="what index 'other' was taught is of another encoder"):
            Searcher.open("other", home=home, encoder=StandIn("other"))

    def test_fewer_pairs_than_were_taught_are_damage(self, corpus, encoder, home):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            searcher.teach("sky", ["d1"])
        manifest = Manifest.load(home / "test")
        manifest.taught = 2
        manifest.save(home / "test")
        with pytest.raises(UserError, match=r"is damaged \(its store holds 1 of 2 pairs"):
            again(home, encoder)


class TestFollowing:
    """A pair follows its document and the index's task."""

    def test_a_document_that_goes_and_comes_back(self, corpus, encoder, home):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            searcher.teach("sky", ["d9", "d1"])
        index_corpus(corpus(9), name="test", encoder=encoder, home=home, prune=True)
        with again(home, encoder) as searcher:
            assert {(pair.document, pair.stale) for pair in searcher.taught()} == {("d9", True), ("d1", False)}
            used = searcher.adapt(["sky"], ways=Ways("nearest", demos_k=2)).uses[0]
            assert [use.neighbour.pair.document for use in used] == ["d1"]
            assert searcher.manifest.taught == 2
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            assert not any(pair.stale for pair in searcher.taught())

    def test_only_stale_pairs(self, corpus, encoder, home):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            searcher.teach("sky", ["d9"])
        index_corpus(corpus(9), name="test", encoder=encoder, home=home, prune=True)
        with again(home, encoder) as searcher:
            assert searcher.search(["sky"]) == searcher.search(["sky"], ways=BARE)
            assert searcher.neighbours(["sky"], k=3) == [[]]
            assert [pair.document for pair in searcher.forget("sky")] == ["d9"]

    def test_a_document_that_changes(self, corpus, encoder, home):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            (pair,) = searcher.teach("sky", ["d4"])
        index_corpus(corpus(10, changed=frozenset({4})), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            (now,) = searcher.taught()
            assert (now.query, now.document, now.taught) == (pair.query, pair.document, pair.taught)
            assert now.passage.endswith("rewritten")
            (use,) = searcher.adapt(["sky"]).uses[0]
            np.testing.assert_allclose(use.neighbour.passage_E, encoder.encode_passages([now.passage])[0], atol=1e-6)
            asked = len(encoder.asked)
        with again(home, encoder):
            assert len(encoder.asked) == asked, "made anew once"

    def test_a_task_that_changes(self, corpus, encoder, home):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
        with again(home, encoder) as searcher:
            searcher.teach("sky", ["d4"])
        index_corpus(corpus(10), name="test", encoder=encoder, home=home, task="find it")
        encoder.asked.clear()
        with again(home, encoder):
            assert encoder.asked == ["sky"]


class TestWays:
    def test_a_setting_of_the_index_that_a_query_overrides(self, corpus, encoder, home):
        demonstrations = [Demonstration("anything", "word8 word8")]
        index_corpus(corpus(10), name="test", encoder=encoder, home=home, demonstrations=demonstrations)
        assert set_ways("test", home=home) == Ways()
        assert set_ways("test", home=home, demos="nearest", boost=0.25) == Ways("nearest", boost=0.25)
        assert set_ways("test", home=home, demos_k=2) == Ways("nearest", demos_k=2, boost=0.25)
        with again(home, encoder) as searcher:
            assert searcher.ways == Ways("nearest", demos_k=2, boost=0.25)
            manifest = searcher.manifest
            assert Ways.of(manifest, demos="none") == Ways("none", demos_k=2, boost=0.0)
            assert Ways.of(manifest, demos="none", boost=1.0).boost == 1.0
            fixed, bare = (searcher.search(["word7"], ways=ways)[0] for ways in (Ways("fixed"), BARE))
            assert fixed == searcher.search(["word7"], prompt=searcher.prompt, ways=Ways("fixed"))[0] != bare
            assert bare == searcher.search(["word7"], prompt=encoder.prompt(), ways=Ways("fixed"))[0]

    def test_an_index_in_use(self, corpus, encoder, home, monkeypatch):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home)
        monkeypatch.setattr("epic_search.index.ways.LOCK_WAIT_SECONDS", 0.1)
        with Lock(home / "test"), pytest.raises(UserError, match="in use"):
            set_ways("test", home=home, demos="none")


class TestSuggest:
    def test_the_least_sure_first(self, searcher):
        found = suggest(searcher, ["word1 word2", "word5", "word5", "word3 word4 apple"], count=3)
        assert len(found) == 3 and [s.margin for s in found] == sorted(s.margin for s in found)
        assert found[0].similarity is None and found[0].hit.id in {"d1", "d2", "d3", "d4", "d5"}

    def test_the_least_covered_first_and_each_different_from_those_before(self, searcher):
        searcher.teach("sea water", ["d1"])
        found = suggest(
            searcher, ["sea water salt", "blue sky", "blue sky blue sky above", "sea water"], count=3, by="coverage"
        )
        assert found[0].query in {"blue sky", "blue sky blue sky above"}
        assert found[1].query == "sea water salt" and len(found) == 3
        assert found[1].similarity > 0.7

    def test_titles_where_there_are_no_queries(self, searcher):
        queries = queries_of_documents(searcher)
        assert set(queries) == {f"Title {n}" for n in range(60)}

    def test_all_taught(self, searcher):
        searcher.teach("sky", ["d1"])
        with pytest.raises(UserError, match="taught already"):
            suggest(searcher, ["sky"])


TEACHER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from stand_in import StandIn
from epic_search.index import Searcher
with Searcher.open("test", home=Path(sys.argv[1]), encoder=StandIn()) as searcher:
    for n in range(60):
        searcher.teach(f"query {n}", [f"d{n}"])
        print(n, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [0, 1, 20])
def test_killed_while_teaching(corpus, encoder, home, acknowledged):
    index_corpus(corpus(60), name="test", encoder=encoder, home=home)
    process = subprocess.Popen(
        [sys.executable, "-c", TEACHER, str(home), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    for _ in range(acknowledged):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    with again(home, encoder) as searcher:
        held = {pair.query for pair in searcher.taught()}
        assert held >= {f"query {n}" for n in range(acknowledged + len(rest))}
        searcher.teach("one more", ["d1"])
        assert len(searcher.taught()) == len(held) + 1


def test_a_store_half_made(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "test" / "taught.new" / "segments").mkdir(parents=True)
    with again(home, encoder) as searcher:
        assert searcher.taught() == []
        searcher.teach("sky", ["d1"])
        assert len(searcher.taught()) == 1


def test_a_search_while_the_first_pair_is_taught(corpus, encoder, home, monkeypatch):
    """As in a server: the search waits for the store that is being made, and opens none of its own."""
    index_corpus(corpus(10), name="test", encoder=encoder, home=home)
    found, create = [], TaughtFolder.create

    def create_slowly(place, schema):
        store = create(place, schema)
        searching.start()
        searching.join(0.5)
        return store

    monkeypatch.setattr(TaughtFolder, "create", create_slowly)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        searching = threading.Thread(target=lambda: found.extend(searcher.search(["sky"])))
        searcher.teach("sky", ["d1"])
        searching.join(60)
        assert len(found) == 1
        searcher.teach("sea", ["d2"])
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert {pair.document for pair in searcher.taught()} == {"d1", "d2"}
