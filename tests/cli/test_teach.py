"""Teaching from the command line: add, list, rm, clear, suggest, mode, and what a query makes of it."""

import json
from pathlib import Path

import pytest

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from tests.cli.conftest import Run

QUERY = "the square of the hypotenuse"


@pytest.fixture
def indexed(run: Run, corpus: Path, tiny_encoder_folder: Path) -> Run:
    run("index", corpus, "--encoder", tiny_encoder_folder)
    return run


def ranking(run: Run, *options: object, query: str = QUERY) -> list[str]:
    return [hit["id"] for hit in json.loads(run("query", query, "--json", *options).stdout)["hits"]]


def taught(run: Run) -> list[tuple[str, str | None]]:
    return [(pair["query"], pair["document"]) for pair in json.loads(run("teach", "list", "--json").stdout)]


def test_the_next_query_uses_it_and_says_so(indexed: Run) -> None:
    before = ranking(indexed)
    last = before[-1]
    said = indexed("teach", QUERY, last)
    assert said.stdout.startswith(f"{QUERY} -> {last} (") and "pairs taught to index 'corpus': 1" in said.stderr
    assert ranking(indexed)[0] == last
    assert ranking(indexed, "--demos", "none") == before == ranking(indexed, "--boost", 0)
    assert ranking(indexed, "--demos", "none", "--boost", 2)[0] == last
    explained = json.loads(indexed("query", QUERY, "--explain", "--json").stdout)["taught"]
    (use,) = explained["pairs"]
    assert (use["query"], use["document"], use["shown"], use["weight"]) == (QUERY, last, False, 1.0)
    assert use["similarity"] == pytest.approx(1.0, abs=1e-3)
    assert explained["ranks"][last] == {"now": 1, "without": 3}
    told = indexed("query", QUERY, "--explain", "--demos", "nearest").stderr
    assert "demonstrations in the prompt: 1 nearest of those taught" in told
    assert f"- '{QUERY}' -> {last}: similarity 1.00, moved by 1.00" in told
    assert f"{last}: rank 1, without all this 3" in told


def test_nearest_demonstrations_change_the_scores(indexed: Run, tmp_path: Path) -> None:
    indexed("teach", QUERY, "1")

    def scores(*options: object) -> list[float]:
        return [
            hit["score"]
            for hit in json.loads(indexed("query", "x y", "--mode", "dense", "--json", *options).stdout)["hits"]
        ]

    nearest = scores("--demos", "nearest", "--boost", 0)
    assert nearest != scores("--demos", "none")
    (tmp_path / "demos.jsonl").write_text(
        json.dumps({"query": QUERY, "passage": "csv.DictReader\nRead rows as dictionaries with named columns."})
    )
    assert nearest == pytest.approx(scores("--demos", "demos.jsonl", "--boost", 0), abs=2e-3)
    indexed("teach", "mode", "nearest", "--boost", 0)
    assert scores() == nearest


def test_a_file_that_list_writes(indexed: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a", "id": "1"}\n\n{"query": "b", "passage": "own words"}\n{"query": "a", "id": "1"}\n')
    assert json.loads(indexed("teach", "--file", file, "--json").stdout)["known"] == 0
    assert sorted(taught(indexed), key=str) == [("a", "1"), ("b", None)]
    again = json.loads(indexed("teach", "--file", file, "--json").stdout)
    assert (again["taught"], again["known"], again["total"]) == ([], 2, 2)
    lines = indexed("teach", "list", "--jsonl").stdout
    assert sorted(map(json.loads, lines.splitlines()), key=str) == [
        {"query": "a", "id": "1"},
        {"query": "b", "passage": "own words"},
    ]
    indexed("teach", "clear", "--yes")
    assert taught(indexed) == []
    file.write_text(lines)
    indexed("teach", "--file", file)
    assert len(taught(indexed)) == 2


def test_rm(indexed: Run) -> None:
    indexed("teach", "a", "1", "2")
    indexed("teach", "add", "list", "3")  # a query that is called like a verb needs `add`
    assert "removed a -> 2" in indexed("teach", "rm", "a", "2").stderr
    assert sorted(taught(indexed)) == [("a", "1"), ("list", "3")]
    indexed("teach", "rm", "list")
    assert taught(indexed) == [("a", "1")]


def test_suggest(indexed: Run, tmp_path: Path) -> None:
    rows = json.loads(indexed("teach", "suggest", "--json").stdout)
    assert {row["query"] for row in rows} == {"csv.DictReader", "os.remove", "Return the square root of a number."}
    (tmp_path / "queries.txt").write_text('how\n{"query": "why"}\n{"_id": "7", "text": "when"}\n')
    rows = json.loads(indexed("teach", "suggest", "--queries", "queries.txt", "-n", 2, "--json").stdout)
    assert len(rows) == 2 and {row["query"] for row in rows} < {"how", "why", "when"}
    assert rows[0]["margin"] <= rows[1]["margin"] and rows[0]["similarity"] is None
    plain = indexed("teach", "suggest", "--queries", "queries.txt").stdout.splitlines()
    assert [len(line.split("\t")) for line in plain] == [5, 5, 5]


def test_mode(indexed: Run) -> None:
    assert indexed("teach", "mode").stdout == "demos\tfixed\ndemos-k\t4\nboost\t1\n"
    indexed("teach", "mode", "nearest", "--demos-k", 2)
    assert json.loads(indexed("teach", "mode", "--json").stdout) == {"demos": "nearest", "demos_k": 2, "boost": 1.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["teach", "q"], "which document is right for 'q'? give its id"),
        (["teach", "q", "33"], "index 'corpus' has no document '33'; written like it are '3'"),
        (["teach", " ", "1"], "the query is empty"),
        (["teach", "q" * 65, "1"], "takes more than the 64 tokens that tiny reads"),
        (["teach", "q", "1", "--file", "pairs.jsonl"], "two ways to say what to teach"),
        (["teach", "--file", "absent.jsonl"], "cannot read the pairs absent.jsonl"),
        (["teach", "--file", "bad.jsonl"], "bad.jsonl, line 2: a pair has query and id, or query and passage, got"),
        (["teach", "rm", "q"], "nothing is taught for the query 'q'"),
        (["teach", "clear"], "needs a yes and stdin is no terminal; add --yes"),
        (["teach", "suggest", "--queries", "empty.txt"], "holds no query"),
        (["query", "q", "--demos", "nearset"], "--demos 'nearset' is neither one of fixed, nearest, none nor a file"),
        (["query", "q", "--demos", "nearest", "--no-demos"], "contradict each other"),
        (["query", "q", "--boost", "inf"], "the boost is inf"),
    ],
)
def test_mistakes(indexed: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "a", "id": "1"}\n{"query": "a"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    result = indexed(*arguments, code=2)
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert taught(indexed) == []


def test_an_index_of_fewer_dimensions(
    run: Run, corpus: Path, tiny_config: EncoderConfig, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Prompts need whole vectors, and the index has cut ones: the passage is encoded from its text."""
    config = tiny_config.model_copy(update={"matryoshka": [16]})
    Encoder.create(config, start=tiny_encoder_folder, device="cpu").save(tmp_path / "encoder")
    run("index", corpus, "--encoder", tmp_path / "encoder", "--dim", 16)
    last = ranking(run)[-1]
    run("teach", QUERY, last)
    assert ranking(run)[0] == last
    explained = run("query", QUERY, "--explain", "--demos", "nearest", "--json").stdout
    assert json.loads(explained)["taught"]["pairs"][0]["shown"]


def test_an_encoder_that_reads_texts(run: Run, corpus: Path, tiny_text_folder: Path) -> None:
    run("index", corpus, "--encoder", tiny_text_folder)
    run("teach", "q", "2")
    explained = json.loads(run("query", "q r", "--explain", "--demos", "nearest", "--json").stdout)["taught"]
    assert [(use["document"], use["shown"]) for use in explained["pairs"]] == [("2", True)]
