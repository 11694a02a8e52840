"""Every command of the documentation: run as it stands, or, where a test has not what it needs, read by the program."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from epic_search.cli.console import DefaultVerbGroup
from epic_search.cli.main import app
from tests.docs.markdown import Command, blocks, commands

REPOSITORY = Path(__file__).parents[2]
TUTORIAL = REPOSITORY / "docs/tutorial.md"
PAGES = [REPOSITORY / name for name in ("README.md", "train/README.md", "indexes/README.md", "docs/cluster.md")]

# Not run here, and why; the program still has to know every word of them.
NOT_RUN = {
    r"hf:|models push|^eval SciFact|^eval .*sentence-transformers/": "asks the Hugging Face hub",
    r"^eval (quick|full|classes)": "takes minutes",
    r"^(serve|mcp)\b": "goes on until it is stopped (tests/serving)",
    r"promote|pull|--rebuild|--shards|--url|^indexes import": "needs a Qdrant server (tests/index)",
    r"^query$": "is a prompt (tests/cli/test_converse.py)",
    r"^demo|^train$|epic-mini(-1)?\.toml|grid/|^train mine|^train .*--device cpu": "trains or encodes for minutes",
    r"--watch|--plot|--tracker|^train status|explain KEY|RECIPE|FOLDER|runs/": "is about a run (tests/training)",
    r"eval compare": "compares two runs of your own (tests/cli/test_eval.py)",
}
ASKS = r"^indexes (delete|repair)|^teach clear"
DOCUMENTS = [
    {
        "_id": "card-arrival" if number == 0 else f"d{number}",
        "title": f"{topic} {number}",
        "text": f"Report {number} on {topic}: how to read a csv file with named columns; swept wings.",
        "year": 1955 + number,
        "lang": ("en", "de")[number % 2],
        "journal": ("Aero", "Wings", "Bank")[number % 3],
        "author": {"name": f"Author {number % 4}"},
        "module": "csv",
        "lead": "A lead.",
        "body": f"The body of {number}.",
        "headline": f"Headline {number}",
        "url": f"https://example.org/{number}",
    }
    for number, topic in enumerate(["flutter", "cards", "lift", "drag", "csv", "wings"] * 4)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A folder with the files that the pages name, and with the indexes that they search."""
    folder = tmp_path_factory.mktemp("stage")
    rows = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    (folder / "corpus.jsonl").write_text(rows)
    (folder / "dump.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "notes").mkdir()
    (folder / "notes/a.md").write_text("# A note\n\nOn flutter.\n")
    (folder / "papers.csv").write_text("id,title,text\n1,Flutter,Of swept wings\n2,Lift,Of thin ones\n")
    _parquet(folder / "news.parquet")
    lesson = {"query": "my card has not come", "id": "card-arrival"}
    (folder / "pairs.jsonl").write_text(json.dumps(lesson) + "\n")
    pairs = [{"query": f"claim {n}", "passage": f"In this trial, {n} of ten did."} for n in range(8)]
    (folder / "demos.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "queries.txt").write_text("flutter of swept wings\nno card in the post\n")
    shutil.copytree(REPOSITORY / "docs/tutorial/judged", folder / "my-data")
    for name in ("docs", "train"):
        (folder / name).symlink_to(REPOSITORY / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("bank", "papers", "corpus"):
            _run(["index", "corpus.jsonl", "--name", name, "--encoder", str(tiny_encoder_folder)])
    return folder


@pytest.fixture
def stage(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder_folder: Path) -> Path:
    """A copy of `prepared`, where the test runs, and a small encoder in place of the default."""
    folder = tmp_path / "stage"
    # The files of an index have holes, which a copy by shutil would fill: 700 MB a test.
    subprocess.run(["cp", "--archive", "--sparse=always", prepared, folder], check=True, timeout=240)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EPIC_SEARCH_ENCODER", str(tiny_encoder_folder))
    monkeypatch.setenv("EPIC_SEARCH_EVAL_MODEL", str(tiny_encoder_folder))
    return folder


@pytest.mark.parametrize(
    ("page", "line", "block"),
    [(page, line, block) for page in PAGES for line, block in blocks(page) if any(commands(block, first_line=line))],
    ids=lambda value: value.relative_to(REPOSITORY).as_posix() if isinstance(value, Path) else None,
)
def test_every_command_of_a_block(page: Path, line: int, block: str, stage: Path) -> None:
    for command in commands(block, first_line=line):
        yes = ["--yes"] if re.search(ASKS, " ".join(command.arguments)) else []
        try:
            if _why_not(command):
                _parse(command.arguments)
            else:
                _run(command.arguments + yes, given=_given(command))
        except AssertionError as error:
            pytest.fail(f"{page.name}:{command.line}: {command.shown}\n{error}")


def test_the_tutorial_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.chdir(tmp_path)
    before = after = None
    for line, block in blocks(TUTORIAL):
        for command in commands(block, first_line=line):
            if _why_not(command):
                _parse(command.arguments)
                continue
            output = _run(command.arguments)
            if command.arguments[1:2] == ["typed the wrong account number"]:
                ids = [row.split("\t")[2] for row in output.splitlines()]
                before, after = (before, ids) if before else (ids, None)
    assert before is not None and before.index("transfer-wrong") == 4, "as the tutorial says"
    assert after is not None and after[0] == "transfer-wrong"


@pytest.mark.parametrize(("line", "code"), blocks(REPOSITORY / "README.md", languages=("python",)))
def test_what_is_shown_from_python(line: int, code: str, stage: Path) -> None:
    exec(compile("\n" * (line - 1) + code, "README.md", "exec"), {"texts": ["Zinc and colds.", "Of wings."]})


def test_the_settings_that_are_shown(stage: Path) -> None:
    [(_, shown)] = blocks(REPOSITORY / "README.md", languages=("toml",))
    Path("epic-search.toml").write_text(shown)
    assert "top\t20\t" in _run(["config", "show"])


def test_nothing_in_the_list_of_what_is_not_run_is_out_of_date() -> None:
    shown = [
        " ".join(command.arguments)
        for page in [*PAGES, TUTORIAL]
        for line, block in blocks(page)
        for command in commands(block, first_line=line)
    ]
    assert len(shown) > 80
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, one) for one in shown)]
    assert not unused


def _why_not(command: Command) -> str | None:
    shown = " ".join(command.arguments)
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, shown)), None)


def _given(command: Command) -> str:
    """What comes to the command's standard input."""
    if command.fed_by:
        return subprocess.run(command.fed_by, check=True, capture_output=True, text=True, timeout=240).stdout
    return Path(command.reads).read_text() if command.reads else ""


def _run(arguments: list[str], *, given: str = "") -> str:
    result = CliRunner().invoke(app, arguments, input=given)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def _parse(arguments: list[str]) -> None:
    """Raise AssertionError for a command or an option that the program does not have."""
    command, rest = typer.main.get_command(app), arguments
    while isinstance(command, TyperGroup) and rest:
        if rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        elif isinstance(command, DefaultVerbGroup):
            command = next(iter(command.commands.values()))
        else:
            break
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word):
            assert word.split("=")[0] in options, f"{command.name} has no option {word}"


def _parquet(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(
        [{name: row[name] for name in ("url", "headline", "lead", "body")} for row in DOCUMENTS]
    ).to_parquet(path)
