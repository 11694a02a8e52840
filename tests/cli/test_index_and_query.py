"""The main job from the command line: index a corpus, ask it, list it, delete it."""

import json
from pathlib import Path

import pytest

from epic_search.cli.index import default_name
from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from tests.cli.conftest import DOCUMENTS, Run

DEMONSTRATION = {"query": "q", "passage": "p"}
TASK = "Given a wish, retrieve the function that fulfils it"


@pytest.fixture
def indexed(run: Run, corpus: Path, tiny_encoder_folder: Path) -> Run:
    run("index", corpus, "--encoder", tiny_encoder_folder)
    return run


def scores(run: Run, *options: object) -> dict[str, float]:
    """Cosines by document."""
    hits = json.loads(run("query", "how do I read a csv file", "--mode", "dense", "--json", *options).stdout)["hits"]
    return {hit["id"]: hit["score"] for hit in hits}


def test_index_says_what_it_did(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    first = run("index", corpus, "--encoder", tiny_encoder_folder)
    assert first.stdout.startswith("index 'corpus': 3 documents in 3 passages (3 new) after ")
    assert first.stderr == (
        "fields for filters, inferred from the first documents: module (keyword); change one with --field NAME:TYPE\n"
    )
    again = json.loads(run("index", corpus, "--json").stdout)
    assert (again["unchanged"], again["added"], again["encoded"], again["documents"]) == (3, 0, 0, 3)


def test_changes_and_prune(indexed: Run, corpus: Path) -> None:
    changed = DOCUMENTS[0] | {"text": "Something else."}
    corpus.write_text(json.dumps(changed) + "\n")
    assert "(1 changed)" in indexed("index", corpus).stdout
    assert "1 documents in 1 passages (1 unchanged, 2 removed)" in indexed("index", corpus, "--prune").stdout


def test_lines_that_cannot_be_used(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    with corpus.open("ab") as file:
        file.write(b'not json\n{"_id": "9"}\n{"_id": "1", "text": "again"}\n')
        file.write(b'{"_id": "\\u001b[2J", "text": ""}\n\xff\xfe\n')
    result = run("index", corpus, "--encoder", tiny_encoder_folder)
    assert "3 documents" in result.stdout
    assert "skipped 5 rows or files: " in result.stderr
    for line in (4, 5, 6, 7, 8):
        assert f"- line {line}: " in result.stderr
    assert "most rows or files were skipped (5 of 8), and no search finds what they hold; correct" in result.stderr
    assert "\x1b" not in result.stderr
    strict = run("index", corpus, "--name", "strict", "--encoder", tiny_encoder_folder, "--strict", code=2)
    assert "line 4: malformed JSON" in strict.stderr


def test_a_corpus_of_which_no_row_can_be_used_is_a_mistake(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    wrong = ["index", corpus, "--encoder", tiny_encoder_folder, "--field", "year:int"]
    corpus.write_text("".join(json.dumps(document | {"year": "last"}) + "\n" for document in DOCUMENTS))
    for more in ([], ["--json"]):
        result = run(*wrong, *more, code=2)
        said = " ".join(result.stderr.split())
        assert "none of the 3 rows or files could be used, the first is line 1: value does not fit its field" in said
    assert json.loads(result.stdout)["skipped"] == 3
    corpus.write_text("".join(json.dumps(document | {"year": 2020}) + "\n" for document in DOCUMENTS))
    assert "3 documents" in run(*wrong).stdout


def test_a_declared_field_that_no_document_has_is_said(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    rows = [document | {"year": 2020, "author": {"name": "Ann"}} for document in DOCUMENTS]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("index", corpus, "--encoder", tiny_encoder_folder)
    said = run(*given, "--field", "yeer:int", "--field", "year:int", "--field", "author.name:keyword").stderr
    assert "no document has 'yeer', which --field declares; correct the name" in " ".join(said.split())
    assert "no document has" not in run(*given, "--field", "year:int").stderr, "nothing is new, and the field is there"


def test_an_empty_answer_is_said_beside_the_output(indexed: Run) -> None:
    found = indexed("query", "csv", "--mode", "lexical", "--min-score", 1000)
    assert (found.stdout, found.stderr.splitlines()[-1]) == ("", "nothing found")
    wrong = indexed("query", "csv", "--min-score", "nan", code=2)
    assert "the least score is nan; it must be a number" in wrong.stderr and not wrong.stdout


def test_query_json(indexed: Run) -> None:
    answer = json.loads(indexed("query", "read a csv file", "--json").stdout)
    assert list(answer) == ["index", "query", "mode", "score", "offset", "hits"]
    assert (answer["index"], answer["query"], answer["mode"]) == ("corpus", "read a csv file", "hybrid")
    assert all(list(hit) == ["id", "score", "title", "text", "payload"] for hit in answer["hits"])
    by_id = {hit["id"]: hit for hit in answer["hits"]}
    assert by_id["3"] == {
        "id": "3",
        "score": by_id["3"]["score"],
        "title": "",
        "text": "Return the square root of a number.",
        "payload": {"tags": ["math", 1]},
    }
    found = [hit["score"] for hit in answer["hits"]]
    assert found == sorted(found, reverse=True) and len(found) == 3


def test_query_in_a_pipe_is_a_line_a_hit(indexed: Run) -> None:
    lines = indexed("query", "read a csv file", "-k", 2).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["1", "2"]
    assert all(len(line.split("\t")) == 5 for line in lines)


def test_hostile_text_cannot_steer_the_terminal(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    hostile = {
        "_id": "\x1b[31mid",
        "title": "[red]\x9b2Jt\title",
        "text": "\x1b]0;owned\x07 [link=x]text[/link]\nrow \u202e",
    }
    corpus.write_text(json.dumps(hostile))
    run("index", corpus, "--encoder", tiny_encoder_folder)
    plain = run("query", "text").stdout
    assert plain.count("\n") == 1 and plain.count("\t") == 4
    assert "[red]" in plain and "[link=x]text[/link]" in plain
    as_json = run("query", "text", "--json").stdout
    for printed in (plain, as_json):
        assert not any(c in printed for c in "\x1b\x9b\x07\u202e")
    assert json.loads(as_json)["hits"][0]["text"] == hostile["text"]


def test_task_and_demonstrations_stay_with_the_index(indexed: Run, corpus: Path, tmp_path: Path) -> None:
    demos = tmp_path / "demos.jsonl"
    demos.write_text(json.dumps(DEMONSTRATION))
    plain = scores(indexed)
    prompted = scores(indexed, "--task", TASK, "--demos", demos)
    assert prompted != plain
    indexed("index", corpus, "--task", TASK, "--demos", demos)
    assert scores(indexed) == pytest.approx(prompted, abs=1e-5)
    assert scores(indexed, "--task", "", "--no-demos") == pytest.approx(plain, abs=1e-5)
    assert scores(indexed, "--no-demos") == pytest.approx(scores(indexed, "--task", TASK, "--no-demos"), abs=1e-5)
    (info,) = json.loads(indexed("indexes", "list", "--json").stdout)
    assert (info["task"], info["demonstrations"]) == (TASK, 1)
    indexed("index", corpus, "--task", "", "--no-demos")
    assert scores(indexed) == pytest.approx(plain, abs=1e-5)


def test_the_index_updated_last_answers(indexed: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    indexed("index", corpus, "--name", "other", "--encoder", tiny_encoder_folder)
    result = indexed("query", "x", "--json")
    assert "of 2 indexes the one updated last; choose with --index NAME" in result.stderr
    assert json.loads(result.stdout)["index"] in {"corpus", "other"}
    assert json.loads(indexed("query", "x", "--json", "-i", "corpus").stdout)["index"] == "corpus"


def test_an_index_of_a_failed_run_does_not_answer(indexed: Run, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"_id": "1", "text": "a text", "year": "soon"}\n')
    failed = indexed("index", wrong, "--field", "year:int", "--encoder", tiny_encoder_folder, code=2)
    assert "year" in failed.stderr
    assert json.loads(indexed("query", "x", "--json").stdout)["index"] == "corpus"


def test_indexes_list_and_delete(indexed: Run) -> None:
    (info,) = json.loads(indexed("indexes", "list", "--json").stdout)
    assert {"name", "documents", "passages", "encoder", "task", "demonstrations", "size"} <= set(info)
    assert (info["name"], info["documents"], info["passages"], info["task"]) == ("corpus", 3, 3, None)
    assert info["size"] > 0
    assert indexed("indexes", "list").stdout.startswith("corpus\t3\t3\t")
    assert "add --yes" in indexed("indexes", "delete", "corpus", code=2).stderr
    assert indexed("indexes", "delete", "corpus", "--yes").stderr == "deleted index 'corpus'\n"
    assert "no index 'corpus'" in indexed("indexes", "delete", "corpus", "--yes", code=2).stderr
    assert json.loads(indexed("indexes", "list", "--json").stdout) == []
    assert "no index in indexes yet" in indexed("indexes", "list").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "x"], "there is no index in indexes; make one with"),
        (["query", "x", "-i", "nope"], "no index 'nope'"),
        (["query", " "], "the query is empty"),
        (["index", "absent.jsonl"], "cannot read 'absent.jsonl'"),
        (["index", "."], ". holds no .txt, .md, .rst, .html or .pdf file, only 1 .jsonl"),
        (["index", "corpus.jsonl", "--name", "../up"], "cannot name an index"),
        (["index", "corpus.jsonl", "--encoder", "no/such/encoder"], "no/such/encoder"),
        (["index", "corpus.jsonl", "--demos", "absent.jsonl"], "cannot read the demonstrations absent.jsonl"),
        (["index", "corpus.jsonl", "--demos", "corpus.jsonl", "--no-demos"], "contradict each other"),
    ],
)
def test_mistakes(run: Run, corpus: Path, arguments: list[str], said: str) -> None:
    result = run(*arguments, code=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_an_empty_file(run: Run, corpus: Path, tiny_encoder_folder: Path) -> None:
    corpus.write_text("")
    assert "holds no document" in run("index", corpus, "--encoder", tiny_encoder_folder, code=2).stderr


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        (["corpus.jsonl"], "corpus"),
        (["my corpus (1).JSONL.gz"], "my-corpus-1"),
        (["v1.2.jsonl"], "v1.2"),
        (["...jsonl"], "corpus"),
        (["日本.jsonl"], "corpus"),
        (["data/news.parquet"], "news"),
        (["notes/"], "notes"),
        (["notes/**/*.md"], "notes"),
        (["-"], "corpus"),
        (["hf:BeIR/scifact:corpus@corpus"], "scifact"),
        (["hf:BeIR/scifact"], "scifact"),
        (["data/a.csv", "data/b.csv"], "data"),
    ],
)
def test_default_name(sources: list[str], name: str) -> None:
    assert default_name(sources) == name


def test_sources_from_several_places_need_a_name(run: Run) -> None:
    for sources in (["a/x.csv", "b/y.csv"], ["-", "x.csv"], ["hf:a/b", "x.csv"]):
        assert "name it with --name" in run("index", *sources, code=2).stderr


def test_an_encoder_that_reads_texts(run: Run, corpus: Path, tiny_text_folder: Path, tmp_path: Path) -> None:
    """Demonstrations are stored with the index and replaced for a query, as with soft tokens."""
    demos = tmp_path / "demos.jsonl"
    demos.write_text(json.dumps(DEMONSTRATION) + "\n")
    run("index", corpus, "--encoder", tiny_text_folder, "--demos", demos, "--task", TASK)
    stored, without = scores(run), scores(run, "--no-demos")
    assert stored != without
    assert scores(run, "--demos", demos) == stored
    demos.write_text(json.dumps({"query": "q", "passage": "p" * 65}) + "\n")
    said = run("query", "a question", "--demos", demos, code=2).stderr
    assert "the passage of demonstration 1 takes 65 tokens, and tiny-text reads 64" in " ".join(said.split())


def test_an_index_of_fewer_dimensions(
    run: Run, corpus: Path, tiny_config: EncoderConfig, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config.model_copy(update={"matryoshka": [16]})
    Encoder.create(config, start=tiny_encoder_folder, device="cpu").save(tmp_path / "encoder")
    run("index", corpus, "--encoder", tmp_path / "encoder", "--dim", 16)
    manifest = json.loads((tmp_path / "indexes" / "corpus" / "manifest.json").read_text())
    assert (manifest["dim"], manifest["cut_to"]) == (16, 16)
    assert json.loads(run("index", corpus, "--json").stdout)["unchanged"] == 3, "it goes on with the same encoder"
    texts = [f"{DOCUMENTS[0]['title']}\n{DOCUMENTS[0]['text']}"]
    small = Encoder.load(tmp_path / "encoder", dim=16)
    expected = small.encode_passages(texts) @ small.encode_queries(["how do I read a csv file"])[0]
    assert scores(run)["1"] == pytest.approx(expected[0], abs=0.02)
    assert "16 dimensions), and this is" in run("index", corpus, "--dim", 64, code=2).stderr
    assert "32 were asked for" in run("index", corpus, "--name", "other", "--dim", 32, code=2).stderr
