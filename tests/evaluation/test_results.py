"""Results are read as mteb wrote them, in a steady order, and what cannot be read is named."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from results_helpers import write_result, write_run

from epic_search.errors import UserError
from epic_search.evaluation.results import choose, labels, read_results, read_run


def test_what_mteb_wrote_comes_back(tmp_path: Path) -> None:
    from mteb.results import TaskResult

    demonstrations = [["a query", "a passage"]]
    path = write_result(
        tmp_path,
        task="SciFact",
        model="epic-mini",
        values=[0.0, 0.5, 1.0],
        experiment={"demos": 1, "seed": 3, "control": "shuffled"},
        prompt={"demonstrations": demonstrations, "source": "training split"},
    )
    (result,) = read_results(tmp_path)
    assert (result.model, result.name, result.revision) == ("epic-mini", "test/epic-mini", "abc123")
    assert (result.task, result.kind, result.dataset_revision) == ("SciFact", "retrieval", "data1")
    assert (result.demos, result.seed, result.control) == (1, 3, "shuffled")
    assert result.label == "epic-mini@1-shuffled"
    assert result.score == TaskResult.from_disk(path).main_score == 0.5
    assert result.prompt["demonstrations"] == [("a query", "a passage")]
    assert result.prompt["source"] == "training split"
    assert result.cost["query_tokens"] == 12.5
    assert result.settings["search"] == "index"
    assert result.items is not None
    assert result.items.ids == ("0", "1", "2")
    assert list(result.items.values) == [0.0, 0.5, 1.0]
    assert result.path == path


def test_a_model_without_demonstrations_has_a_plain_label(tmp_path: Path) -> None:
    write_result(tmp_path, with_items=False)
    (result,) = read_results(tmp_path)
    assert (result.label, result.demos, result.seed, result.control, result.items) == ("small", 0, 0, None, None)


def test_any_level_of_the_folder_can_be_given(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    write_result(tmp_path, experiment={"demos": 4, "seed": 0})
    write_run(tmp_path, commands=["epic-search eval"])
    for folder in (tmp_path, tmp_path / "results", path.parent.parent, path.parent):
        assert labels(read_results(folder)) == ["small", "small@4"]
        run = read_run(folder)
        assert run is not None
        assert run.commands == ["epic-search eval"]


def test_the_order_is_that_of_the_run(tmp_path: Path) -> None:
    for model in ("alpha", "beta"):
        for task in ("One", "Two"):
            write_result(tmp_path, model=model, task=task)
    write_result(tmp_path, model="beta", task="Two", experiment={"demos": 2, "seed": 0, "control": "random"})
    write_result(tmp_path, model="beta", task="Two", experiment={"demos": 2, "seed": 1})
    write_result(tmp_path, model="beta", task="Two", experiment={"demos": 2, "seed": 0})
    write_run(tmp_path, models={"beta": {}, "alpha": {}}, tasks=["Two", "One"])
    results = read_results(tmp_path)
    assert [(r.label, r.task, r.seed) for r in results] == [
        ("beta", "Two", 0),
        ("beta", "One", 0),
        ("beta@2", "Two", 0),
        ("beta@2", "Two", 1),
        ("beta@2-random", "Two", 0),
        ("alpha", "Two", 0),
        ("alpha", "One", 0),
    ]


def test_a_task_of_several_subsets_has_their_mean(tmp_path: Path) -> None:
    path = write_result(tmp_path, score=0.5)
    content = json.loads(path.read_text())
    other = {**content["scores"]["test"][0], "hf_subset": "other", "main_score": 0.7}
    content["scores"]["test"].append(other)
    path.write_text(json.dumps(content))
    assert read_results(tmp_path)[0].score == pytest.approx(0.6)


def test_two_revisions_of_a_label_are_told_apart(tmp_path: Path) -> None:
    write_result(tmp_path, revision="aaaaaaaa11")
    write_result(tmp_path, revision="bbbbbbbb22")
    assert labels(read_results(tmp_path)) == ["small (aaaaaaaa)", "small (bbbbbbbb)"]


def test_unusual_settings_join_the_label(tmp_path: Path) -> None:
    write_result(tmp_path)
    write_result(tmp_path, experiment={"demos": 4, "seed": 0, "search": "exact"})
    assert labels(read_results(tmp_path)) == ["small", "small (search exact)@4"]


def test_one_result_in_two_files_is_refused(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    copy = path.parent / "experiments" / "copy"
    copy.mkdir(parents=True)
    for name in (path.name, "model_meta.json"):
        (copy / name).write_bytes((path.parent / name).read_bytes())
    with pytest.raises(UserError, match=r"Task\.json and .*Task\.json are both small on Task"):
        read_results(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_results_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="epic-search eval --out"):
        read_results(tmp_path / name)


@pytest.mark.parametrize(
    ("damaged", "content", "complaint"),
    [
        ("Task.json", "{", "cannot read .*Task.json"),
        ("Task.json", '{"task_name": "Task", "scores": {"test": [{"main_score": 1}]}}', "no 'epic_search' block"),
        ("Task.json", "[]", "no 'epic_search' block"),
        ("model_meta.json", '{"name": "test/small"}', r"model_meta\.json is damaged at revision"),
        ("items/Task.json", '{"metric": "m", "form": "sum", "ids": [], "values": []}', "damaged at form"),
        ("items/Task.json", '{"metric": "m", "form": "mean", "ids": ["1"], "values": []}', "one finite value each"),
        ("items/Task.json", '{"metric": "m", "form": "mean", "ids": ["1"], "values": [NaN]}', "one finite value each"),
        (
            "items/Task.json",
            '{"metric": "m", "form": "mean", "ids": ["1", "1"], "values": [0, 0]}',
            "one finite value each",
        ),
        (
            "items/Task.json",
            '{"metric": "m", "form": "spearman", "ids": ["1"], "values": [0], "gold": []}',
            "one finite value each",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damaged: str, content: str, complaint: str) -> None:
    path = write_result(tmp_path)
    (path.parent / damaged).write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_results(tmp_path)


def test_a_wrong_value_in_the_block_is_named(tmp_path: Path) -> None:
    write_result(tmp_path, cost={"query_ms": "fast"})
    with pytest.raises(UserError, match=r"Task\.json is damaged at scores\.test\.0\.epic_search\.cost\.query_ms"):
        read_results(tmp_path)


def test_a_result_without_its_model_is_an_error(tmp_path: Path) -> None:
    (write_result(tmp_path).parent / "model_meta.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model_meta\.json"):
        read_results(tmp_path)


def test_choose_by_path_and_label(tmp_path: Path) -> None:
    out = tmp_path / "with: colon"
    write_result(out)
    write_result(out, experiment={"demos": 4, "seed": 0})
    assert len(choose(str(out))) == 2
    assert labels(choose(f"{out}:small@4")) == ["small@4"]
    with pytest.raises(UserError, match=r"no results of 'large'; it has small, small@4"):
        choose(f"{out}:large")
    with pytest.raises(UserError, match="no folder"):
        choose(str(tmp_path / "nowhere:small"))
