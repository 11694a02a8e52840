"""Where the numbers of a run go besides its own logs: a tracker, chosen by name when the run begins."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from epic_search.errors import UserError

TrackerName = Literal["tensorboard"]
FOLDER = "tensorboard"


class Tracker(Protocol):
    """Takes named numbers step by step."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, counted from 1; 0 is before the first."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files under `RUN/tensorboard`, which `tensorboard --logdir RUN` shows."""

    def __init__(self, run: Path, *, step: int) -> None:
        """`step`: the last one done; what a stopped run wrote of later ones is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / FOLDER), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


def check_tracker(name: TrackerName) -> None:
    """Raise UserError where the tracker's package is not installed."""
    assert name == "tensorboard", name
    if find_spec("tensorboard") is None:
        raise UserError(
            "--tracker tensorboard needs its package; install it with pip install 'epic-search[tensorboard]'"
        )
