"""Indexing: what is stored, what is encoded again and what is not, and what each mistake is told."""

import json
from itertools import pairwise

import numpy as np
import pytest
from index_helpers import document, stored
from stand_in import StandIn

from epic_search.encoder import Demonstration
from epic_search.errors import UserError
from epic_search.index import Corpus, Searcher, index_corpus, indexer
from epic_search.index.manifest import Manifest


def test_first_run(corpus, encoder, home):
    report = index_corpus(corpus(100), name="test", encoder=encoder, home=home)
    assert (report.added, report.documents, report.passages, report.encoded) == (100, 100, 100, 100)
    manifest = Manifest.load(home / "test")
    assert (manifest.status, manifest.documents, manifest.passages) == ("complete", 100, 100)
    assert (manifest.encoder, manifest.fingerprint, manifest.dim) == ("stand-in", encoder.fingerprint, 512)
    assert manifest.fields == ["year"]
    assert stored(home, encoder)["d7", 0] == ("Title 7", document(7)["text"])


def test_running_again_encodes_nothing(corpus, encoder, home):
    index_corpus(corpus(700), name="test", encoder=encoder, home=home)
    before, encoder.encoded = stored(home, encoder), []
    report = index_corpus(corpus(700), name="test", encoder=encoder, home=home)
    assert (report.unchanged, report.added, report.changed, report.encoded) == (700, 0, 0, 0)
    assert encoder.encoded == []
    assert stored(home, encoder) == before


def test_changed_documents_are_replaced(write, encoder, home):
    long = {"_id": "long", "title": "L", "text": " ".join(f"w{n}" for n in range(500))}
    index_corpus(write(long, document(1)), name="test", encoder=encoder, home=home)
    assert len(stored(home, encoder)) > 5
    encoder.encoded = []
    report = index_corpus(write(long | {"text": "short now"}, document(1)), name="test", encoder=encoder, home=home)
    assert (report.changed, report.unchanged, report.passages) == (1, 1, 2)
    assert encoder.encoded == ["L\nshort now"]
    assert stored(home, encoder) == {
        ("long", 0): ("L", "short now"),
        ("d1", 0): ("Title 1", document(1)["text"]),
    }


def test_changed_payload_is_stored(write, encoder, home):
    index_corpus(write(document(1)), name="test", encoder=encoder, home=home)
    index_corpus(write(document(1) | {"year": 1900}), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert searcher.search(["word1"])[0][0].payload == {"year": 1900}


def test_documents_that_are_gone_stay_unless_pruned(corpus, encoder, home):
    index_corpus(corpus(1200), name="test", encoder=encoder, home=home)
    report = index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    assert (report.documents, report.removed) == (1200, 0)
    report = index_corpus(corpus(3), name="test", encoder=encoder, home=home, prune=True)
    assert (report.documents, report.removed, report.encoded) == (3, 1197, 0)
    assert {id for id, _ in stored(home, encoder)} == {"d0", "d1", "d2"}


def test_first_of_two_documents_with_one_id_wins(write, encoder, home):
    path = write(document(1), document(2), document(1, changed=True))
    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert report.problem_counts == {"duplicate id": 1}
    assert str(report.problems[0]) == "line 3: duplicate id ('d1')"
    assert stored(home, encoder)["d1", 0] == ("Title 1", document(1)["text"])
    again = index_corpus(path, name="test", encoder=encoder, home=home)
    assert (again.encoded, again.unchanged, again.skipped) == (0, 2, 1)


def test_problems_are_reported_and_the_rest_is_stored(write, encoder, home):
    path = write(document(1), "{broken", {"_id": "x"}, document(2))
    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert (report.documents, report.skipped) == (2, 2)
    assert [problem.place for problem in report.problems] == ["line 2", "line 3"]


def test_strict_stops_and_keeps_what_came_before(write, encoder, home):
    path = write(document(1), "{broken", document(2))
    with pytest.raises(UserError, match="line 2: malformed JSON"):
        index_corpus(Corpus(path, strict=True), name="test", encoder=encoder, home=home)
    assert set(stored(home, encoder)) == {("d1", 0)}
    assert Manifest.load(home / "test").status == "indexing"
    assert index_corpus(path, name="test", encoder=encoder, home=home).added == 1


def test_strict_stops_at_a_duplicate(write, encoder, home):
    with pytest.raises(UserError, match="line 2: duplicate id"):
        corpus = Corpus(write(document(1), document(1)), strict=True)
        index_corpus(corpus, name="test", encoder=encoder, home=home)


@pytest.mark.parametrize(
    "lines", [[], ["", "  "], ["{broken", '{"_id": 1, "text": ""}']], ids=["empty", "blank", "unusable"]
)
def test_file_without_a_document(write, encoder, home, lines):
    with pytest.raises(UserError, match="holds no document"):
        index_corpus(write(*lines), name="test", encoder=encoder, home=home, prune=True)
    assert not (home / "test").exists()


def test_empty_file_does_not_empty_an_index(corpus, write, encoder, home):
    index_corpus(corpus(5), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError):
        index_corpus(write(name="empty.jsonl"), name="test", encoder=encoder, home=home, prune=True)
    assert len(stored(home, encoder)) == 5


def test_gzip_cut_off_keeps_what_was_read_and_prunes_nothing(corpus, encoder, home, tmp_path):
    import gzip

    index_corpus(corpus(2000), name="test", encoder=encoder, home=home)
    half = tmp_path / "half.jsonl.gz"
    content = gzip.compress(corpus(2000, changed=frozenset(range(2000))).read_bytes())
    half.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut-off gzip"):
        index_corpus(half, name="test", encoder=encoder, home=home, prune=True)
    texts = [text for _, text in stored(home, encoder).values()]
    assert len(texts) == 2000
    assert 500 < sum(text.endswith("rewritten") for text in texts) < 2000


def test_other_encoder_is_refused_by_name(corpus, encoder, home):
    index_corpus(corpus(5), name="test", encoder=encoder, home=home)
    other = StandIn("other")
    with pytest.raises(UserError) as raised:
        index_corpus(corpus(5), name="test", encoder=other, home=home)
    for words in ("'stand-in'", encoder.fingerprint[:12], "'other'", other.fingerprint[:12]):
        assert words in str(raised.value)
    assert other.encoded == []
    assert len(stored(home, encoder)) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_unsound_vector_names_its_document_and_stores_nothing_of_its_chunk(corpus, encoder, home, monkeypatch, value):
    encode = encoder.encode_passages

    def unsound(texts, *, ids=None, progress=None):
        vectors_PE = encode(texts, ids=ids, progress=progress)
        for row, text in enumerate(texts):
            if "word600 " in text:
                vectors_PE[row] *= value
        return vectors_PE

    monkeypatch.setattr(encoder, "encode_passages", unsound)
    with pytest.raises(UserError, match=r"document 'd600' \(line 601\)"):
        index_corpus(corpus(700), name="test", encoder=encoder, home=home)
    chunk = indexer.CHUNK_PASSAGES
    assert {id for id, _ in stored(home, encoder)} == {f"d{n}" for n in range(600 // chunk * chunk)}


def test_long_documents_become_passages_with_their_title(write, encoder, home):
    words = [f"w{n}" for n in range(1000)]
    path = write({"_id": "a", "title": "The long one", "text": " ".join(words)})
    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert report.passages > 10
    assert all(text.startswith("The long one\n") for text in encoder.encoded)
    read = [set(text.split()[: encoder.config.max_length]) for text in encoder.encoded]
    assert set(words) <= set.union(*read)  # what the encoder reads leaves nothing out
    for one, next_one in pairwise(read):
        assert len(one & next_one & set(words)) >= 10


@pytest.mark.parametrize("words", [90, 97, 98, 99, 100, 101, 160, 165, 170])
def test_every_word_is_read_at_every_length(write, encoder, home, words):
    texts = [f"w{n}" for n in range(words)]
    index_corpus(
        write({"_id": "a", "title": "t1 t2 t3", "text": " ".join(texts)}),
        name="t",
        encoder=encoder,
        home=home,
    )
    read = [text.split()[: encoder.config.max_length] for text in encoder.encoded]
    assert set(texts) <= {word for text in read for word in text}


def test_title_longer_than_a_passage_loses_nothing(write, encoder, home):
    title, words = [f"t{n}" for n in range(300)], [f"w{n}" for n in range(300)]
    path = write({"_id": "a", "title": " ".join(title), "text": " ".join(words)})
    index_corpus(path, name="test", encoder=encoder, home=home)
    read = {word for text in encoder.encoded for word in text.split()[: encoder.config.max_length]}
    assert read == {*title, *words}


def test_prompt_is_stored_kept_and_cleared(corpus, encoder, home):
    demonstrations = [Demonstration(query="q", passage="p")]
    path, folder = corpus(3), home / "test"
    index_corpus(path, name="test", encoder=encoder, home=home, task="find it", demonstrations=demonstrations)
    index_corpus(path, name="test", encoder=encoder, home=home)
    manifest = Manifest.load(folder)
    assert (manifest.task, [(d.query, d.passage) for d in manifest.demonstrations]) == (
        "find it",
        [("q", "p")],
    )
    index_corpus(path, name="test", encoder=encoder, home=home, task="find another")
    assert (Manifest.load(folder).task, len(Manifest.load(folder).demonstrations)) == ("find another", 1)
    index_corpus(path, name="test", encoder=encoder, home=home, task="", demonstrations=[])
    assert (Manifest.load(folder).task, Manifest.load(folder).demonstrations) == (None, [])


def test_prompt_that_does_not_fit_leaves_nothing_behind(corpus, encoder, home):
    with pytest.raises(UserError, match="too many tokens"):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home, task="too long")
    assert not home.exists()
    assert encoder.encoded == []


def test_progress_goes_up_to_the_whole_file(corpus, encoder, home):
    path, events = corpus(1500), []
    index_corpus(path, name="test", encoder=encoder, home=home, progress=events.append)
    assert [event.documents for event in events] == sorted(event.documents for event in events)
    assert [event.bytes_done for event in events] == sorted(event.bytes_done for event in events)
    assert (events[-1].stage, events[-1].documents, events[-1].passages) == ("optimize", 1500, 1500)
    assert events[-1].bytes_done == events[-1].bytes_total == path.stat().st_size


def test_memory_is_bounded_by_the_chunk(corpus, encoder, home, monkeypatch):
    sizes, encode = [], encoder.encode_passages

    def counting(texts, *, ids=None, progress=None):
        sizes.append(len(texts))
        return encode(texts, ids=ids, progress=progress)

    monkeypatch.setattr(encoder, "encode_passages", counting)
    index_corpus(corpus(3000), name="test", encoder=encoder, home=home)
    assert sum(sizes) == 3000
    assert max(sizes) < indexer.CHUNK_PASSAGES + indexer.GROUP_DOCUMENTS


@pytest.mark.parametrize("step", ["upsert", "flush", "delete"])
@pytest.mark.parametrize("time", [1, 2])
def test_failure_at_any_step_loses_nothing(corpus, encoder, home, monkeypatch, step, time):
    """Old and new documents survive when the store fails before, between and after its writes."""
    from epic_search.index.store.edge import EdgeStore

    index_corpus(corpus(600), name="test", encoder=encoder, home=home)
    old = stored(home, encoder)
    calls, real = [], getattr(EdgeStore, step)

    def failing(self, *args, **options):
        calls.append(step)
        if len(calls) == time:
            raise UserError("the disk is full")
        return real(self, *args, **options)

    path = corpus(700, changed=frozenset(range(600)))
    with monkeypatch.context() as patch:
        patch.setattr(EdgeStore, step, failing)
        with pytest.raises(UserError, match="disk is full"):
            index_corpus(path, name="test", encoder=encoder, home=home)
    between = stored(home, encoder)
    assert set(between) >= set(old)  # each document is there, old or new
    index_corpus(path, name="test", encoder=encoder, home=home)
    expected = StandIn()
    index_corpus(path, name="fresh", encoder=expected, home=home)
    assert stored(home, encoder) == stored(home, encoder, "fresh")


def test_manifest_of_a_newer_format(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    path = home / "test" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "epic_search": "9.0"}))
    with pytest.raises(UserError, match=r"format 99, written by epic-search 9\.0"):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "fingerprint": "x", "surprise": 1}'])
def test_damaged_manifest(corpus, encoder, home, content):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "test" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="delete the index and index again"):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home)


def test_pipe_as_corpus(corpus, encoder, home, tmp_path):
    import os
    import threading

    path, pipe = corpus(50), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True)
    writer.start()
    report = index_corpus(pipe, name="test", encoder=encoder, home=home)
    writer.join()
    assert report.documents == 50


def test_a_line_that_cannot_be_read_is_not_a_document_that_is_gone(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    path = corpus(3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-1]]) + "\n")
    report = index_corpus(path, name="test", encoder=encoder, home=home, prune=True)
    assert (report.removed, report.documents, report.prune_withheld) == (0, 3, True)
    path.write_text("\n".join([lines[0], lines[0], lines[1]]) + "\n")
    report = index_corpus(path, name="test", encoder=encoder, home=home, prune=True)
    assert (report.removed, report.documents, report.prune_withheld) == (1, 2, False)
