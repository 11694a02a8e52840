"""CSV, TSV, JSON arrays and Parquet: what becomes of rows, which fields are guessed, and what each mistake is told."""

import datetime
import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.corpus import Corpus
from epic_search.index.document import Document
from epic_search.index.sources import csv_table, json_array
from epic_search.index.sources.fields import Fields


def read(*paths: Path | str, **options: object) -> tuple[list[Document], Corpus, list[str]]:
    told: list[str] = []
    with Corpus(*paths, tell=told.append, **options) as corpus:
        return list(corpus), corpus, told


def kinds(corpus: Corpus) -> list[tuple[str, str]]:
    return [(problem.place, problem.kind) for problem in corpus.problems.first]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


def test_csv(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b'\xef\xbb\xbfid,title,text,year\r\n1,T,"a, ""b""\r\nc",2020\r\n\r\n007,,second,\r\n')
    documents, corpus, told = read(path)
    assert [(d.id, d.title, d.text, d.payload, d.place) for d in documents] == [
        ("1", "T", 'a, "b"\r\nc', {"year": "2020"}, "lines 2-3"),
        ("007", "", "second", {"year": None}, "line 5"),
    ]
    assert (told, corpus.bytes_read) == ([], path.stat().st_size)


def test_rows_that_cannot_be_used_leave_the_others_as_they_are(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(
        b'id,text\n1,a\n2,b,c\n3\n4,"x"y\n5,caf\xe9\n6,nul\0\n7,\n,no id\n8,good\n9,"never closed\n10,swallowed\n'
    )
    documents, corpus, _ = read(path)
    assert [d.id for d in documents] == ["1", "8"]
    assert kinds(corpus) == [
        ("line 3", "ragged row"),
        ("line 4", "ragged row"),
        ("line 5", "malformed CSV"),
        ("line 6", "not UTF-8"),
        ("line 7", "NUL character"),
        ("line 8", "empty text"),
        ("line 9", "missing id"),
        ("lines 11-12", "malformed CSV"),
    ]
    with pytest.raises(UserError, match=r"c\.csv, line 3: ragged row \(3 cells, and the first line names 2 columns\)"):
        read(path, strict=True)


def test_a_row_over_the_limit_ends_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_table, "MAX_ROW_BYTES", 100)
    path = tmp_path / "c.csv"
    path.write_text(f'id,text\n1,"open{"x" * 60}\n{"y" * 60}\n3,good\n')
    documents, corpus, _ = read(path)
    assert [d.id for d in documents] == ["3"]
    assert kinds(corpus) == [("lines 2-3", "row too long")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.tsv", "id\ttext\n1\ta, b; c\n"),
        ("c.csv", "id;text\n1;a, b; c\n".replace("; c\n", " c\n")),
        ("c.csv", "id|text\n1|a, b\n"),
    ],
)
def test_other_delimiters(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (document,), _, _ = read(tmp_path / name)
    assert document.text.startswith("a, b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,hello there\n2,more\n", "has no field called like a text (text, body, content, abstract, passage); "),
        ("1,hello there\n2,more\n", "its first line names '1', 'hello there'"),
        ("id,text,id\n1,a,b\n", "names two columns 'id'"),
        ('"id,text\n1,a\n', "the first line of"),
        ("\xff\xfe", "is UTF-16; save it as UTF-8"),
    ],
)
def test_header_that_names_no_columns(tmp_path, content, said):
    path = tmp_path / "c.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(said)):
        read(path)


def test_header_alone_and_nothing_at_all(tmp_path):
    for content in ("", "id,text\n", "\n\n"):
        (tmp_path / "c.csv").write_text(content)
        with Corpus(tmp_path / "c.csv") as corpus, pytest.raises(UserError, match="holds no document"):
            corpus.require_some()


def test_fields_are_guessed_and_the_guess_is_told(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("DocID,Headline,Body,url\n7,H,B,u\n")
    (document,), _, told = read(path)
    assert (document.id, document.title, document.text, document.payload) == ("7", "H", "B", {"url": "u"})
    assert told == [f"{path}: id from 'DocID', text from 'Body', title from 'Headline'"]


def test_fields_that_the_user_names(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("id,text,key,a,b,t\n7,X,k,A,B,T\n8,X,l,,B,T\n")
    documents, _, told = read(path, fields=Fields(id="key", text=("b", "a"), title="t"))
    assert [(d.id, d.title, d.text) for d in documents] == [("k", "T", "B\nA"), ("l", "T", "B")]
    assert (documents[0].payload, told) == ({"id": "7", "text": "X"}, [])


@pytest.mark.parametrize("fields", [Fields(id="x"), Fields(text=("id", "x")), Fields(title="x")])
def test_a_field_that_is_not_there(tmp_path, fields):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 1, "text": "a"}\n')
    option = "--id-field" if fields.id else "--title-field" if fields.title else "--text-field"
    with pytest.raises(UserError, match=f"has no field 'x'; its fields are 'id', 'text': correct {option}"):
        read(path, fields=fields)


def test_rows_without_an_id_are_known_by_their_content(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("text,year\na,1\nb,1\na,2\n")
    first, _, told = read(path)
    assert len({d.id for d in first}) == 3
    assert told == [f"{path}: the id is a hash of the content (no --id-field)"]
    path.write_text("text,year\nnew,1\na,1\nb,1\na,2\n")
    assert [d.id for d in read(path)[0]][1:] == [d.id for d in first]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_array(tmp_path, indent, monkeypatch):
    monkeypatch.setattr(json_array.ByteStream, "blocks", _small_blocks(json_array.ByteStream.blocks))
    rows = [{"id": n, "text": f'ä "quoted" \\ [{{ {n}', "nested": {"a": [1, [], {}]}} for n in range(20)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    documents, _, _ = read(path)
    assert [(d.text, d.payload) for d in documents] == [(r["text"], {"nested": r["nested"]}) for r in rows]
    assert documents[3].place == "item 4"


def _small_blocks(blocks):
    """Every item and string is cut by the end of a block somewhere."""

    def small(self):
        for block in blocks(self):
            yield from (block[at : at + 7] for at in range(0, len(block), 7))

    return small


def test_a_bad_item_does_not_end_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "MAX_ROW_BYTES", 100)
    path = tmp_path / "c.json"
    path.write_text(f'[{{"id": 1, "text": "a"}}, {{"id": }}, 5, {{"text": "{"x" * 200}"}}, {{"id": 2, "text": "b"}}]')
    documents, corpus, _ = read(path)
    assert [d.id for d in documents] == ["1", "2"]
    assert kinds(corpus) == [
        ("item 2", "malformed JSON"),
        ("item 3", "not a JSON object"),
        ("item 4", "item too long"),
    ]


def test_json_array_cut_off(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('[{"id": 1, "text": "a"}, {"id": 2, "te')
    seen = []
    with pytest.raises(UserError, match="cut off or damaged after item 1: its JSON array does not end"):
        seen += Corpus(path)
    path.write_text('{"id": 1, "text": "JSON lines may be called .json"}\n')
    assert [d.id for d in read(path)[0]] == ["1"]
    with pytest.raises(UserError, match="is no JSON array"):
        read(path, format="json")


def test_parquet_values_become_json(tmp_path):
    path = tmp_path / "c.parquet"
    table = pa.table(
        {
            "id": pa.array([2**40], pa.int64()),
            "text": ["a"],
            "when": [datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)],
            "day": [datetime.date(2020, 1, 2)],
            "price": [Decimal("1.50")],
            "score": [float("nan")],
            "half": pa.array([0.5], pa.float32()),
            "parts": [[{"n": 1, "inf": float("inf")}, None]],
            "counts": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "raw": pa.array([b"caf\xc3\xa9"]),
            "image": pa.array([b"\xff\xd8"]),
        }
    )
    pq.write_table(table, path)
    (document,), _, _ = read(path)
    assert (document.id, document.place) == (str(2**40), "row 1")
    assert document.payload == {
        "when": "2020-01-02T03:04:05+00:00",
        "day": "2020-01-02",
        "price": "1.50",
        "score": None,
        "half": 0.5,
        "parts": [{"n": 1, "inf": None}, None],
        "counts": {"k": 1},
        "raw": "café",
        "image": None,
    }


def test_parquet_rows_that_cannot_be_used(tmp_path):
    path = tmp_path / "c.parquet"
    times = pa.array([0, 2**62, 0, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"id": [1, 2, None, 4], "text": ["a", "b", "c", None], "at": times}), path)
    documents, corpus, _ = read(path)
    assert [d.id for d in documents] == ["1"]
    assert kinds(corpus) == [("row 2", "unreadable value"), ("row 3", "missing id"), ("row 4", "empty text")]


def test_a_huge_row_group_is_read_a_few_rows_at_a_time(tmp_path):
    rows, text = 300, "x" * 200_000
    path = tmp_path / "c.parquet"
    table = pa.table({"id": range(rows), "text": [f"{n}{text}" for n in range(rows)]})
    pq.write_table(table, path, use_dictionary=False, write_batch_size=4)
    del table
    assert pq.ParquetFile(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    with Corpus(path) as corpus:
        most = max(pa.total_allocated_bytes() - before for _ in corpus)
    assert most < rows * len(text) / 2


@pytest.mark.parametrize("part", [0, 3, 100, -1])
def test_parquet_cut_off_or_something_else(tmp_path, part):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": range(5000), "text": [str(n * 7919) for n in range(5000)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:part] if part != -1 else b"PK\x03\x04" + content)
    with pytest.raises(
        UserError, match=r"c\.parquet is no Parquet file, or a damaged or cut-off one, after row 0"
    ) as said:
        read(path)
    assert "\n" not in str(said.value)


def test_a_damaged_page_keeps_the_rows_before_it(tmp_path):
    path = tmp_path / "c.parquet"
    table = pa.table({"id": range(20_000), "text": [str(n * 7919) for n in range(20_000)]})
    pq.write_table(table, path, row_group_size=5000, compression="gzip")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    seen = []
    with pytest.raises(UserError, match="after row "):
        for document in Corpus(path):
            seen.append(document.id)
    assert len(seen) >= 5000


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_compressed_and_cut_off(tmp_path, compress):
    lines = b"id,text\n" + b"".join(b"%d,%d text\n" % (n, n * 7919) for n in range(20_000))
    path = tmp_path / "c.csv"  # the first bytes tell, not the name
    whole = compress(lines)
    path.write_bytes(whole)
    documents, corpus, _ = read(path)
    assert (len(documents), corpus.bytes_read) == (20_000, len(whole))
    path.write_bytes(whole[: len(whole) // 2])
    seen = []
    with pytest.raises(UserError, match=r"c\.csv is a damaged or cut-off (gzip|zstd) file after line \d+"):
        for document in Corpus(path):
            seen.append(document.id)
    assert len(seen) > 4_000
    path.write_bytes(whole[:5])
    with pytest.raises(UserError, match="damaged or cut-off"):
        read(path)


def test_content_tells_the_format_where_the_name_does_not(tmp_path):
    path = tmp_path / "data"
    for content in ('{"id": 1, "text": "a"}\n', '[{"id": 1, "text": "a"}]'):
        path.write_text(content)
        assert [d.id for d in read(path)[0]] == ["1"]
    path.write_text("id,text\n1,a\n")
    with pytest.raises(UserError, match=r"cannot tell the format .* give --format"):
        read(path)
    assert [d.id for d in read(path, format="csv")[0]] == ["1"]
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), path)
    assert [d.id for d in read(path)[0]] == ["1"]


def test_several_sources_make_one_corpus(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2\n")
    (tmp_path / "b.jsonl").write_text('{"_id": 2, "text": "b"}\n{"_id": 3}\n')
    documents, corpus, _ = read(tmp_path / "a.csv", tmp_path / "b.jsonl")
    assert [d.id for d in documents] == ["1", "2"]
    assert kinds(corpus) == [
        (f"{tmp_path}/a.csv, line 3", "ragged row"),
        (f"{tmp_path}/b.jsonl, line 2", "missing text"),
    ]
    size = sum((tmp_path / name).stat().st_size for name in ("a.csv", "b.jsonl"))
    assert (corpus.bytes_read, corpus.bytes_total) == (size, size)


def test_declared_fields_of_a_table_have_their_types(tmp_path, encoder, home):
    path = tmp_path / "c.csv"
    path.write_text("id,text,year,score,new,zip\n1,a,2001,1.5,True,01234\n2,b,,1e3,no value,5\n3,c,MMXX,1,false,5\n")
    fields = {"year": "int", "score": "float", "new": "bool", "zip": "keyword"}
    report = index_corpus(path, name="test", encoder=encoder, home=home, fields=fields)
    assert [str(problem) for problem in report.problems] == [
        "line 3: value does not fit its field (id '2', field 'new' is bool and has 'no value')",
        "line 4: value does not fit its field (id '3', field 'year' is int and has 'MMXX')",
    ]
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        ((hit,),) = searcher.search(["a"])
    assert hit.payload == {"year": 2001, "score": 1.5, "new": True, "zip": "01234"}
    again = index_corpus(path, name="test", encoder=encoder, home=home)
    assert (again.unchanged, again.encoded) == (1, 0), "the index knows its fields"


def test_a_type_that_most_documents_do_not_fit_changes_nothing(tmp_path, encoder, home):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"id": "{n}", "text": "t{n}", "year": {n}}}\n' for n in range(3)))
    index_corpus(path, name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match="field 'year' is int, and of the first 3 documents with it 3 do not fit bool"):
        index_corpus(path, name="test", encoder=encoder, home=home, fields={"year": "bool"})
    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert (report.unchanged, report.skipped) == (3, 0), "the index knows its fields as they were"
    assert index_corpus(path, name="test", encoder=encoder, home=home, fields={"year": "float"}).skipped == 0
