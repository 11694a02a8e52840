"""The dev suite gives the scores that `epic-search eval` gives, on splits and parts of a folder's data."""

import json
from pathlib import Path
from typing import Any

import pytest

from epic_search.errors import UserError
from epic_search.evaluation import demonstrations
from epic_search.evaluation.dev import DevSuite
from epic_search.evaluation.splits import load
from epic_search.evaluation.tasks import folder_task
from tests.evaluation.conftest import Data, Evaluate, result_files, row, write_rows


def loaded(task: Any) -> Any:
    made = task.make()
    load(made)
    return made


def test_the_scores_are_those_of_an_evaluation(
    classification: Any, sts: Any, evaluate: Evaluate, out: Path, tiny_model: Any
) -> None:
    evaluate(sts, classification, demos=(0, 2), controls=("shuffled",))
    stored = {}
    for file in result_files(out):
        [entry] = json.loads(file.read_text())["scores"]["test"]
        prompt = entry["epic_search"]["prompt"]
        column = "without" if not prompt["demonstrations"] else prompt["control"] or "with_demonstrations"
        stored[file.stem, column] = entry["main_score"]
    assert len(stored) == 6
    found = DevSuite([sts, classification], demonstrations=2, shuffled=True).scores(tiny_model.encoder)
    assert (found["sts"]["metric"], found["classification"]["metric"]) == ("cosine_spearman", "accuracy")
    for (task, column), score in stored.items():
        assert found[task][column] == pytest.approx(score, abs=1e-4), (task, column)
    again = DevSuite([sts], demonstrations=2, shuffled=False).scores(tiny_model.encoder)
    assert again == {"sts": {name: value for name, value in found["sts"].items() if name != "shuffled"}}


def test_another_split_in_place_of_the_test(data: Data) -> None:
    folder = data("sts", test=8, train=8)
    write_rows(folder / "dev.jsonl", [row("sts", i) for i in range(50, 60)])
    made = loaded(folder_task(folder, split="dev"))
    assert made.dataset["test"]["sentence1"][0] == row("sts", 50)["sentence1"] and len(made.dataset["test"]) == 10
    assert len(made.dataset["train"]) == 8


def test_of_the_training_split_the_rest_stays_for_training(data: Data) -> None:
    folder = data("classification", test=8, train=40)
    made = loaded(folder_task(folder, split="train", limit=12))
    tested, left = (set(made.dataset[split]["text"]) for split in ("test", "train"))
    assert (len(tested), len(left)) == (12, 28) and not tested & left
    assert tested | left == {row("classification", i)["text"] for i in range(8, 48)}


def test_a_corpus_is_cut_to_what_the_queries_need_and_some_more(data: Data) -> None:
    folder = data("retrieval", test=30, train=10)
    made = loaded(folder_task(folder, limit=5, keep=8))
    test, train = made.dataset["default"]["test"], made.dataset["default"]["train"]
    needed = {document for judged in test["relevant_docs"].values() for document in judged}
    assert len(needed) == 5 and needed <= set(test["corpus"]["id"]) and len(test["corpus"]) == 8
    assert len(train["relevant_docs"]) == 8
    assert len(train["corpus"]) == 40, "demonstrations are drawn from the whole"
    reranking = loaded(folder_task(data("reranking", test=30), limit=5, keep=100))
    assert len(reranking.dataset["default"]["test"]["corpus"]) == 5 * 3, "the candidates, and nothing besides"


def test_a_task_without_a_training_split_is_measured_without_demonstrations(
    data: Data, sts: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name is nothing to ask the hub for."""
    monkeypatch.setattr(demonstrations, "_hub_train_split", lambda _: pytest.fail("looked for on the hub"))
    alone = folder_task(data("retrieval"))
    with pytest.raises(UserError, match=r"dev.demonstrations = 2, but none of dev.tasks has a training split"):
        DevSuite([alone], demonstrations=2, shuffled=True)
    with pytest.raises(UserError, match="retrieval has no training split"):
        demonstrations.task_pool(loaded(alone), "retrieval", classes="examples")
    found = DevSuite([alone, sts], demonstrations=2, shuffled=True).scores(tiny_model.encoder)
    assert found["retrieval"].keys() == {"metric", "without"} and "shuffled" in found["sts"]
