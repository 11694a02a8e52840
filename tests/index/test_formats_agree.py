"""The same rows in every format make the same index."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_helpers import document, stored
from pyarrow import parquet as pq

from epic_search.index import index_corpus
from epic_search.index.corpus import Corpus

# What none of the formats takes as a part of a document: NUL and lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": TEXT.filter(str.strip),
            "title": TEXT,
            "text": TEXT.filter(str.strip),
            "year": st.integers(-(2**40), 2**40),
            "note": TEXT,
        }
    ),
    min_size=1,
    max_size=8,
)


def _jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _json(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")


def _csv(rows: list[dict[str, Any]], path: Path) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)


def _parquet(rows: list[dict[str, Any]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


WRITERS = {
    "rows.jsonl": _jsonl,
    "rows.json": _json,
    "rows.csv": _csv,
    "rows.tsv": _csv,
    "rows.csv.gz": _csv,
    "rows.parquet": _parquet,
}


def _contents(path: Path) -> list[tuple[str, str, str, dict[str, str]]]:
    """Every document, its payload as CSV would have it."""
    with Corpus(path) as corpus:
        found = [
            (d.id, d.title, d.text, {key: "" if value is None else str(value) for key, value in d.payload.items()})
            for d in corpus
        ]
    assert corpus.problems.total == 0, corpus.problems.first
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_any_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    expected = [(r["id"], r["title"].strip(), r["text"], {"year": str(r["year"]), "note": r["note"]}) for r in rows]
    for name, write in WRITERS.items():
        write(rows, tmp_path / name)
        assert _contents(tmp_path / name) == expected, name


@pytest.mark.parametrize("name", list(WRITERS)[1:])
def test_the_index_of_any_format_is_up_to_date_for_another(tmp_path, encoder, home, name):
    rows = [document(n) | {"year": str(2000 + n)} for n in range(20)]
    _jsonl(rows, tmp_path / "rows.jsonl")
    index_corpus(tmp_path / "rows.jsonl", name="test", encoder=encoder, home=home)
    before = stored(home, encoder)
    WRITERS[name](rows, tmp_path / name)
    report = index_corpus(tmp_path / name, name="test", encoder=encoder, home=home, prune=True)
    assert (report.unchanged, report.encoded, report.removed) == (20, 0, 0)
    assert stored(home, encoder) == before
