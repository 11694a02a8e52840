"""A dev suite: tasks that an encoder in training is measured on again and again, in memory and without results kept."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from epic_search.encoder import Encoder, Prompt
from epic_search.errors import UserError
from epic_search.evaluation.demonstrations import Pool, make_prompt, task_pool
from epic_search.evaluation.folder import TRAIN
from epic_search.evaluation.job import LOADING
from epic_search.evaluation.kinds import Control
from epic_search.evaluation.meter import Meter
from epic_search.evaluation.ours import ExactSearch
from epic_search.evaluation.runner import hush
from epic_search.evaluation.splits import load, subsets
from epic_search.evaluation.tasks import EvalTask

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

SEED = 0  # of the demonstrations: the same ones each time


def require_mteb() -> None:
    """Raise UserError where mteb, which computes the scores, is not installed."""
    if find_spec("mteb") is None:
        raise UserError(
            "measuring on dev.tasks needs mteb; install it with pip install 'epic-search[eval]', or take the tasks out "
            "of the recipe"
        )


class DevSuite:
    """Tasks with their demonstrations, ready to be measured.

    `demonstrations`: how many each prompt shows beside the prompt without any, 0 for none; with `shuffled` they are
    shown once more, each query with a passage that is wrong for it. Their texts come from the training splits and stay
    the same; a task without that split is measured without. Raises UserError where that is all of them.
    """

    def __init__(self, tasks: Sequence[EvalTask], *, demonstrations: int, shuffled: bool) -> None:
        hush()
        self._tasks = tasks
        self._k = demonstrations
        self._controls: dict[str, Control | None] = {"with_demonstrations": None}
        if shuffled:
            self._controls["shuffled"] = "shuffled"
        self._pools: dict[str, Pool] = {}
        for task in tasks if demonstrations else ():
            made = _loaded(task)
            if any(TRAIN in splits for _, splits in subsets(made)):
                self._pools[task.name] = task_pool(made, task.kind, classes="examples")
        if demonstrations and not self._pools:
            raise UserError(
                f"dev.demonstrations = {demonstrations}, but none of dev.tasks has a training split to take them from; "
                "set it to 0, or add a task with train.jsonl or qrels/train.tsv"
            )

    def scores(self, encoder: Encoder) -> dict[str, dict[str, Any]]:
        """For each task its `metric` and the main scores `without`, `with_demonstrations` and `shuffled`."""
        return {task.name: self._scores(task, encoder) for task in self._tasks}

    def _scores(self, task: EvalTask, encoder: Encoder) -> dict[str, Any]:
        pool = self._pools.get(task.name)
        cache: dict[str, Any] = {}
        prompts = {"without": encoder.prompt(task=task.instruction)}
        for name, control in self._controls.items() if pool is not None else ():
            prompts[name] = make_prompt(
                encoder, instruction=task.instruction, pool=pool, k=self._k, seed=SEED, control=control
            )
        scores = {name: _main_score(task, encoder, prompt, cache) for name, prompt in prompts.items()}
        return {"metric": task.make().metadata.main_score} | scores


def _main_score(task: EvalTask, encoder: Encoder, prompt: Prompt, cache: dict[str, Any]) -> float:
    """`cache` keeps the corpus from one prompt to the next."""
    import mteb
    from mteb.models import ModelMeta

    meta = ModelMeta.create_empty(overwrites={"name": "epic-search/in-training", "revision": "none"})
    model = ExactSearch(encoder, prompt=prompt, meta=meta, meter=Meter(), cache=cache)
    [result] = mteb.evaluate(
        model, _loaded(task), cache=None, encode_kwargs=LOADING.copy(), show_progress_bar=False, co2_tracker=False
    ).task_results
    return float(result.main_score)


def _loaded(task: EvalTask) -> "AbsTask":
    made = task.make()
    load(made)
    return made
