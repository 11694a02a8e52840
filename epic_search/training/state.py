"""Checkpoints of a run: encoder, optimiser, moving average and progress in one folder, `state-N`, that appears whole or
not at all.

Only safetensors and JSON: nothing in a run folder can execute code when it is read.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from epic_search.encoder.encoder import Encoder
from epic_search.training.average import MovingAverage
from epic_search.training.heldout import Quality
from epic_search.training.status import PROGRESS

OPTIMIZER = "optimizer.safetensors"


@dataclass
class Progress:
    """Steps done, seconds spent, and the held-out quality before the first step."""

    step: int = 0
    seconds: float = 0.0
    before: Quality | None = None


def latest_state(out: Path) -> Path | None:
    """The folder of the last whole checkpoint of a run, if it has one."""
    return max(out.glob("state-*[0-9]"), default=None)


def save_state(
    out: Path,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: MovingAverage | None = None,
) -> None:
    """Write `state-N` for step N, then remove older ones."""
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        encoder.save(folder)
        save_file(_tensors(optimizer), folder / OPTIMIZER)
        if average is not None:
            average.save(folder)
        (folder / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")

    folder = out / f"state-{progress.step:07d}"
    replace_folder(folder, write)
    for old in out.glob("state-*[0-9]"):
        if old != folder:
            shutil.rmtree(old)


def load_state(folder: Path, optimizer: torch.optim.Optimizer, average: MovingAverage | None = None) -> Progress:
    """Fill optimiser and average and return the progress. The encoder is loaded with `Encoder.create(start=folder)`."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / OPTIMIZER).items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        average.load(folder)
    fields = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    before = Quality(**fields["before"]) if fields["before"] else None
    return Progress(fields["step"], fields["seconds"], before)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside the target and put it in the target's place."""
    fresh = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value.detach().cpu().contiguous()
        for index, values in state.items()
        for key, value in values.items()
    }
