"""One model on one task under one condition: run it, and store what came out and how, or find that it is stored."""

import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError
from epic_search.evaluation.demonstrations import (
    WRONG_TASK,
    Pool,
    file_pool,
    task_pool,
    tested_texts,
)
from epic_search.evaluation.items import Recorder
from epic_search.evaluation.kinds import CLASS_KINDS, ClassDemonstrations, Control
from epic_search.evaluation.meter import WARM_UP_QUERIES
from epic_search.evaluation.models import Bound, Condition, EvaluatedModel
from epic_search.evaluation.results import BLOCK
from epic_search.evaluation.splits import load
from epic_search.evaluation.tasks import EvalTask, PairFile

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache
    from mteb.types import EncodeKwargs

WORK_FOLDER = "work"
LOADING: "EncodeKwargs" = {"batch_size": 256, "show_progress_bar": False}  # encoders make their own batches


class Pools:
    """The demonstrations of the tasks, each pool made once."""

    def __init__(self, *, pairs: Path | None, classes: ClassDemonstrations) -> None:
        self._pairs = pairs
        self._classes: ClassDemonstrations = classes
        self._last: tuple[str, Pool] | None = None

    def needed(self, task: EvalTask, condition: Condition) -> bool:
        """Whether demonstrations of a task are drawn from its pool, or are of the form that those would have."""
        drawn = condition.control in (None, "shuffled")
        return drawn or self.name_classes(task) or self._file(task) is not None

    def of(self, task: EvalTask, loaded: "AbsTask") -> Pool:
        """The pool of a task: the run's file of pairs, else the task's own, else its training split."""
        if self._last is None or self._last[0] != task.name:
            file = self._file(task)
            if file is not None:
                pool = file_pool(file, tested=tested_texts(loaded, task.kind))
            else:
                pool = task_pool(loaded, task.kind, classes=self._classes)
            self._last = (task.name, pool)
        return self._last[1]

    def record(self, task: EvalTask, control: Control | None) -> dict[str, Any]:
        """Where a task's demonstrations come from, and what one of a class shows."""
        if control == "random":
            return {"source": "random unit vectors", "classes": None}
        file = PairFile(WRONG_TASK) if control == "wrong-task" else self._file(task)
        if file is not None:
            rows = f", rows of '{file.task}'" if file.task else ""
            named = control == "wrong-task" and self.name_classes(task)
            return {
                "source": f"{file.path.name} (sha256 {file_digest(file.path)[:12]}){rows}",
                "classes": self._classes if named else None,
            }
        return {"source": "training split", "classes": self._classes if task.kind in CLASS_KINDS else None}

    def name_classes(self, task: EvalTask) -> bool:
        """Whether demonstrations of a task name classes because the run asks for it."""
        return self._classes != "examples" and task.kind in CLASS_KINDS and self._file(task) is None

    def _file(self, task: EvalTask) -> PairFile | None:
        return PairFile(self._pairs) if self._pairs is not None else task.pairs


class Job:
    """One model on one task under one condition."""

    def __init__(
        self, model: EvaluatedModel, task: EvalTask, condition: Condition, cache: "ResultCache", out: Path
    ) -> None:
        self.model = model
        self.task = task
        self.condition = condition
        self.cache = cache
        self.work = out / WORK_FOLDER
        self.meta = model.meta(condition)
        self.mteb_task = task.make()
        self.file: Path = cache.get_task_result_path(self.mteb_task.metadata.name, self.meta)
        self.items_file = self.file.parent / "items" / self.file.name

    def stored_score(self, pools: Pools) -> float | None:
        """The main score of a finished result, if it is of the same data and the same prompt."""
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            blocks = [entry[BLOCK] for split in stored["scores"].values() for entry in split]
            json.loads((self.file.parent / "model_meta.json").read_text(encoding="utf-8"))
            if any(block.get("items", True) for block in blocks):
                json.loads(self.items_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # absent, cut off by a kill, or not one of ours
        if stored["dataset_revision"] != self.mteb_task.metadata.dataset["revision"]:
            return None
        parts = {(split, entry["hf_subset"]) for split, entries in stored["scores"].items() for entry in entries}
        wanted = {(split, subset) for split in self.mteb_task.eval_splits for subset in self.mteb_task.hf_subsets}
        if parts != wanted:
            return None
        if any(self.model.dtype not in (None, block["settings"]["dtype"]) for block in blocks):
            return None  # of another machine, where "auto" meant another precision
        expected = self._prompt_record(pools)
        if any({key: block["prompt"].get(key) for key in expected} != expected for block in blocks):
            return None
        return statistics.fmean(entry["main_score"] for split in stored["scores"].values() for entry in split)

    def run(self, pools: Pools) -> float:
        """Evaluate and store; returns the main score."""
        import mteb

        # From here on an older result is out of date, also when this one fails.
        self.file.unlink(missing_ok=True)
        started = time.perf_counter()
        task = self.mteb_task
        load(task)
        pool = pools.of(self.task, task) if self.condition.demos and pools.needed(self.task, self.condition) else None
        bound = self.model.bind(instruction=self.task.instruction, pool=pool, condition=self.condition, work=self.work)
        recorder = Recorder(task, self.task.kind)
        loading_ended = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            evaluated = mteb.evaluate(
                bound.model,
                task,
                cache=None,
                encode_kwargs=LOADING.copy(),
                prediction_folder=recorder.prediction_folder(Path(folder)),
                show_progress_bar=False,
                co2_tracker=False,
            )
            [result] = evaluated.task_results
            items = recorder.items(result, Path(folder))
        timing = {
            "load_seconds": loading_ended - started,
            "wall_seconds": time.perf_counter() - started,
        }
        block = self._block(bound, pools, timing) | {"items": items is not None}
        entries: Any = [entry for split in result.scores.values() for entry in split]
        for entry in entries:
            entry[BLOCK] = block
        if items is not None:
            write_json(self.items_file, items)
        self.cache.save_to_cache(result, self.meta, encode_kwargs=LOADING)
        return float(result.main_score)

    def _block(self, bound: Bound, pools: Pools, timing: dict[str, float]) -> dict[str, Any]:
        """What is kept beside the scores: how they came about."""
        meter = bound.meter
        return {
            "kind": self.task.kind,
            "label": self.model.label,
            "prompt": self._prompt_record(pools) | {"demonstrations": bound.demonstrations, "kind": bound.demos_kind},
            "cost": {
                "queries": meter.queries,
                "query_tokens": meter.query_tokens / meter.queries if meter.queries and meter.query_tokens else None,
                "query_ms": _query_ms(bound),
                "texts": meter.texts,
                "tokens": round(meter.tokens),
                "encode_seconds": meter.encode_seconds,
                **timing,
            },
            "settings": {**bound.settings, **self._search(bound), "machine": machine(), "versions": versions()},
        }

    def _search(self, bound: Bound) -> dict[str, Any]:
        # Candidates that a task brings along are ranked without an index, whatever the settings.
        reranked = self.task.kind == "reranking" and bound.settings["search"] == "index"
        return {"search": "exact"} if reranked else {}

    def _prompt_record(self, pools: Pools) -> dict[str, Any]:
        """All that decides about the prompt; the demonstrations follow from it."""
        instruction = self.task.instruction if self.model.demos_kind is not None else None
        if self.condition.demos == 0:
            return {"instruction": instruction, "control": None, "seed": None, "source": None, "classes": None}
        own = {"instruction": instruction, "control": self.condition.control, "seed": self.condition.seed}
        return own | pools.record(self.task, self.condition.control)


def _query_ms(bound: Bound) -> float | None:
    """Median milliseconds of a query by itself; None where the model saw no queries."""
    seconds = [bound.query_seconds(query) for query in bound.meter.some_queries]
    timed = seconds[WARM_UP_QUERIES:] or seconds
    return 1000 * statistics.median(timed) if timed else None


def machine() -> str:
    """The processor or GPU, and how many cores there are."""
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:  # not Linux
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {cpu}{gpu}"


def versions() -> dict[str, str]:
    """Python's version and those of the packages that have a part in the scores."""
    packages = ("epic-search", "mteb", "torch", "transformers", "qdrant-edge-py")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def file_digest(file: Path) -> str:
    """Hex sha256; raises UserError when the file cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error


def write_json(file: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)
