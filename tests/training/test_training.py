"""Recipes, data and whole runs: what is refused, and that a stopped run goes on as if it had not stopped."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training import recipe_files as recipes
from epic_search.training.labels import LabelSource
from epic_search.training.mixture import Mixture
from epic_search.training.pairs import load_pairs
from epic_search.training.recipe import LabelData, PairData, Recipe
from epic_search.training.trainer import StepReport, train

COLOURS = ["red", "green", "blue", "black"]
ANIMALS = ["cat", "dog", "bird"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 pairs of two tasks and 120 texts with two conflicting views."""
    rows = [
        {"task": f"task {i % 2}", "query": f"q {i}", "positive": f"the passage {i}", "negatives": [f"not {i}"]}
        for i in range(40)
    ]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    texts = [
        {
            "text": f"{COLOURS[i % 4]} {ANIMALS[i % 3]} {i}",
            "labels": {"colour": COLOURS[i % 4], "animals": [ANIMALS[i % 3]]},
        }
        for i in range(120)
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return tmp_path


@pytest.fixture
def recipe(data: Path, tiny_config: EncoderConfig) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "encoder": tiny_config.model_dump(),
            "data": {
                "pairs": [{"files": str(data / "pairs*.gz")}],
                "labels": [{"files": [str(data / "labels.jsonl")], "weight": 0.5}],
                "heldout": 6,
            },
            "objective": {"distill_weight": 0.5},
            "optimizer": {"steps": 6, "batch_size": 8, "warmup_steps": 2, "precision": "float32"},
            "checkpoint_steps": 2,
        }
    )


class StopError(Exception):
    """Stands for a kill: raised in the middle of a run."""


def stop_after(step: int, rows: list[StepReport]) -> Callable[[StepReport], None]:
    def report(row: StepReport) -> None:
        rows.append(row)
        if row.step == step:
            raise StopError

    return report


def test_a_stopped_run_continues_exactly(recipe: Recipe, tmp_path: Path) -> None:
    whole: list[StepReport] = []
    result = train(recipe, out=tmp_path / "whole", device="cpu", report=whole.append)
    parts: list[StepReport] = []
    with pytest.raises(StopError):
        train(recipe, out=tmp_path / "parts", device="cpu", report=stop_after(5, parts))
    resumed: list[StepReport] = []
    again = train(recipe, out=tmp_path / "parts", device="cpu", resume=True, report=resumed.append)
    assert [row.step for row in resumed] == [5, 6], "at most one checkpoint interval is done again"
    assert [(row.source, row.loss) for row in parts[:4] + resumed] == [(row.source, row.loss) for row in whole]
    for file in ("projectors.safetensors", "lora/adapter_model.safetensors"):
        mine, theirs = load_file(again.encoder / file), load_file(result.encoder / file)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert again.before == result.before and again.after == result.after and result.after.pairs == 6
    assert [path.name for path in (tmp_path / "parts").glob("state-*")] == ["state-0000006"]
    assert Encoder.load(again.encoder, device="cpu", dtype="float32").name == "test"


def test_a_gradient_cache_changes_memory_and_nothing_else(recipe: Recipe, tmp_path: Path) -> None:
    def losses(name: str, **changes: object) -> list[float]:
        rows: list[StepReport] = []
        changed = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=changes)})
        train(changed, out=tmp_path / name, device="cpu", report=rows.append)
        return [row.loss for row in rows]

    np.testing.assert_allclose(losses("cached", gradient_cache=True, token_budget=64), losses("plain"), atol=1e-4)


def test_training_changes_the_vectors_and_lowers_the_loss(recipe: Recipe, tmp_path: Path) -> None:
    rows: list[StepReport] = []
    longer = recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"steps": 30, "learning_rate": 3e-3})}
    )
    train(longer, out=tmp_path / "run", device="cpu", report=rows.append)
    losses = [row.with_demonstrations for row in rows if not row.source.startswith("labels/")]
    assert len(losses) > 15 and np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_a_run_folder_is_not_overwritten(recipe: Recipe, tmp_path: Path) -> None:
    short = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"steps": 1})})
    train(short, out=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        train(short, out=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="a run of another recipe"):
        train(recipe, out=tmp_path / "run", device="cpu", resume=True)


def test_training_continues_from_a_checkpoint(recipe: Recipe, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    onward = Recipe.model_validate({**recipe.model_dump(exclude={"encoder"}), "start": str(tiny_encoder_folder)})
    onward = onward.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"steps": 1})})
    result = train(onward, out=tmp_path / "run", device="cpu")
    start = load_file(tiny_encoder_folder / "lora" / "adapter_model.safetensors")
    moved = load_file(result.encoder / "lora" / "adapter_model.safetensors")
    assert start.keys() == moved.keys()
    assert 0 < max(np.abs(start[name] - moved[name]).max() for name in start) < 0.01


def test_a_residual_is_calibrated_once(recipe: Recipe, tmp_path: Path) -> None:
    """Before the first step of a new encoder; whoever trains it further goes by what was taken then."""
    assert recipe.encoder is not None and recipe.encoder.contextual is not None
    contextual = recipe.encoder.contextual.model_copy(update={"residual": True})
    config = recipe.encoder.model_copy(update={"contextual": contextual})
    first = train(recipe.model_copy(update={"encoder": config}), out=tmp_path / "first", device="cpu")
    further = recipe.model_copy(update={"encoder": None, "start": str(first.encoder), "name": "further", "seed": 9})
    second = train(further, out=tmp_path / "second", device="cpu")
    before, after = (load_file(result.encoder / "projectors.safetensors") for result in (first, second))
    for name, untouched in (("residual.mean", 0.0), ("residual.scale", 1.0)):
        assert not np.allclose(before[name], untouched)
        np.testing.assert_array_equal(after[name], before[name])
    assert Encoder.load(second.encoder, device="cpu", dtype="float32").encode_passages(["a"]).shape == (1, 16)


def test_batches_are_a_function_of_the_seed_and_the_step(recipe: Recipe) -> None:
    def texts(seed: int) -> list[list[str]]:
        mixture = Mixture(recipe.data, batch_size=8, steps=20, seed=seed)
        return [mixture.batch(step).queries + mixture.batch(step).passages for step in range(20)]

    assert texts(1) == texts(1) != texts(2)


def test_an_epoch_repeats_nothing_and_heldout_pairs_never_appear(recipe: Recipe) -> None:
    mixture = Mixture(recipe.data.model_copy(update={"labels": []}), batch_size=8, steps=12, seed=3)
    held = {pair.query for pair in mixture.heldout}
    assert len(held) == 6
    seen: dict[str, list[str]] = {}
    for step in range(12):
        batch = mixture.batch(step)
        assert len({task for task in batch.tasks if task}) <= 1, "single-task batches"
        assert not held & set(batch.queries)
        seen.setdefault(batch.source, []).extend(batch.queries)
    for queries in seen.values():
        assert len(set(queries[:16])) == 16, "two batches of 8 fit into an epoch of 17 or more"


def test_label_batches_hold_conflicting_relations(data: Path) -> None:
    source = LabelSource(data / "labels.jsonl", LabelData(files="x", instruction_dropout=0.5), weight=1)
    conflicts = 0
    for seed in range(10):
        batch = source.batch(16, np.random.default_rng(seed))
        for i, (query, group) in enumerate(zip(batch.queries, batch.group_Q, strict=True)):
            words = query.split()[:2]
            shared = [k for k in (0, 1) if batch.passages[i].split()[k] == words[k]]
            assert shared, "a positive agrees in some view"
            for j in np.flatnonzero(batch.allowed_QP[i]):
                if j != i:
                    theirs = batch.passages[j].split()[:2]
                    conflicts += any(a == b for a, b in zip(words, theirs, strict=True))
            assert batch.tasks[i] is None or batch.tasks[i].endswith(
                ("same colour as the given one", "same animals as the given one")
            )
            assert {batch.tasks[j] for j in np.flatnonzero(batch.group_Q == group)} == {batch.tasks[i]}
    assert conflicts > 100, "negatives agree with the query in the other view"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"steps": 0}}, r"(?s)optimizer\.steps.*Input should be greater"),
        ({"optimizer": {"steps": 5, "lr": 1}}, r"(?s)optimizer\.lr.*Extra inputs"),
        ({"start": "epic-mini"}, "exactly one of start"),
        ({"data": {}}, "nothing to learn from"),
        ({"data": {"pairs": [{"files": "a", "dataset": "b"}]}}, "exactly one of files, dataset and builtin"),
    ],
)
def test_a_wrong_recipe_is_named(tiny_config: EncoderConfig, change: dict, message: str) -> None:
    fields = {
        "name": "x",
        "encoder": tiny_config.model_dump(),
        "data": {"pairs": [{"files": "a"}]},
        "optimizer": {"steps": 5},
        **change,
    }
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"= 3", "not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"name = 'x'", "wrong at data"),
    ],
)
def test_an_unreadable_recipe_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        recipes.load(path)


@pytest.mark.parametrize("name", ["epic-mini-1", "epic-mini", "quickstart"])
def test_the_recipes_that_come_with_us_are_valid(name: str) -> None:
    assert recipes.load(Path(__file__).parents[2] / "train" / "recipes" / f"{name}.toml").name == name


def test_pairs_from_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"q": "a", "doc": "b", "bad": "c"}\n{"q": "d", "doc": "e", "bad": "f"}\n')
    data = PairData(
        dataset=str(tmp_path), columns={"query": "q", "positive": "doc", "negatives": "bad"}, task="the task"
    )
    [(name, pairs)] = load_pairs(data).items()
    assert name == f"{tmp_path}: the task"
    assert [(p.task, p.query, p.positive, p.negatives) for p in pairs] == [
        ("the task", "a", "b", ("c",)),
        ("the task", "d", "e", ("f",)),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "a"}', "line 1: a pair needs the texts"),
        ('{"query": "a", "positive": " "}', "line 1: a pair needs the texts"),
        ('{"query": "a", "positive": "b", "negatives": [1]}', "line 1: a pair needs the texts"),
        ("[1]", "line 1: expected a JSON object"),
        ("{", "line 1: not JSON"),
    ],
)
def test_a_wrong_pair_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        load_pairs(PairData(files=str(tmp_path / "p.jsonl")))


def test_globs_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setenv("EPIC_SEARCH_DATA", str(tmp_path))
    assert recipes.expand("${EPIC_SEARCH_DATA}/*.jsonl") == [tmp_path / "a.jsonl"]
    assert recipes.expand([f"${{NOT_SET_AT_ALL:-{tmp_path}}}/a.jsonl"]) == [tmp_path / "a.jsonl"]
    with pytest.raises(UserError, match="no file matches"):
        recipes.expand("${EPIC_SEARCH_DATA}/b*.jsonl")
    with pytest.raises(UserError, match="NOT_SET_AT_ALL, which is not set"):
        recipes.expand("${NOT_SET_AT_ALL}/x")


def test_batches_do_not_depend_on_pythons_hash_seed(data: Path) -> None:
    """A resumed run is a new process; sets of strings come in another order there."""
    path = data / "labels.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["labels"]["colour"] = [row["labels"]["colour"], f"shade {number % 7}", f"tone {number % 5}"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from epic_search.training.labels import LabelSource; from epic_search.training.recipe import LabelData\n"
        "source = LabelSource(Path(sys.argv[1]), LabelData(files='x'), weight=1)\n"
        "print([source.batch(16, np.random.default_rng(s)).passages for s in range(5)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1000


def test_too_little_data_for_a_batch(recipe: Recipe, tmp_path: Path) -> None:
    bigger = recipe.model_copy(
        update={
            "optimizer": recipe.optimizer.model_copy(update={"batch_size": 64}),
            "data": recipe.data.model_copy(update={"labels": []}),
        }
    )
    with pytest.raises(UserError, match=r"as many as batch_size = 64 pairs.*pairs: task 0 \(\d+ pairs\)"):
        train(bigger, out=tmp_path / "run", device="cpu")


def test_a_killed_checkpoint_write_leaves_the_last_one(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(recipe, out=tmp_path / "run", device="cpu", report=stop_after(3, []))
    shutil.copytree(tmp_path / "run" / "state-0000002", tmp_path / "run" / "state-0000004.tmp")
    (tmp_path / "run" / "state-0000004.tmp" / "progress.json").unlink()
    rows: list[StepReport] = []
    train(recipe, out=tmp_path / "run", device="cpu", resume=True, report=rows.append)
    assert rows[0].step == 3


@pytest.mark.parametrize(
    "labels", [3, {"view": 3}, {"view": ["a", None]}, None], ids=["number", "number in view", "null", "none"]
)
def test_wrong_labels_name_their_line(tmp_path: Path, labels: object) -> None:
    (tmp_path / "l.jsonl").write_text(json.dumps({"text": "t", "labels": labels}) + "\n")
    with pytest.raises(UserError, match="line 1: expected"):
        LabelSource(tmp_path / "l.jsonl", LabelData(files="x"), weight=1)


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"query": "a", "positive": "b"}).encode() * 1000)
    for name, content in {"cut": whole[:-20], "garbled": whole[:20] + b"\xff" * 20 + whole[40:]}.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read|not JSON"):
            load_pairs(PairData(files=str(tmp_path / f"{name}.jsonl.gz")))


def test_a_mistake_in_the_data_leaves_no_run_behind(recipe: Recipe, tmp_path: Path) -> None:
    wrong = recipe.model_copy(update={"data": recipe.data.model_copy(update={"heldout": 39})})
    with pytest.raises(UserError, match="more than half"):
        train(wrong, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="holds no run to resume"):
        train(recipe, out=tmp_path / "run", device="cpu", resume=True)


def test_a_run_in_bfloat16_is_that_in_float32_but_for_rounding(
    wide_config: EncoderConfig,
    small_recipe: Callable[..., Recipe],
    run: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On AMX tiles, where there are any, as under autocast, and with the gradient cache."""

    def losses(name: str, compiling: str, **settings: object) -> np.ndarray:
        monkeypatch.setenv("EPIC_SEARCH_COMPILE", compiling)
        recipe = small_recipe(encoder=wide_config.model_dump(), optimizer=settings, objective={"demonstrations": 3})
        return np.array([loss for _, loss in run(recipe, name)[1]])

    exact = losses("float32", "off", precision="float32")
    for compiling, cache in (("off", False), ("auto", False), ("auto", True)):
        found = losses(f"{compiling}-{cache}", compiling, precision="bfloat16", gradient_cache=cache)
        assert np.abs(found - exact).max() < 0.15, (compiling, cache, found, exact)  # of losses of 4 to 5
