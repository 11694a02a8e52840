"""What an index holds comes out as a corpus that makes the same index again."""

import io
import json

import numpy as np
import pytest
from index_helpers import document
from stand_in import StandIn

from epic_search.errors import UserError
from epic_search.index import index_corpus
from epic_search.index.export import export_index


def exported(home, name="test", **options):
    out = io.StringIO()
    report = export_index(name, out, home=home, **options)
    return [json.loads(line) for line in out.getvalue().split("\n")[:-1]], report


def test_a_corpus_comes_back_as_it_was(write, encoder, home):
    lines = [document(n) for n in range(300)]
    lines += [
        {"_id": "é\u2028", "text": "  only text  ", "x": [1.5, None, {"id": "y"}]},
        {"_id": "z1", "title": "only a title", "text": ""},
        {"_id": "z2", "text": " ".join(f"word{n}" for n in range(5000)), "id": "another"},
    ]
    index_corpus(write(*lines), name="test", encoder=encoder, home=home)
    found, report = exported(home)
    wanted = sorted(({"title": ""} | line for line in lines), key=lambda line: line["_id"])
    assert found == wanted
    assert (report.documents, report.joined) == (303, 1) and report.passages > 350
    again = index_corpus(write(*found, name="again.jsonl"), name="test", encoder=encoder, home=home)
    assert (again.unchanged, again.encoded) == (303, 0)


@pytest.mark.parametrize("text", ["na " * 400, "a b " * 300 + "c", " \n ".join(f"line {n} of it" for n in range(300))])
def test_texts_that_repeat_themselves(text, write, home):
    """How far their passages overlap cannot be told; repetitions may be lost, words are not."""
    encoder = StandIn(max_length=40)
    index_corpus(write({"_id": "1", "text": text}), name="test", encoder=encoder, home=home)
    ((record,), report) = exported(home)
    assert report.joined == 1
    assert set(record["text"].split()) == set(text.split())
    assert len(text) / 2 < len(record["text"]) <= len(text)


def test_vectors_are_beside_the_lines(write, corpus, encoder, home, tmp_path):
    index_corpus(corpus(700), name="test", encoder=encoder, home=home)
    found, _ = exported(home, vectors=tmp_path / "v.npy")
    vectors_PE = np.load(tmp_path / "v.npy")
    assert vectors_PE.dtype == np.float32 and vectors_PE.shape == (700, encoder.dim)
    texts = [f"{record['title']}\n{record['text']}" for record in found]
    np.testing.assert_array_equal(vectors_PE, encoder.encode_passages(texts))


def test_mistakes(corpus, encoder, home, tmp_path):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match="no index 'other'"):
        exported(home, name="other")
    with pytest.raises(UserError, match=r"must end in \.npy"):
        exported(home, vectors=tmp_path / "v.bin")
    with pytest.raises(UserError, match="cannot write"):
        exported(home, vectors=tmp_path / "no" / "v.npy")
