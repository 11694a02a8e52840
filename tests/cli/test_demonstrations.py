"""The file of demonstrations: read whole, or refused with the line that is wrong."""

from pathlib import Path

import pytest

from epic_search.cli.demonstrations import read_demonstrations
from epic_search.encoder import Demonstration
from epic_search.errors import UserError

GOOD = '{"query": "q1", "passage": "p1"}'


def test_order_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "demos.jsonl"
    path.write_text(f'\ufeff{GOOD}\r\n\n{{"passage": "p2\u2028x", "query": "q2"}}\n', encoding="utf-8")
    assert read_demonstrations(path) == [
        Demonstration(query="q1", passage="p1"),
        Demonstration(query="q2", passage="p2\u2028x"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no demonstration"),
        (b"\n\n", "holds no demonstration"),
        (b"\xff\xfe", "are not UTF-8 (byte 0)"),
        (f"{GOOD}\nnot json".encode(), "line 2: this is not JSON"),
        (
            b'["query", "passage"]',
            "line 1: this is a JSON list; write",
        ),
        (b'{"query": "q"}', "got the fields query;"),
        (b'{"query": "q", "passage": "p", "shot": 1}', "got the fields passage, query, shot;"),
        (b'{"query": "q", "passage": 7}', "passage must be a text that is not empty, got 7"),
        (b'{"query": " ", "passage": "p"}', "query must be a text that is not empty, got ' '"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "demos.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_demonstrations(path)
    assert said in str(caught.value)
    assert "demos.jsonl" in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_demonstrations(tmp_path / "absent.jsonl")
