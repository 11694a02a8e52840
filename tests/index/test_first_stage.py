"""An index whose short vectors find candidates: in a folder, on a server, and moved between the two."""

import pytest
from stand_in import NoTies

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.place import manifest_of
from epic_search.index.promote import promote, pull
from epic_search.index.store.connection import Server
from epic_search.index.verify import verify_index

QUERIES = ["word3", "about word7", "word12", "w1234 nowhere"]


class Trained(NoTies):
    """An encoder that was trained for vectors of 8 and 16 of its 32 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.config.matryoshka = [8, 16]


def rankings(home, name="test"):
    with Searcher.open(name, home=home, encoder=Trained()) as searcher:
        # So many candidates that the first stage loses nothing.
        return [[(hit.id, hit.text) for hit in hits] for hits in searcher.search(QUERIES, k=20)]


def test_everywhere_the_same(stub, corpus, home):
    there, encoder = Server(stub.url), Trained()
    for name, width in [("plain", None), ("test", 16)]:
        report = index_corpus(corpus(120), name=name, encoder=encoder, home=home, first_stage=width)
        assert report.encoded == 120
    index_corpus(corpus(120), name="direct", encoder=encoder, home=there, first_stage=16)
    assert promote("test", home=home, server=there).passages == 120
    assert pull("test", home=home, server=there, target="back").passages == 120
    plain = rankings(home, "plain")
    for place, name in [(home, "test"), (there, "test"), (there, "direct"), (home, "back")]:
        assert rankings(place, name) == plain
        assert manifest_of(name, place).first_stage == 16
        assert verify_index(name, home=place, load=lambda _: encoder, encode=4).is_sound
    assert any(b'"using":"short"' in body for _, path, body in stub.bodies if path.endswith("/query/batch"))
    report = index_corpus(corpus(120, changed=frozenset({3})), name="test", encoder=encoder, home=home)
    assert (report.changed, report.unchanged) == (1, 119)


def test_mistakes(corpus, home):
    with pytest.raises(UserError, match="'no-ties' was trained for 8 or 16; give one of these"):
        index_corpus(corpus(3), name="test", encoder=Trained(), home=home, first_stage=12)
    with pytest.raises(UserError, match="'no-ties' was trained for none; leave it out"):
        index_corpus(corpus(3), name="test", encoder=NoTies(), home=home, first_stage=16)
    assert not home.exists()
    index_corpus(corpus(3), name="test", encoder=Trained(), home=home)
    with pytest.raises(UserError, match="made without --first-stage 16, which only a new index takes"):
        index_corpus(corpus(3), name="test", encoder=Trained(), home=home, first_stage=16)
