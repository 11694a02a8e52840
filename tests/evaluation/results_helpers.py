"""Made-up results, written by mteb itself in the layout that an evaluation leaves behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.results import TaskResult

FORMS = {
    "retrieval": ("ndcg_at_10", "mean"),
    "reranking": ("map_at_1000", "mean"),
    "sts": ("cosine_spearman", "spearman"),
    "pair_classification": ("max_ap", "average_precision"),
    "classification": ("accuracy", "mean"),
    "clustering": ("v_measure", "runs"),
}


def write_result(
    out: Path,
    *,
    task: str = "Task",
    kind: str = "retrieval",
    model: str = "small",
    revision: str = "abc123",
    values: Sequence[float] = (0.25, 0.5, 0.75),
    gold: Sequence[float] = (),
    score: float | None = None,
    ids: Sequence[str] | None = None,
    experiment: dict[str, Any] | None = None,
    dataset_revision: str = "data1",
    with_items: bool = True,
    prompt: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    label: str | None = None,
) -> Path:
    """Write one result and its items; returns the result's file. Without `score` it is the mean of the values."""
    experiment = experiment or {}
    seed = experiment.get("seed") if experiment.get("demos") else None
    block = {
        "kind": kind,
        "label": label or model,
        "prompt": {
            "instruction": "Given a query, retrieve what answers it",
            "demonstrations": [],
            "control": experiment.get("control"),
            "seed": seed,
            "classes": None,
            **(prompt or {}),
        },
        "cost": {
            "queries": len(values),
            "query_tokens": 12.5,
            "query_ms": 4.0,
            "texts": 200,
            "tokens": 4000,
            "encode_seconds": 2.0,
            "wall_seconds": 2.5,
            **(cost or {}),
        },
        "settings": {
            "search": "index",
            "max_length": 512,
            "dtype": "float32",
            "device": "cpu",
            "machine": "2 x test processor",
            **(settings or {}),
        },
    }
    score = float(np.mean(values)) if score is None else score
    entry = {"main_score": score, "hf_subset": "default", "languages": ["eng-Latn"], "epic_search": block}
    result = TaskResult(
        dataset_revision=dataset_revision,
        task_name=task,
        mteb_version="2.26.24",
        scores={"test": [entry]},
        evaluation_time=2.5,
    )
    meta = ModelMeta.create_empty(
        overwrites={"name": f"test/{model}", "revision": revision, "experiment_kwargs": experiment or None}
    )
    cache = ResultCache(out)
    cache.save_to_cache(result, meta)
    path = cache.get_task_result_path(task, meta)
    if with_items:
        metric, form = FORMS[kind]
        items = {
            "metric": metric,
            "form": form,
            "ids": list(ids) if ids is not None else [str(i) for i in range(len(values))],
            "values": list(values),
            "gold": list(gold),
        }
        (path.parent / "items").mkdir(exist_ok=True)
        (path.parent / "items" / path.name).write_text(json.dumps(items))
    return path


def write_run(out: Path, **content: Any) -> None:
    """Write `run.json`."""
    (out / "run.json").write_text(json.dumps(content))
