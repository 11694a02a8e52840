"""Reading, encoding and storing at the same time: that they do, and that nobody can tell from what is stored."""

import threading
import time

import pytest
from index_helpers import stored
from stand_in import StandIn

from epic_search.errors import UserError
from epic_search.index import Corpus, index_corpus, indexer, list_indexes
from epic_search.index.contents import Contents
from epic_search.index.stage import Stage

CHUNK = indexer.CHUNK_PASSAGES
DEADLINE = 30.0


class Watched(StandIn):
    """Says when it begins with a call, and waits with the end of it for what it is told to wait for."""

    def __init__(self, **waits: threading.Event) -> None:
        super().__init__()
        self.begun = [threading.Event() for _ in range(10)]
        self.waits = {int(name.removeprefix("call")): event for name, event in waits.items()}
        self.calls = 0

    def encode_passages(self, texts, **options):
        call, self.calls = self.calls, self.calls + 1
        self.begun[call].set()
        if call in self.waits:
            assert self.waits[call].wait(DEADLINE), f"call {call} waited in vain"
        return super().encode_passages(texts, **options)


def test_the_next_chunk_is_read_while_one_is_encoded(corpus, home):
    next_is_read = threading.Event()
    encoder = Watched(call0=next_is_read)
    source = Corpus(corpus(4 * CHUNK))
    documents = source._documents

    def reading():
        for number, one in enumerate(documents, start=1):
            if number == 2 * CHUNK:
                next_is_read.set()
            yield one

    source._documents = reading()
    assert index_corpus(source, name="test", encoder=encoder, home=home).documents == 4 * CHUNK


def test_the_next_chunk_is_encoded_while_one_is_stored(corpus, home, monkeypatch):
    encoder, put, calls = Watched(), Contents.put, []

    def waiting(self, chunk, vectors_PE):
        calls.append(len(chunk))
        assert encoder.begun[1].wait(DEADLINE), "the second chunk was not begun"
        return put(self, chunk, vectors_PE)

    monkeypatch.setattr(Contents, "put", waiting)
    assert index_corpus(corpus(2 * CHUNK), name="test", encoder=encoder, home=home).documents == 2 * CHUNK
    assert calls == [CHUNK, CHUNK]


def test_no_more_than_two_chunks_are_on_their_way(corpus, home, monkeypatch):
    """What a killed run can lose: documents that were said to be encoded, and are not stored."""
    put, said, ahead = Contents.put, [0], []

    def slow(self, chunk, vectors_PE):
        time.sleep(0.05)
        ahead.append(said[-1] - self.documents)
        return put(self, chunk, vectors_PE)

    monkeypatch.setattr(Contents, "put", slow)
    index_corpus(
        corpus(6 * CHUNK), name="test", encoder=StandIn(), home=home, progress=lambda p: said.append(p.documents)
    )
    assert len(ahead) == 6 and max(ahead) <= 2 * CHUNK


def test_chunk_before_one_that_fails_is_stored(corpus, home):
    encoder = Watched()
    encode = encoder.encode_passages

    def failing(texts, **options):
        if encoder.calls == 2:
            raise UserError("the third chunk cannot be encoded")
        return encode(texts, **options)

    encoder.encode_passages = failing
    with pytest.raises(UserError, match="third chunk"):
        index_corpus(corpus(5 * CHUNK), name="test", encoder=encoder, home=home)
    assert len(stored(home, StandIn())) == 2 * CHUNK
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_store_that_fails_ends_the_run(corpus, home, monkeypatch):
    encoder, put = StandIn(), Contents.put

    def failing(self, chunk, vectors_PE):
        if self.documents == CHUNK:
            raise UserError("the disk is full")
        return put(self, chunk, vectors_PE)

    monkeypatch.setattr(Contents, "put", failing)
    with pytest.raises(UserError, match="disk is full"):
        index_corpus(corpus(20 * CHUNK), name="test", encoder=encoder, home=home)
    assert len(encoder.encoded) <= 4 * CHUNK
    (info,) = list_indexes(home)
    assert (info.status, info.documents) == ("indexing", CHUNK)


def test_ctrl_c_ends_a_wait_for_input_and_gives_up_the_chunk_under_way(corpus, home):
    """The first chunk was encoded and is stored; the second is given up before its end."""
    encoder = Watched()
    encode = encoder.encode_passages
    began = threading.Event()

    def in_batches(texts, *, ids, progress):
        if not encoder.calls:
            return encode(texts, ids=ids, progress=progress)
        began.set()
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            time.sleep(0.01)
            progress(0)
        raise AssertionError("nobody asked it to stop")

    encoder.encode_passages = in_batches
    source = Corpus(corpus(2 * CHUNK))
    documents = source._documents

    def interrupted():
        yield from documents
        assert began.wait(DEADLINE), "the second chunk was not begun"
        raise KeyboardInterrupt

    source._documents = interrupted()
    with pytest.raises(KeyboardInterrupt):
        index_corpus(source, name="test", encoder=encoder, home=home)
    assert len(stored(home, StandIn())) == CHUNK


def test_stage_raises_once_what_its_function_raised():
    def fail(item: int) -> None:
        raise ValueError(item)

    with Stage(fail) as stage:
        stage.give(1)
        with pytest.raises(ValueError, match="1"):
            stage.wait()
        stage.wait()
    with pytest.raises(ValueError, match="2"), Stage(fail) as stage:
        stage.give(2)


def test_stage_works_elsewhere_and_in_order():
    seen: list[tuple[int, int]] = []
    with Stage(lambda item: seen.append((item, threading.get_ident()))) as stage:
        for item in range(100):
            stage.give(item)
    assert [item for item, _ in seen] == list(range(100))
    assert {thread for _, thread in seen} != {threading.get_ident()}
    assert len({thread for _, thread in seen}) == 1
