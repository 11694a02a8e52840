"""Measures an encoder on its recipe's `[dev]` table while it trains, and leaves the training as it was."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.training.dev import Dev
from epic_search.training.heldout import measure
from epic_search.training.pairs import Pair
from epic_search.training.recipe_files import expand

if TYPE_CHECKING:
    from epic_search.evaluation.dev import DevSuite

HELDOUT, HELDOUT_METRIC = "heldout", "ndcg_at_10"


class DevMeter:
    """The held-out pairs and the tasks of a dev suite, read and checked.

    Raises UserError when mteb is needed and not installed, and for data that cannot be measured on.
    """

    def __init__(self, dev: Dev, heldout: Sequence[Pair]) -> None:
        self._heldout = heldout if dev.heldout else ()
        self._suite = _suite(dev) if dev.tasks else None

    def scores(self, encoder: Encoder) -> dict[str, dict[str, Any]]:
        """For the held-out pairs and each task its `metric` and main scores, as `DevSuite.scores` names them."""
        found: dict[str, dict[str, Any]] = {}
        with evaluation_mode(encoder.model):
            if self._heldout:
                quality = measure(encoder, self._heldout)
                found[HELDOUT] = {"metric": HELDOUT_METRIC, "without": quality.ndcg_at_10}
            if self._suite is not None:
                found |= self._suite.scores(encoder)
        return found


def _suite(dev: Dev) -> "DevSuite":
    # The one place where training looks at evaluation, which otherwise builds on training.
    from epic_search.evaluation.dev import DevSuite, require_mteb
    from epic_search.evaluation.tasks import folder_task

    require_mteb()
    tasks = [
        folder_task(path, instruction=task.instruction, limit=dev.limit, split=task.split, keep=dev.keep)
        for task in dev.tasks
        for path in expand(task.folder)
    ]
    names = Counter([HELDOUT, *(task.name for task in tasks)])
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"two of dev.tasks are called '{twice[0]}', after their folders; leave one out, or rename it")
    return DevSuite(tasks, demonstrations=dev.demonstrations, shuffled=dev.shuffled)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and the like off for a while; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
