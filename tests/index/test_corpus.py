"""Reading documents: what is accepted, and every kind of line that is not."""

import gzip
import json
from pathlib import Path

import pytest

from epic_search.errors import UserError
from epic_search.index.corpus import Corpus
from epic_search.index.document import PROBLEMS_KEPT
from epic_search.index.sources import stream

GOOD = {"_id": "a", "title": "T", "text": "some text", "lang": "en"}


def read(path: Path, **options: bool) -> tuple[list, Corpus]:
    corpus = Corpus(path, **options)
    documents = list(corpus)
    corpus.close()
    return documents, corpus


def test_fields_and_payload(write):
    documents, corpus = read(write(GOOD, {"id": 7, "text": "x", "nested": {"k": [1, None]}}))
    first, second = documents
    assert (first.id, first.title, first.text, first.payload, first.place) == (
        "a",
        "T",
        "some text",
        {"lang": "en"},
        "line 1",
    )
    assert (second.id, second.title, second.payload) == ("7", "", {"nested": {"k": [1, None]}})
    assert corpus.problems.total == 0


def test_byte_order_mark_crlf_and_blank_lines(write):
    line = json.dumps(GOOD).encode()
    documents, corpus = read(write(b"\xef\xbb\xbf" + line + b"\r", b"", b"  \r", b'{"id": "b", "text": "y"}\r'))
    assert [(d.id, d.place) for d in documents] == [("a", "line 1"), ("b", "line 4")]
    assert corpus.problems.total == 0


def test_last_line_without_newline(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(json.dumps(GOOD).encode())
    assert len(read(path)[0]) == 1


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"_id": "b", "text": ', "malformed JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"_id": "b"}', "missing text"),
        ('{"_id": "b", "text": " \\t "}', "empty text"),
        ('{"_id": "b", "text": 5}', "text is not a string"),
        ('{"_id": "b", "title": 5, "text": "x"}', "title is not a string"),
        ('{"text": "x"}', "missing id"),
        ('{"_id": "", "text": "x"}', "empty id"),
        ('{"_id": null, "text": "x"}', "missing id"),
        ('{"_id": 1.5, "text": "x"}', "id is not a string or an integer"),
        ('{"_id": true, "text": "x"}', "id is not a string or an integer"),
        (b'{"_id": "b", "text": "caf\xe9"}', "not UTF-8"),
        ('{"_id": "b", "text": "\\ud800"}', "lone surrogate"),
        ('{"_id": "b", "text": "x", "k": ["\\udfff"]}', "lone surrogate"),
        ('{"_id": "b\\u0000", "text": "x"}', "NUL character"),
        ('{"_id": "b", "text": "x\\u0000y"}', "NUL character"),
        ('{"_id": "b", "text": "x", "n": NaN}', "number out of range"),
        ('{"_id": "b", "text": "x", "n": 1e999}', "number out of range"),
        ('{"_id": "b", "text": "x", "n": ' + "9" * 5000 + "}", "number out of range"),
        ('{"_id": "b", "text": "x", "n": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"_id": "b", "text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"_id": "b", "text": "x", "n": "' + "y" * 2**20 + '"}', "payload too large"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 and "{" not in value else "",
)
def test_unusable_line_is_skipped_counted_and_named(write, line, kind):
    path = write(GOOD, line, {"_id": "c", "text": "z"})
    documents, corpus = read(path)
    assert [d.id for d in documents] == ["a", "c"]
    assert dict(corpus.problems.counts) == {kind: 1}
    assert corpus.problems.first[0].place == "line 2"
    with pytest.raises(UserError, match=f"line 2: {kind}"):
        read(path, strict=True)


def test_line_over_the_limit_is_not_read_whole(write, monkeypatch):
    monkeypatch.setattr(stream, "MAX_ROW_BYTES", 1000)
    documents, corpus = read(write({"_id": "long", "text": "x" * 5000}, GOOD))
    assert [d.id for d in documents] == ["a"]
    assert dict(corpus.problems.counts) == {"line too long": 1}


def test_only_the_first_problems_are_kept(write):
    _, corpus = read(write(GOOD, *["{"] * 100))
    assert corpus.problems.total == 100
    assert len(corpus.problems.first) == PROBLEMS_KEPT


def test_gzip_whatever_the_name(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() + b"\n"))
    assert len(read(path)[0]) == 1


def test_gzip_cut_off(tmp_path):
    lines = b"".join(json.dumps(GOOD | {"_id": n, "text": f"{n * 7919} text"}).encode() + b"\n" for n in range(5000))
    path = tmp_path / "c.jsonl.gz"
    whole = gzip.compress(lines)
    path.write_bytes(whole[: len(whole) // 2])
    seen = 0
    with pytest.raises(UserError, match="damaged or cut-off gzip"):
        for _ in Corpus(path):
            seen += 1
    assert seen > 1000


@pytest.mark.parametrize("name", ["absent.jsonl", "nul\0.jsonl"])
def test_file_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match="cannot read"):
        Corpus(tmp_path / name)


def test_digest_changes_with_every_part(write):
    variants = [
        GOOD,
        GOOD | {"title": "U"},
        GOOD | {"text": "other text"},
        GOOD | {"lang": "de"},
        {"lang": "en", "text": "some text", "title": "T", "_id": "a"},
    ]
    digests = [d.digest for d in read(write(*variants))[0]]
    assert len(set(digests)) == 4
    assert digests[0] == digests[4]  # the order of keys is no change
