"""`epic-search eval` from the command line: a run, its report, a comparison, and the sentences for mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

from tests.cli.conftest import Run
from tests.cli.test_help import HEAVY, LISTING_MODULES

HEAVY_FOR_EVALUATION = HEAVY | {"mteb", "matplotlib", "scipy", "sentence_transformers", "numpy"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(numbers: range) -> list[dict[str, Any]]:
    """Pairs of sentences that are alike where the number is odd."""
    return [
        {"sentence1": f"water {i}", "sentence2": f"{'water' if i % 2 else 'money'} too {i}", "score": i % 2 * 5.0}
        for i in numbers
    ]


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    """A folder of 16 pairs of sentences, with 4 pairs to demonstrate."""
    write_rows(tmp_path / "alike" / "test.jsonl", sentences(range(16)))
    write_rows(tmp_path / "alike" / "train.jsonl", sentences(range(16, 24)))
    return tmp_path / "alike"


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A folder of 6 documents and as many queries."""
    folder = tmp_path / "found"
    write_rows(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": f"document number{i}"} for i in range(6)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"which is number{i}"} for i in range(6)])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(6)))
    return folder


@pytest.fixture
def tiny(tiny_encoder_folder: Path) -> str:
    return f"tiny={tiny_encoder_folder}"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- running


def test_a_run_writes_results_and_a_report(run: Run, sts: Path, search: Path, tiny: str) -> None:
    result = run("eval", sts, search, "--model", tiny, "--model", "bm25", "--demos", "0", "--device", "cpu")
    folder = Path("results/alike+found")
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "results",
        "run.json",
        "report.md",
        "report.html",
    }
    assert json.loads((folder / "run.json").read_text())["commands"][0].startswith(f"epic-search eval {sts}")
    assert "tiny on alike, no demonstrations: " in result.stderr
    assert "bm25 on found, no demonstrations: 100.00" in result.stderr
    assert f"results in {folder}: report.html, report.md" in result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[-1] for row in rows if "found" in row] == ["100.00 ±0.00"]
    assert [row[-1] for row in rows if "alike" in row] == ["-"], "bm25 only searches"


def test_json_and_a_second_run(run: Run, sts: Path, tiny: str) -> None:
    arguments = [
        "eval",
        sts,
        "-m",
        tiny,
        "--demos",
        "0,2",
        "--seeds",
        "0,1",
        "--demos-control",
        "random,shuffled",
        "-o",
        "out",
    ]
    first = run(*arguments, "--json")
    answer = json.loads(first.stdout)
    assert (answer["folder"], answer["failures"]) == ("out", [])
    assert len(answer["results"]) == 1 + 3 * 2
    assert [list(result) for result in answer["results"]] == [
        ["model", "task", "kind", "demos", "seed", "control", "demos_kind", "score"]
    ] * 7
    assert {(result["demos"], result["seed"], result["control"]) for result in answer["results"]} == {
        (0, None, None),
        *((2, seed, control) for seed in (0, 1) for control in (None, "shuffled", "random")),
    }
    second = run(*arguments, "--json")
    assert second.stderr.count("(already there)") == 7
    assert json.loads(second.stdout) == answer


def test_overwrite_and_all_controls(run: Run, sts: Path, tiny: str) -> None:
    run("eval", sts, "-m", tiny, "-o", "out")
    again = run("eval", sts, "-m", tiny, "-o", "out", "--demos", "0,2", "--demos-control", "all", "--overwrite").stderr
    assert again.count("tiny on alike, ") == 5 and "(already there)" not in again


def test_texts_instead_of_soft_tokens(run: Run, sts: Path, tiny: str, tmp_path: Path) -> None:
    arguments = ["eval", sts, "-m", tiny, "-o", "out", "--demos", "2", "--demos-kind", "text"]
    result = run(*arguments, "--demos-control", "all", "--json")
    assert "no random demonstrations for tiny: they are vectors, and these are texts" in result.stderr
    found = json.loads(result.stdout)["results"]
    assert [(row["control"], row["demos_kind"]) for row in found] == [
        (None, "text"),
        ("shuffled", "text"),
        ("wrong-task", "text"),
    ]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "tiny@2 (as text)" in report and "no random demonstrations for tiny" in report


def test_options_reach_the_encoder(run: Run, sts: Path, tiny: str) -> None:
    run("eval", sts, "-m", tiny, "-o", "out", "--max-length", 16, "--dtype", "float32", "--search", "exact")
    answer = json.loads(run("eval", "report", "out", "--json").stdout)
    assert [result["model"] for result in answer["results"]] == ["tiny (dtype float32, max_length 16, search exact)"]


def test_pairs_and_names(run: Run, sts: Path, tiny: str, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "mine.jsonl", [{"query": f"q{i}", "passage": f"p{i}"} for i in range(4)])
    run("eval", sts, "-m", tiny, "--demos", 2, "--pairs", pairs, "-o", "out", "--classes", "names")
    assert "mine.jsonl" in (tmp_path / "out" / "report.md").read_text()


# --- report and compare


def test_report_writes_again_what_was_there(run: Run, sts: Path, tiny: str, tmp_path: Path) -> None:
    shown = run("eval", sts, "-m", tiny, "-o", "out").stdout
    for name in ("report.md", "report.html"):
        (tmp_path / "out" / name).unlink()
    again = run("eval", "report", "out")
    assert again.stdout == shown
    assert again.stderr == "wrote out/report.html and out/report.md\n"
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert json.loads(run("eval", "report", "out", "--json").stdout)["failures"] == []


def test_compare(run: Run, sts: Path, tiny: str) -> None:
    run("eval", sts, "-m", tiny, "--demos", "0,2", "-o", "out")
    answer = json.loads(run("eval", "compare", "out:tiny", "out:tiny@2", "--json").stdout)
    [pair] = answer
    assert (pair["a"], pair["b"], pair["not_compared"]) == ("tiny", "tiny@2", [])
    line = pair["rows"][0]
    assert line["name"] == "alike"
    assert line["difference"] == pytest.approx(line["b"] - line["a"])
    low, high = line["interval"]
    assert low <= line["difference"] <= high
    assert run("eval", "compare", "out:tiny", "out:tiny@2").stdout.splitlines()[1].startswith("alike\t")


def test_mistakes_in_comparing(run: Run, sts: Path, tiny: str, tmp_path: Path) -> None:
    run("eval", sts, "-m", tiny, "-o", "out")
    assert "out has no results of 'epic'; it has tiny" in run("eval", "compare", "out:tiny", "out:epic", code=2).stderr
    assert "there is no folder absent" in run("eval", "compare", "out", "absent", code=2).stderr
    assert "both sides are the same results" in run("eval", "compare", "out", "out", code=2).stderr
    (tmp_path / "bare").mkdir()
    assert "bare holds no results" in run("eval", "report", "bare", code=2).stderr
    assert "there is no folder absent" in run("eval", "report", "absent", code=2).stderr


# --- mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--demos", "four"], "--demos 'four' is not a list of whole numbers; write them as 0,4"),
        (["--demos", "0,,4"], "--demos '0,,4' is not a list"),
        (["--demos=-1"], "--demos '-1': the numbers must be from 0 to 10,000"),
        (["--seeds", "x"], "--seeds 'x' is not a list"),
        (["--demos-kind", "text"], "--demos-kind text needs a number of demonstrations; add --demos 4"),
        (["--demos-control", "shuffled"], "--demos-control needs demonstrations; add --demos 4"),
        (
            ["--demos", "4", "--demos-control", "sorted"],
            "--demos-control 'sorted' is not one of shuffled, wrong-task, random, all",
        ),
        (["--model", "epic-maxi"], "epic-maxi"),
        (["--model", "st:no/such/folder"], "'no/such/folder' names no weights"),
        (["--model", "st:alike"], "holds no weights"),
        (["--model", "bm25"], "there is nothing to run: bm25 cannot do any of the 1 tasks"),
        (["--out", "alike/test.jsonl/out", "-m", "TINY"], "alike/test.jsonl/out"),
    ],
)
def test_mistakes_in_options(
    run: Run, sts: Path, tiny: str, options: list[str], said: str, no_network: None, tmp_path: Path
) -> None:
    options = [tiny if option == "TINY" else option for option in options]
    result = run("eval", "alike", *options, code=2)
    assert said in " ".join(result.stderr.split())
    assert result.stderr.startswith("error: ") and result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"alike"}, "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("Scifact", "'Scifact' is no folder, no suite, and no task or benchmark of MTEB (nearest: SciFact"),
        ("quik", "nearest: quick"),
        ("no/such/folder", "the folder no/such/folder does not exist"),
        ("absent.toml", "the suite absent.toml does not exist"),
        ("empty", "empty is not a folder of evaluation data"),
    ],
)
def test_unknown_tasks(run: Run, tiny: str, task: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert said in run("eval", task, "-m", tiny, code=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["alike", "--pairs", "absent.jsonl"],
        ["alike", "--search", "approximate"],
        ["alike", "--max-length", "2"],
        ["alike", "--classes", "none"],
        ["alike", "--demo", "4"],
        ["compare", "one"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, sts: Path, arguments: list[str]) -> None:
    run("eval", *arguments, code=2)


@pytest.mark.parametrize("package", ["mteb", "matplotlib"])
def test_without_the_packages_of_evaluation(
    run: Run, sts: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    said = run("eval", sts, "-m", tiny, code=2).stderr
    assert f"evaluation needs {package}; install it with: pip install 'epic-search[eval]'" in said


# --- failures


def test_more_demonstrations_than_pairs(run: Run, sts: Path, tiny: str) -> None:
    said = run("eval", sts, "-m", tiny, "--demos", 9, code=2).stderr
    assert "9 demonstrations were asked for, and the training split of alike holds 4 pairs" in said
    assert "1 failed:" in said
    beside = run("eval", sts, "-m", tiny, "--demos", "0,9", code=2)
    assert "1 failed:" in beside.stderr and beside.stdout, "the same mistake, whatever else could be done"


def test_one_failure_is_exit_code_1_and_the_rest_is_there(
    run: Run, sts: Path, search: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("the index is broken")

    monkeypatch.setattr("epic_search.evaluation.ours.Searcher.open", fail)
    result = run("eval", search, sts, "-m", tiny, "-o", "out", "--json", code=1)
    answer = json.loads(result.stdout)
    assert [result["task"] for result in answer["results"]] == ["alike"]
    assert [failure["error"] for failure in answer["failures"]] == ["RuntimeError: the index is broken"]
    assert "tiny on found, no demonstrations: RuntimeError: the index is broken" in result.stderr
    [stored] = json.loads(Path("out/run.json").read_text())["failures"]
    assert stored == answer["failures"][0] | {"mistake": False}
    assert "the index is broken" in Path("out/report.md").read_text()
    alone = run("eval", search, "-m", tiny, "-o", "alone", code=1)
    assert "1 failed" in alone.stderr


def test_json_of_nothing_but_failures(run: Run, sts: Path, tiny: str) -> None:
    """Who reads the answer by program has to learn what failed, above all when everything did."""
    answer = json.loads(run("eval", sts, "-m", tiny, "--demos", 9, "--json", code=2).stdout)
    assert (answer["results"], len(answer["failures"])) == ([], 1)


def test_a_task_of_the_hub_without_a_network(run: Run, tiny: str, no_network: None) -> None:
    said = run("eval", "STSBenchmark", "-m", tiny, code=2).stderr
    assert "could not be fetched from the Hugging Face hub" in said and "epic-search eval FOLDER" in said


def test_ctrl_c_keeps_what_is_finished(
    run: Run, sts: Path, search: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("epic_search.evaluation.ours.Searcher.open", interrupt)
        said = run("eval", sts, search, "-m", tiny, "-o", "out", code=130).stderr
    assert "interrupted: finished tasks are kept; run the same command again to continue." in said
    again = run("eval", sts, search, "-m", tiny, "-o", "out").stderr
    assert again.count("(already there)") == 1


def test_other_weights_under_the_same_name(run: Run, sts: Path, tiny_encoder_folder: Path) -> None:
    folder = shutil.copytree(tiny_encoder_folder, "mine")
    run("eval", sts, "-m", folder, "-o", "out")
    projectors = Path(folder) / "projectors.safetensors"
    content = bytearray(projectors.read_bytes())
    content[-1] ^= 1
    projectors.write_bytes(content)
    said = run("eval", sts, "-m", folder, "-o", "out", code=2).stderr
    assert "out holds results of 'tiny' " in said and "give this model a name of its own: --model NAME=MODEL" in said


# --- help


@pytest.mark.parametrize("arguments", [["eval", "--help"], ["eval", "compare", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([*LISTING_MODULES, *arguments], capture_output=True, text=True)
    assert not HEAVY_FOR_EVALUATION & set(json.loads(done.stderr.splitlines()[-1]))
    assert f"Usage: epic-search {' '.join(arguments[:-1])}" in done.stdout


def test_help_names_the_other_verbs() -> None:
    command = [sys.executable, "-c", "from epic_search.cli.main import main; main()", "eval", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "eval compare --help" in shown and "eval report --help" in shown
