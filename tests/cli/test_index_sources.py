"""Every kind of source from the command line: options, standard input, guesses on stderr, mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_search.cli.main import app
from tests.cli.conftest import DOCUMENTS, Run


def test_fields_and_format(run: Run, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    (tmp_path / "table").write_text("key,a,b,head\n1,left,right,H\n2,up,down,I\n")
    options = ["--id-field", "key", "--text-field", "b,a", "--title-field", "head", "--format", "csv"]
    result = run("index", "table", *options, "--encoder", tiny_encoder_folder)
    assert "2 documents" in result.stdout and result.stderr == ""
    hits = json.loads(run("query", "left", "--json").stdout)["hits"]
    assert {(hit["id"], hit["title"], hit["text"]) for hit in hits} == {
        ("1", "H", "right\nleft"),
        ("2", "I", "down\nup"),
    }
    repeated = ["--text-field", "b", "--text-field", "a", *options[:2], *options[4:]]
    assert "(2 unchanged)" in run("index", "table", *repeated).stdout
    said = run("index", "table", "--format", "csv", code=2).stderr
    assert "its first line names 'key', 'a', 'b', 'head'" in said and "--text-field" in said


def test_a_folder_and_a_table_in_one_index(run: Run, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Wings\n\nFlutter.\n")
    (tmp_path / "notes" / "b.txt").write_bytes(b"\0")
    (tmp_path / "more.csv").write_text("name,content\nT,Some text\n")
    result = run("index", "notes", "more.csv", "--name", "all", "--encoder", tiny_encoder_folder)
    assert "2 documents" in result.stdout
    assert result.stderr.splitlines() == [
        "more.csv: the id is a hash of the content (no --id-field), text from 'content', title from 'name'",
        "fields for filters, inferred from the first documents: path (keyword), modified (datetime); "
        "change one with --field NAME:TYPE",
        "skipped 1 rows or files: 1 binary file",
        "- notes/b.txt: binary file",
    ]
    (hit,) = (h for h in json.loads(run("query", "x", "--json").stdout)["hits"] if h["title"] == "Wings")
    assert (hit["id"], set(hit["payload"])) == ("notes/a.md", {"path", "modified"})


def test_standard_input(run: Run, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    for format, text in {"jsonl": lines, "json": json.dumps(DOCUMENTS), "csv": "_id,text\n1,a\n"}.items():
        arguments = ["index", "-", "--name", format, "--encoder", str(tiny_encoder_folder), "--format", format]
        result = CliRunner().invoke(app, arguments, input=text)
        assert result.exit_code == 0, result.output
        assert f"index '{format}': {1 if format == 'csv' else 3} documents" in result.stdout
    empty = CliRunner().invoke(app, ["index", "-", "--name", "none"], input="")
    assert empty.exit_code == 2 and "standard input holds no document (it is empty)" in empty.stderr


def test_closed_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m epic_search index - <&-"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot read '-': standard input is closed; pipe JSON lines into the command, or give a file\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent/"], "cannot read 'absent': No such file or directory"),
        (["*.parquet"], "no file matches '*.parquet'"),
        (["corpus.jsonl", "--format", "parquet"], "corpus.jsonl is no Parquet file"),
        (
            ["corpus.jsonl", "--text-field", "body"],
            "has no field 'body'; its fields are '_id', 'title', 'text', 'module'",
        ),
        (["hf:"], "names no data set"),
    ],
)
def test_mistakes(run: Run, corpus: Path, arguments: list[str], said: str) -> None:
    result = run("index", *arguments, code=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr
