"""Options from the environment and from a configuration file: what wins, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EPIC_SEARCH_CONFIG", raising=False)
    return tmp_path / "epic-search.toml"


def in_force(run: Run, command: str, option: str) -> tuple[str, str]:
    shown = json.loads(run("config", "show", *command.split(), "--json").stdout)
    (found,) = [setting for setting in shown if setting["option"] == option]
    return found["value"], found["source"]


def test_what_wins(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_force(run, "query", "top") == ("10", "default")
    assert in_force(run, "indexes list", "home") == ("", "default")
    file.write_text('home = "a"\n[indexes.list]\nhome = "b"\n[query]\ntop = 3\nno-demos = true\n')
    assert in_force(run, "query", "top") == ("3", "epic-search.toml")
    assert in_force(run, "query", "no-demos") == ("true", "epic-search.toml")
    assert in_force(run, "query", "home") == ("a", "epic-search.toml")
    assert in_force(run, "indexes list", "home") == ("b", "epic-search.toml")
    monkeypatch.setenv("EPIC_SEARCH_HOME", "c")
    assert in_force(run, "indexes list", "home") == ("c", "EPIC_SEARCH_HOME")
    monkeypatch.setenv("EPIC_SEARCH_INDEXES_LIST_HOME", "d")
    assert in_force(run, "indexes list", "home") == ("d", "EPIC_SEARCH_INDEXES_LIST_HOME")
    assert in_force(run, "query", "home") == ("c", "EPIC_SEARCH_HOME")


def test_commands_use_them(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('home = "of-the-file"\n')
    assert "no index in of-the-file yet" in run("indexes", "list").stderr
    monkeypatch.setenv("EPIC_SEARCH_INDEXES_LIST_JSON", "1")
    assert run("indexes", "list").stdout == "[]\n"
    monkeypatch.setenv("EPIC_SEARCH_INDEXES_LIST_HOME", "of-the-variable")
    monkeypatch.delenv("EPIC_SEARCH_INDEXES_LIST_JSON")
    assert "no index in of-the-variable yet" in run("indexes", "list").stderr
    assert "no index in typed yet" in run("indexes", "list", "--home", "typed").stderr


def test_where_the_file_is(run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "config" / "epic-search" / "config.toml"
    shown = run("config", "path")
    assert shown.stdout == f"{mine}\n" and "not there yet" in shown.stderr
    mine.parent.mkdir(parents=True)
    mine.write_text("[query]\ntop = 1\n")
    assert in_force(run, "query", "top") == ("1", str(mine))
    file.write_text("[query]\ntop = 2\n")
    assert in_force(run, "query", "top") == ("2", "epic-search.toml")
    named = tmp_path / "named.toml"
    monkeypatch.setenv("EPIC_SEARCH_CONFIG", str(named))
    assert "EPIC_SEARCH_CONFIG names" in run("indexes", "list", code=2).stderr
    named.write_text("[query]\ntop = 3\n")
    assert in_force(run, "query", "top") == ("3", str(named))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('hom = "x"', "there is no 'hom' at the top; did you mean 'home'? allowed are "),
        ("[query]\ntopp = 3", "there is no 'topp' in [query]; did you mean 'top'? allowed are "),
        ("[indexes.lst]\njson = true", "there is no 'lst' in [indexes]; did you mean 'list'?"),
        ("[indexes]\nhome = 'x'", "there is no 'home' in [indexes]"),
        ("query = 3", "query is a command; write its options in a table [query]"),
        ("[query]\njson = 'yes'", "query.json is 'yes'; it must be true or false"),
        ("[query]\ntop = [1]", "query.top is '1'; it must be a text or a number"),
        ("home = 2026-01-01", "home is '2026-01-01'; it must be a text or a number"),
        ("[query", "cannot read the configuration epic-search.toml: "),
        ("\xff", "cannot read the configuration epic-search.toml: "),
    ],
)
def test_mistakes_in_the_file(run: Run, file: Path, content: str, said: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    for arguments in (["indexes", "list"], ["config", "show"]):
        stderr = run(*arguments, code=2).stderr
        assert stderr.startswith("error: ") and stderr.count("\n") == 1
        assert "epic-search.toml" in stderr and said in stderr
    assert run("config", "path").stdout == "epic-search.toml\n"


@pytest.mark.parametrize("where", ["file", "variable"])
def test_a_value_that_the_option_refuses(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "file":
        file.write_text("[query]\ntop = 'many'\n")
    else:
        monkeypatch.setenv("EPIC_SEARCH_QUERY_TOP", "many")
    said = " ".join(run("query", "x", code=2).stderr.replace("│", " ").split())
    assert "--top" in said and f"(from {'epic-search.toml' if where == 'file' else 'EPIC_SEARCH_QUERY_TOP'})" in said


def test_a_variable_that_nothing_reads(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIC_SEARCH_QUERY_TPO", "5")
    said = run("config", "show", "query").stderr
    assert said == "EPIC_SEARCH_QUERY_TPO is set and no option reads it; did you mean EPIC_SEARCH_QUERY_TOP?\n"


def test_default_verbs_go_by_the_name_of_their_group(run: Run, file: Path) -> None:
    file.write_text('[eval]\nmodel = ["bm25", "epic-mini"]\ndemos-control = "all"\n[train.mine]\n')
    assert in_force(run, "eval", "model")[0] == "bm25 epic-mini"
    assert in_force(run, "eval", "demos-control") == ("all", "epic-search.toml")
    assert "no command with options" in run("config", "show", "nonsense", code=2).stderr


@pytest.mark.parametrize("line", ['qdrant-url = "http://evil.example"', '[query]\nurl = "http://evil.example"'])
def test_a_file_in_the_current_folder_does_not_say_who_gets_the_key(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    file.write_text(line)
    result = run("query", "words", code=2)
    assert "decides who gets your key" in result.stderr and "EPIC_SEARCH_QDRANT_URL" in result.stderr
    monkeypatch.setenv("EPIC_SEARCH_CONFIG", str(file))
    assert "decides who" not in run("config", "show").stderr
