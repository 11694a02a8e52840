"""Runs end with mteb's result files and our block in each, and no failure of one task stops the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mteb")

import mteb.mocks
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.evaluation.kinds import CONTROLS, KINDS, MTEB_TYPES, Kind
from epic_search.evaluation.models import EncoderModel, Settings, find_model
from epic_search.evaluation.results import read_results
from epic_search.evaluation.tasks import EvalTask, PairFile, folder_task
from tests.evaluation.conftest import WORDS, Data, Evaluate, broken, result_files

MOCKS = [
    "MockRetrievalDialogTask",
    "MockMultilingualRetrievalTask",
    "MockRerankingTask",
    "MockSTSTask",
    "MockMultilingualSTSTask",
    "MockPairClassificationTask",
    "MockClassificationTask",
    "MockMultilingualClassificationTask",
    "LegacyMockClusteringFastTask",
    "MockMultilingualClusteringFastTask",
]


def mock_task(name: str, *, pairs: Path | None = None) -> EvalTask:
    make: type[AbsTask] = getattr(mteb.mocks, name)
    [kind] = [kind for kind, mteb_type in MTEB_TYPES.items() if mteb_type == make.metadata.type]
    return EvalTask(name, kind, make, "Find the like", PairFile(pairs) if pairs else None)


# --- all kinds


@pytest.mark.parametrize("name", MOCKS)
def test_tasks_of_mteb(name: str, evaluate: Evaluate, out: Path, pairs_file: Path) -> None:
    ran = evaluate(mock_task(name, pairs=pairs_file), demos=[2])
    assert ran.states == ["done"], ran.report.failures
    [result] = read_results(out)
    assert (result.task, result.label) == (name, "tiny@2")
    assert 0 <= abs(result.score) <= 1
    assert len(result.prompt["demonstrations"]) == 2


def test_the_mock_tasks_are_of_every_kind() -> None:
    assert {mock_task(name).kind for name in MOCKS} == set(MTEB_TYPES)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sts"])
def test_every_condition_of_every_kind(kind: Kind, data: Data, evaluate: Evaluate, out: Path) -> None:
    task = folder_task(data(kind, test=8, train=16), kind=kind)
    ran = evaluate(task, demos=[0, 2], controls=["shuffled", "random"])
    assert ran.states == ["done"] * 4, ran.report.failures
    plain, true, wrong, noise = read_results(out)
    assert [result.label for result in (plain, true, wrong, noise)] == [
        "tiny",
        "tiny@2",
        "tiny@2-shuffled",
        "tiny@2-random",
    ]
    assert true.prompt["source"] == "training split"
    assert true.prompt["classes"] == ("examples" if kind in ("classification", "clustering") else None)
    assert (noise.prompt["source"], noise.prompt["demonstrations"]) == ("random unit vectors", [])
    assert noise.cost["query_tokens"] == true.cost["query_tokens"]
    assert len(wrong.prompt["demonstrations"]) == len(true.prompt["demonstrations"]) == 2
    assert not set(wrong.prompt["demonstrations"]) & set(true.prompt["demonstrations"])


# --- what is stored


def test_the_block_is_complete(evaluate: Evaluate, sts: EvalTask, out: Path, tiny_encoder: Encoder) -> None:
    evaluate(sts, demos=[2], seeds=[7])
    [path] = result_files(out)
    content = json.loads(path.read_text())
    [entry] = content["scores"]["test"]
    block = entry["epic_search"]
    assert list(block) == ["kind", "label", "prompt", "cost", "settings", "items"]
    assert (block["kind"], block["label"]) == ("sts", "tiny")
    demonstrations = block["prompt"].pop("demonstrations")
    trained = {(f"{WORDS[i % 4]} {i}", f"{WORDS[i % 4]} {i} too") for i in range(17, 24, 2)}
    assert len(demonstrations) == 2 and set(map(tuple, demonstrations)) < trained
    assert block["prompt"] == {
        "instruction": sts.instruction,
        "control": None,
        "seed": 7,
        "source": "training split",
        "classes": None,
        "kind": "soft",
    }
    cost = block["cost"]
    assert (cost["queries"], cost["texts"]) == (32, 32)
    layout = tiny_encoder.template.query(task=sts.instruction, demonstrations=2)
    assert len(layout) < cost["query_tokens"] < len(layout) + 64
    assert cost["tokens"] == round(32 * cost["query_tokens"])
    assert 0 < cost["encode_seconds"] <= cost["wall_seconds"]
    assert cost["query_ms"] > 0 and cost["load_seconds"] > 0
    settings = block["settings"]
    assert (settings["search"], settings["max_length"], settings["device"]) == ("index", 64, "cpu")
    assert settings["machine"] and set(settings["versions"]) >= {"python", "epic-search", "mteb", "torch"}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_plain_results_name_no_demonstrations(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    evaluate(sts)
    [result] = read_results(out)
    assert dict(result.prompt) == {
        "instruction": sts.instruction,
        "demonstrations": [],
        "control": None,
        "seed": None,
        "source": None,
        "classes": None,
        "kind": None,
    }


def test_mteb_finds_the_results(evaluate: Evaluate, sts: EvalTask, out: Path, tiny_model: EncoderModel) -> None:
    evaluate(sts, demos=[0, 2])
    cache = ResultCache(out)
    results = read_results(out)
    assert [result.demos for result in results] == [0, 2]
    for result, experiment in zip(results, (None, "demos_2__seed_0"), strict=True):
        loaded = cache.load_task_result("sts", tiny_model.name, tiny_model.revision, experiment_name=experiment)
        assert loaded is not None and loaded.main_score == pytest.approx(result.score)
        assert result.path == cache.get_task_result_path(
            "sts", tiny_model.name, tiny_model.revision, experiment_name=experiment
        )
        meta = json.loads((result.path.parent / "model_meta.json").read_text())
        assert (meta["name"], meta["revision"]) == (tiny_model.name, tiny_model.revision)
        assert meta["experiment_kwargs"] == ({"demos": 2, "seed": 0} if experiment else None)
    found = cache.load_results(models=[tiny_model.name], tasks=["sts"], load_experiments="no_experiments")
    assert [result.model_name for result in found] == [tiny_model.name]


def test_run_json_tells_models_tasks_and_commands(
    evaluate: Evaluate, sts: EvalTask, classification: EvalTask, out: Path, tiny_model: EncoderModel
) -> None:
    evaluate(sts, command="first")
    evaluate(classification, command="second", notes=["left out"])
    run = json.loads((out / "run.json").read_text())
    assert run["models"] == {"tiny": {"name": "local/tiny", "revision": tiny_model.revision}}
    assert run["tasks"] == ["sts", "classification"]
    assert run["origins"] == {"sts": sts.origin, "classification": classification.origin}
    assert (run["commands"], run["notes"], run["failures"]) == (["first", "second"], ["left out"], [])


def test_indexes_are_not_left_behind(evaluate: Evaluate, data: Data, out: Path) -> None:
    evaluate(folder_task(data("retrieval")))
    assert {path.name for path in out.iterdir()} == {".lock", "results", "run.json"}


# --- which conditions are run


def test_conditions_are_run_once_each(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    ran = evaluate(sts, demos=[0, 2], seeds=[0, 1], controls=CONTROLS)
    assert [condition for *_, condition in ran.jobs] == [
        "no demonstrations",
        *(f"2 demonstrations, seed {seed}" for seed in (0, 1)),
        *(f"2 {control} demonstrations, seed {seed}" for control in CONTROLS for seed in (0, 1)),
    ]
    assert ran.states == ["done"] * 9
    assert len({result.score for result in read_results(out)}) > 5


def test_an_encoder_trained_on_texts_is_run_like_any_other(
    evaluate: Evaluate, sts: EvalTask, data: Data, tiny_model: EncoderModel, tiny_text_folder: Path, out: Path
) -> None:
    text_model = find_model(f"text={tiny_text_folder}", settings=Settings(device="cpu"))
    retrieval = folder_task(data("retrieval", test=6, train=6))
    ran = evaluate(sts, retrieval, models=[tiny_model, text_model], demos=[0, 2], controls=CONTROLS)
    assert ran.states == ["done"] * (2 * 5 + 2 * 4), ran.report.failures
    by_label = {(result.label, result.task): result for result in read_results(out)}
    assert {label for label, _ in by_label if label.startswith("text")} == {
        "text",
        "text@2",
        "text@2-shuffled",
        "text@2-wrong-task",
    }, "there are no random vectors in the place of texts"
    for task in ("sts", "retrieval"):
        soft, text, none = (by_label[label, task] for label in ("tiny@2", "text@2", "text"))
        assert (soft.prompt["kind"], text.prompt["kind"], none.prompt["kind"]) == ("soft", "text", None)
        assert text.prompt["demonstrations"] == soft.prompt["demonstrations"]
        assert soft.cost["query_tokens"] is not None
        letters = sum(len(part.encode()) for pair in text.prompt["demonstrations"] for part in pair)
        assert text.cost["query_tokens"] == pytest.approx(soft.cost["query_tokens"] - 4 + letters), "a byte is a token"


def test_a_soft_encoder_is_run_on_texts_when_asked(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    evaluate(sts, demos=[0, 2])
    again = evaluate(sts, demos=[0, 2], controls=["random"], demos_kind="text")
    assert again.jobs == [
        ("kept", "tiny", "sts", "no demonstrations"),
        ("done", "tiny", "sts", "2 text demonstrations, seed 0"),
    ]
    assert evaluate(sts, demos=[2], demos_kind="soft").states == ["kept"], "that is what it was trained to read"
    plain, soft, text = sorted(read_results(out), key=lambda result: result.label)
    assert [result.label for result in (plain, soft, text)] == ["tiny", "tiny@2", "tiny@2 (as text)"]
    assert (soft.prompt["kind"], text.prompt["kind"]) == ("soft", "text")
    assert soft.score != text.score


def test_classes_are_told_only_where_a_task_has_them(
    evaluate: Evaluate, sts: EvalTask, classification: EvalTask, pairs_file: Path, out: Path
) -> None:
    evaluate(sts, demos=[2], classes="all-names")
    evaluate(classification, demos=[2], classes="all-names", pairs=pairs_file)
    assert all("all-names" not in result.label for result in read_results(out))
    evaluate(sts, classification, demos=[2], classes="all-names")
    assert {result.task for result in read_results(out) if result.label == "tiny@2 (class all-names)"} == {
        "sts",
        "classification",
    }, "one entry for all tasks, so that it has a mean"


def test_a_model_without_prompts_is_run_once_and_only_on_what_it_does(
    evaluate: Evaluate, sts: EvalTask, data: Data, tiny_model: EncoderModel, out: Path
) -> None:
    bm25 = find_model("bm25", settings=Settings())
    retrieval = folder_task(data("retrieval", train=4))
    ran = evaluate(sts, retrieval, models=[bm25, tiny_model], demos=[2])
    assert [job[1:] for job in ran.jobs] == [
        ("bm25", "retrieval", "no demonstrations"),
        ("tiny", "sts", "2 demonstrations, seed 0"),
        ("tiny", "retrieval", "2 demonstrations, seed 0"),
    ]
    assert ran.states == ["done"] * 3
    [words] = [result for result in read_results(out) if result.model == "bm25"]
    assert words.score > 0.8, "most queries hold a number that only their document has"


def test_nothing_to_run(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to run: bm25 cannot do any of the 1 tasks"):
        evaluate(sts, models=[find_model("bm25", settings=Settings())])
    assert not out.exists()


# --- failures


def test_a_failing_task_stops_no_other(evaluate: Evaluate, sts: EvalTask, classification: EvalTask, out: Path) -> None:
    ran = evaluate(broken(sts, RuntimeError("no luck\ntoday")), classification)
    assert ran.states == ["failed", "done"]
    [failure] = ran.report.failures
    assert (failure.task, failure.error, failure.mistake) == ("sts", "RuntimeError: no luck", False)
    stored = json.loads((out / "run.json").read_text())["failures"]
    assert stored == [vars(failure)]
    log = (out / "failures.log").read_text()
    assert "tiny, sts, no demonstrations" in log and "Traceback" in log and "no luck\ntoday" in log
    assert [result.task for result in read_results(out)] == ["classification"]
    assert evaluate(sts, classification).states == ["done", "kept"]
    assert json.loads((out / "run.json").read_text())["failures"] == []


def test_a_task_that_cannot_be_made_is_a_failure(evaluate: Evaluate, sts: EvalTask, classification: EvalTask) -> None:
    def make() -> AbsTask:
        raise ValueError("nothing to make it of")

    assert evaluate(replace(sts, make=make), classification).states == ["failed", "done"]


def test_more_demonstrations_than_there_are(evaluate: Evaluate, sts: EvalTask, classification: EvalTask) -> None:
    ran = evaluate(sts, classification, demos=[0, 9])
    assert ran.states == ["done", "failed", "done", "done"]
    [failure] = ran.report.failures
    assert failure.mistake
    assert "9 demonstrations were asked for, and the training split of sts holds 4 pairs" in failure.error
    assert "ask for at most 4" in failure.error


def test_a_task_without_demonstrations(evaluate: Evaluate, data: Data) -> None:
    ran = evaluate(folder_task(data("sts")), demos=[0, 2])
    assert ran.states == ["done", "failed"]
    assert "sts has no training split to take demonstrations from; give pairs with --pairs FILE" in (
        ran.report.failures[0].error
    )


def test_controls_that_are_not_of_the_task_need_no_training_split(evaluate: Evaluate, data: Data) -> None:
    ran = evaluate(folder_task(data("sts")), demos=[2], controls=["wrong-task", "random"])
    assert ran.states == ["failed", "done", "done"]


@pytest.mark.parametrize("chained", [False, True])
def test_a_missing_network_is_said_in_one_sentence(evaluate: Evaluate, sts: EvalTask, chained: bool) -> None:
    error: Exception = ConnectionError("Couldn't reach 'mteb/sts' on the Hub")
    if chained:
        cause, error = error, RuntimeError("could not load")
        error.__cause__ = cause
    ran = evaluate(broken(sts, error))
    [failure] = ran.report.failures
    assert failure.mistake
    assert "could not be fetched from the Hugging Face hub" in failure.error
    assert failure.error.endswith("epic-search eval FOLDER")


def test_without_a_network_a_task_of_the_hub_fails_with_that_sentence(evaluate: Evaluate, no_network: None) -> None:
    from epic_search.evaluation.suite import find_tasks

    ran = evaluate(*find_tasks(["STSBenchmark"]))
    assert ran.states == ["failed"]
    assert "could not be fetched from the Hugging Face hub" in ran.report.failures[0].error


# --- models in a folder of results


def test_another_version_of_a_model_is_not_mixed_in(
    evaluate: Evaluate, sts: EvalTask, tiny_model: EncoderModel, out: Path
) -> None:
    evaluate(sts)
    other = replace(tiny_model, revision="0" * 16)
    with pytest.raises(UserError, match=f"holds results of 'tiny' {tiny_model.revision}, and this one is 0000"):
        evaluate(sts, models=[other])
    named = replace(other, label="tiny-2", name="local/tiny-2")
    assert evaluate(sts, models=[named]).states == ["done"]
    assert {result.model for result in read_results(out)} == {"tiny", "tiny-2"}


def test_two_models_of_one_name(evaluate: Evaluate, sts: EvalTask, tiny_model: EncoderModel) -> None:
    with pytest.raises(UserError, match="two models are called 'tiny'"):
        evaluate(sts, models=[tiny_model, replace(tiny_model, revision="0" * 16)])


def test_one_model_under_two_names(
    evaluate: Evaluate, sts: EvalTask, data: Data, tiny_model: EncoderModel, out: Path
) -> None:
    with pytest.raises(UserError, match="'tiny' and 'again' are the same model"):
        evaluate(sts, models=[tiny_model, replace(tiny_model, label="again")])
    assert not (out / "results").exists()


def test_one_model_keeps_its_name_in_a_folder(evaluate: Evaluate, data: Data, out: Path) -> None:
    """BM25 and models of the hub are filed under one name, whatever the user calls them."""
    retrieval = folder_task(data("retrieval", test=4))
    evaluate(retrieval, models=[find_model("bm25", settings=Settings())])
    with pytest.raises(UserError, match="results of 'words' under the name 'bm25'; use that name again"):
        evaluate(retrieval, models=[find_model("words=bm25", settings=Settings())])
    assert [result.model for result in read_results(out)] == ["bm25"]


# --- tasks in a folder of results


def test_another_task_of_the_same_name(evaluate: Evaluate, sts: EvalTask, data: Data, tmp_path: Path) -> None:
    evaluate(sts)
    other = folder_task(data("sts", test=20, name="elsewhere/sts"))
    with pytest.raises(UserError, match=r"holds results of another task 'sts', from .*; name another --out"):
        evaluate(other)


def test_results_of_two_versions_of_the_data_do_not_stand_side_by_side(
    evaluate: Evaluate, sts: EvalTask, data: Data
) -> None:
    evaluate(sts, demos=[0, 2])
    changed = folder_task(data("sts", test=20, train=8))
    with pytest.raises(UserError, match="is of another version of the task's data and this run does not replace it"):
        evaluate(changed)
    assert evaluate(changed, demos=[0, 2]).states == ["done", "done"]


def test_one_run_at_a_time(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    from filelock import FileLock

    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(UserError, match=r"another evaluation writes into .* now"):
        evaluate(sts)
    assert evaluate(sts).states == ["done"]


def test_a_run_file_that_cannot_be_read(evaluate: Evaluate, sts: EvalTask, out: Path) -> None:
    out.mkdir()
    (out / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*run\.json: .*; delete it"):
        evaluate(sts)
