"""A run goes on where another stopped: what is stored is kept as long as data, prompt and files are the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

from epic_search.evaluation import ours
from epic_search.evaluation.models import EncoderModel
from epic_search.evaluation.results import read_results
from epic_search.evaluation.tasks import EvalTask, folder_task
from tests.evaluation.conftest import Data, Evaluate, broken, result_files, row, write_rows


@pytest.fixture
def unloadable(tiny_model: EncoderModel) -> EncoderModel:
    """The tiny model without its weights: what it has to evaluate fails."""
    return replace(tiny_model, reference="no/such/folder", _corpora={})


def test_a_second_run_evaluates_nothing(
    evaluate: Evaluate, sts: EvalTask, data: Data, unloadable: EncoderModel, out: Path
) -> None:
    tasks = [sts, folder_task(data("retrieval", test=8, train=8))]
    options: dict[str, Any] = {"demos": [0, 2], "controls": ["random"]}
    first = evaluate(*tasks, **options)
    before = {path: path.read_bytes() for path in result_files(out)}
    again = evaluate(*tasks, models=[unloadable], **options)
    assert (set(first.states), set(again.states)) == ({"done"}, {"kept"})
    assert (again.report.done, again.report.kept) == (0, 6)
    assert {path: path.read_bytes() for path in result_files(out)} == before


def test_kept_scores_are_told(evaluate: Evaluate, sts: EvalTask, out: Path, unloadable: EncoderModel) -> None:
    from epic_search.evaluation.runner import Plan, run

    evaluate(sts)
    told: list[float | None] = []
    run(Plan([sts], [unloadable]), out=out, report=lambda progress: told.append(progress.score))
    assert told == [None, pytest.approx(read_results(out)[0].score)]


def test_overwrite_runs_everything_again(evaluate: Evaluate, sts: EvalTask) -> None:
    assert evaluate(sts, demos=[0, 2]).states == ["done", "done"]
    assert evaluate(sts, demos=[0, 2], overwrite=True).states == ["done", "done"]


def test_a_changed_instruction_is_run_again(evaluate: Evaluate, sts: EvalTask, classification: EvalTask) -> None:
    evaluate(sts, classification)
    changed = replace(sts, instruction="Find what is said in other words")
    ran = evaluate(changed, classification)
    assert ran.states == ["done", "kept"]
    assert evaluate(replace(sts, instruction=None), classification).states == ["done", "kept"]


def test_changed_data_are_run_again(evaluate: Evaluate, sts: EvalTask, data: Data, tmp_path: Path) -> None:
    classification = folder_task(data("classification"))
    evaluate(sts, classification)
    with (tmp_path / "sts" / "test.jsonl").open("a") as file:
        file.write(json.dumps(row("sts", 99)) + "\n")
    assert evaluate(folder_task(tmp_path / "sts"), classification).states == ["done", "kept"]
    assert evaluate(folder_task(tmp_path / "sts"), classification).states == ["kept", "kept"]


def test_changed_pairs_run_again_what_shows_them(evaluate: Evaluate, sts: EvalTask, pairs_file: Path) -> None:
    def ran() -> list[str]:
        return evaluate(sts, demos=[0, 2], controls=["shuffled"], pairs=pairs_file).states

    assert ran() == ["done"] * 3
    assert ran() == ["kept"] * 3
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    write_rows(pairs_file, [*rows, {"query": "one more", "passage": "answer"}])
    assert ran() == ["kept", "done", "done"]


def test_other_sources_of_demonstrations_are_other_results(
    evaluate: Evaluate, classification: EvalTask, pairs_file: Path, out: Path
) -> None:
    options: list[dict[str, Any]] = [{}, {"classes": "names"}, {"pairs": pairs_file}]
    assert [evaluate(classification, demos=[2], **option).states for option in options] == [["done"]] * 3
    assert [evaluate(classification, demos=[2], **option).states for option in options] == [["kept"]] * 3
    sources = {result.prompt["source"] for result in read_results(out)}
    assert len(sources) == 2 and "training split" in sources, "each is kept beside the others"


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: ""])
def test_a_damaged_result_is_run_again(
    evaluate: Evaluate, sts: EvalTask, classification: EvalTask, out: Path, damage: Callable[[str], str]
) -> None:
    evaluate(sts, classification)
    [path] = [path for path in result_files(out) if path.name == "sts.json"]
    whole = json.loads(path.read_text())
    path.write_text(damage(path.read_text()))
    assert evaluate(sts, classification).states == ["done", "kept"]
    assert json.loads(path.read_text())["scores"]["test"][0]["main_score"] == whole["scores"]["test"][0]["main_score"]


def test_a_result_of_another_precision_is_run_again(
    evaluate: Evaluate, sts: EvalTask, out: Path, tiny_model: EncoderModel
) -> None:
    """ "auto" is float32 on one machine and bfloat16 on another; a folder may have been carried from there."""
    evaluate(sts)
    [path] = result_files(out)
    path.write_text(path.read_text().replace(f'"dtype": "{tiny_model.dtype}"', '"dtype": "float8"'))
    assert evaluate(sts).states == ["done"]


def test_a_result_of_mteb_itself_is_run_again(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    evaluate(sts)
    [path] = result_files(out)
    content = json.loads(path.read_text())
    del content["scores"]["test"][0]["epic_search"]
    path.write_text(json.dumps(content))
    assert evaluate(sts).states == ["done"]


def test_a_run_killed_between_two_files_of_a_result_is_made_whole(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    """mteb writes model_meta.json after the result: a kill between the two must not make the folder unreadable."""
    evaluate(sts)
    [path] = result_files(out)
    (path.parent / "model_meta.json").unlink()
    evaluate(sts)
    assert [result.task for result in read_results(out)] == ["sts"]


@pytest.mark.parametrize("where", ["while loading", "while encoding"])
def test_an_interrupted_run_keeps_what_is_finished(
    evaluate: Evaluate,
    sts: EvalTask,
    classification: EvalTask,
    data: Data,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    pairs = folder_task(data("pair_classification"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted = classification
        if where == "while loading":
            interrupted = broken(classification, KeyboardInterrupt())
        else:
            encode = ours.EvaluatedEncoder.encode

            def stop(self: Any, inputs: Any, *, task_metadata: Any, **options: Any) -> Any:
                if task_metadata.name == "classification":
                    raise KeyboardInterrupt
                return encode(self, inputs, task_metadata=task_metadata, **options)

            patch.setattr(ours.EvaluatedEncoder, "encode", stop)
        evaluate(sts, interrupted, pairs)
    assert [result.task for result in read_results(out)] == ["sts"]
    assert json.loads((out / "run.json").read_text())["failures"] == []
    assert evaluate(sts, classification, pairs).states == ["kept", "done", "done"]


def test_an_interrupted_index_run_goes_on(
    evaluate: Evaluate, data: Data, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieval = folder_task(data("retrieval", train=4))

    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ours.Searcher, "search", stop)
        evaluate(retrieval, demos=[0, 2])
    assert (out / "work").is_dir(), "the index serves the prompts to come"
    assert evaluate(retrieval, demos=[0, 2]).states == ["done", "done"]
    assert not (out / "work").exists()
