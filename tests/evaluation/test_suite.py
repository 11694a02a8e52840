"""Suites and references: what a user writes becomes a list of tasks, or one sentence that says what is wrong."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from epic_search.errors import UserError
from epic_search.evaluation.instructions import FILE as INSTRUCTIONS
from epic_search.evaluation.kinds import KINDS
from epic_search.evaluation.suite import SUITES, find_tasks, load_suite, packaged_suites
from epic_search.evaluation.tasks import PairFile

SUITE = 'name = "mine"\ndescription = "for a test"\n'


@pytest.fixture
def sts(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 5} for i in range(20)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def suite(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(SUITE + text, encoding="utf-8")
        return path

    return write


def test_a_folder(sts):
    (task,) = find_tasks([str(sts)])
    assert (task.name, task.kind, task.pairs) == ("pairs", "sts", None)
    assert task.instruction == "Given a sentence, retrieve a sentence with the same meaning"


def test_a_suite_file(sts, suite, tmp_path, monkeypatch):
    (tmp_path / "demonstrations.jsonl").write_text("{}\n", encoding="utf-8")
    monkeypatch.setenv("EPIC_SEARCH_DATA", str(tmp_path))
    path = suite(
        '[[tasks]]\nfolder = "${EPIC_SEARCH_DATA}/pairs"\nname = "short"\ninstruction = "Find the like"\nlimit = 7\n'
        '[[tasks]]\nfolder = "${EPIC_SEARCH_DATA}/pairs"\ninstruction = ""\n'
        'pairs = "${EPIC_SEARCH_DATA}/demonstrations.jsonl"\n'
    )
    short, whole = find_tasks([str(path)])
    assert (short.name, short.instruction, short.pairs) == ("short", "Find the like", None)
    assert (whole.name, whole.instruction, whole.pairs) == ("pairs", None, PairFile(tmp_path / "demonstrations.jsonl"))
    tasks = short.make(), whole.make()
    for task in tasks:
        task.load_data()
    assert [len(task.dataset["test"]) for task in tasks] == [7, 20]
    assert tasks[0].metadata.revision != tasks[1].metadata.revision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wrong at tasks: Field required"),
        ("tasks = []", "wrong at tasks: List should have at least 1 item"),
        ('[[tasks]]\nfolder = "x"\nlimits = 3', "wrong at tasks.0.limits: Extra inputs are not permitted"),
        ("[[tasks]]\nlimit = 3", "wrong at tasks.0: give exactly one of folder"),
        ('[[tasks]]\nfolder = "x"\nmteb = "SciFact"', "wrong at tasks.0: give exactly one of folder"),
        ('[[tasks]]\nmteb = "SciFact"\nlimit = 3', "limit can only be set for a folder"),
        ('[[tasks]]\nfolder = "x"\nkind = "search"', "wrong at tasks.0.kind: Input should be 'retrieval', 'reranking'"),
        ('[[tasks]]\nfolder = "x"\nname = "a/b"', "wrong at tasks.0.name"),
        ("[[tasks]", "is not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_suite_is_named(suite, text, message):
    with pytest.raises(UserError) as error:
        load_suite(suite(text))
    assert message in str(error.value)


def test_missing_data_of_a_suite_say_how_to_set_them(suite, monkeypatch):
    monkeypatch.setenv("EPIC_SEARCH_DATA", "/nowhere")
    path = suite('[[tasks]]\nfolder = "${EPIC_SEARCH_DATA}/eval/scifact"')
    with pytest.raises(UserError, match=r"task 1: .*/nowhere/eval/scifact; set EPIC_SEARCH_DATA"):
        find_tasks([str(path)])


def test_a_mistake_in_the_data_is_told_with_suite_and_task(sts, suite):
    (sts / "test.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": "?"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.toml, task 1: .*test.jsonl, line 1: 'score' must be a number"):
        find_tasks([str(suite(f'[[tasks]]\nfolder = "{sts}"'))])


def test_two_tasks_of_one_name(sts):
    with pytest.raises(UserError, match="two tasks are called 'pairs'"):
        find_tasks([str(sts), str(sts)])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no/such/folder", "the folder no/such/folder does not exist"),
        ("absent.toml", "the suite absent.toml does not exist"),
        (__file__, "is a file; give a suite"),
    ],
)
def test_a_path_that_leads_to_nothing(reference, message):
    with pytest.raises(UserError, match=message):
        find_tasks([reference])


def test_mteb_names():
    pytest.importorskip("mteb")
    left_out = []
    tasks = find_tasks(["MTEB(eng, v2)"], say=left_out.append)
    by_name = {task.name: task for task in tasks}
    assert by_name["STSBenchmark"].kind == "sts"
    assert by_name["ArguAna"].instruction == "Given a claim, find documents that refute the claim"
    assert {task.kind for task in tasks} == set(KINDS)
    assert left_out == ["MTEB(eng, v2): left out SummEvalSummarization.v2, a task of type Summarization"]
    one, other = by_name["STSBenchmark"].make(), by_name["STSBenchmark"].make()
    assert one is not other
    assert by_name["MassiveIntentClassification"].make().hf_subsets == ["en"]


def test_a_multilingual_task_of_mteb_is_its_english_part_and_an_aggregate_its_parts():
    pytest.importorskip("mteb")
    (task,) = find_tasks(["STS17"])
    assert task.make().hf_subsets == ["en-en"]
    assert len(find_tasks(["CQADupstackRetrieval"])) == 12


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("Scifact", r"'Scifact' is no folder, .*nearest: SciFact.*for data of your own give the path of their folder"),
        ("quik", r"nearest: quick"),
        ("MTEB(eng v2)", r"nearest: MTEB\(eng, v2\)"),
        (
            "SummEval",
            r"SummEval is a task of type Summarization \(text\); text tasks of the types Retrieval, Reranking",
        ),
        ("MIEB(Img)", r"the benchmark MIEB\(Img\) has no text task of the types Retrieval, "),
    ],
)
def test_names_that_cannot_be_evaluated(reference, message):
    pytest.importorskip("mteb")
    with pytest.raises(UserError, match=message):
        find_tasks([reference])


def test_unknown_mteb_task_in_a_suite(suite):
    pytest.importorskip("mteb")
    with pytest.raises(UserError, match=r"task 1: there is no task 'STSBenchmrk' in MTEB \(nearest: STSBenchmark"):
        find_tasks([str(suite('[[tasks]]\nmteb = "STSBenchmrk"'))])


def test_the_packaged_suites_name_known_sets_and_no_name_twice():
    assert packaged_suites() == ["classes", "full", "quick"]
    sentences = tomllib.loads(INSTRUCTIONS.read_text(encoding="utf-8"))["tasks"]
    names = {}
    for name in packaged_suites():
        suite = load_suite(SUITES / f"{name}.toml")
        assert suite.name == name
        names[name] = [Path(task.folder).name for task in suite.tasks]
        assert len(set(names[name])) == len(names[name])
        assert set(names[name]) <= sentences.keys()
    assert set(names["quick"]) < set(names["full"]) and set(names["classes"]) < set(names["full"])


# What the page that comes with the data says about the sets: test rows (queries), training rows, documents.
COUNTS = {
    "ag_news": (6000, 1600, 0),
    "banking77": (3080, 10003, 0),
    "biomedical_titles": (19600, 400, 0),
    "cacm": (52, 0, 3204),
    "cosqa": (500, 0, 6267),
    "cranfield": (225, 0, 1400),
    "mrpc": (1725, 0, 0),
    "npl": (93, 0, 11426),
    "parade": (1357, 0, 0),
    "quora_dup": (3331, 0, 29993),
    "scifact": (300, 0, 5183),
    "search_snippets": (11940, 400, 0),
    "sst2": (1821, 6920, 0),
    "stackoverflow_titles": (19600, 400, 0),
    "sts12": (2358, 0, 0),
    "sts13": (1500, 0, 0),
    "sts14": (3750, 0, 0),
    "sts15": (3000, 0, 0),
    "sts16": (1186, 0, 0),
    "stsb": (1379, 5749, 0),
    "trec_question": (499, 5444, 0),
    "trecqa": (68, 0, 1442),
    "tweet_emotion": (1421, 3257, 0),
    "twenty_newsgroups": (7729, 400, 0),
    "wikiqa": (237, 0, 2341),
}


def test_the_full_suite_is_every_shared_set(shared_data, monkeypatch):
    pytest.importorskip("mteb")
    monkeypatch.setenv("EPIC_SEARCH_DATA", str(shared_data.resolve()))
    tasks = find_tasks(["full"])
    assert {task.name for task in tasks} == {entry.name for entry in os.scandir(shared_data / "eval") if entry.is_dir()}
    found = {}
    for task in tasks:
        made = task.make()
        made.load_data()
        splits = made.dataset.get("default", made.dataset)
        rows = {
            split: data["queries"] if task.kind in ("retrieval", "reranking") else data
            for split, data in splits.items()
        }
        documents = len(splits["test"]["corpus"]) if task.kind in ("retrieval", "reranking") else 0
        found[task.name] = (len(rows["test"]), len(rows.get("train", ())), documents)
        assert task.pairs is not None or "train" in splits, task.name
    assert found == COUNTS


def test_the_quick_suite_has_each_kind_once(shared_data, monkeypatch):
    monkeypatch.setenv("EPIC_SEARCH_DATA", str(shared_data.resolve()))
    assert sorted(task.kind for task in find_tasks(["quick"])) == sorted(KINDS)
