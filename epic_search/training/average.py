"""An exponential moving average of the trained weights, which has less of each step's noise than the last ones have.

After step t it is the sum over steps i of (1 - decay) decay^(t - i) w_i / (1 - decay^t). The divisor leaves the weights
from before the first step without a share, as in Adam's averages (arXiv 1412.6980, section 3): a short run is averaged
over its own steps only.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

AVERAGE = "average.safetensors"


class MovingAverage:
    """The average of some parameters, of the same shapes and on the same device."""

    def __init__(self, parameters: Sequence[Tensor], *, decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after a step, counted from 1."""
        share = (1 - self._decay) / (1 - self._decay**step)
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, share)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Give the parameters their average."""
        for average, parameter in zip(self._average, self._parameters, strict=True):
            parameter.copy_(average)

    def save(self, folder: Path) -> None:
        """Write the average into the folder of a checkpoint."""
        from safetensors.torch import save_file

        tensors = {str(i): average.cpu().contiguous() for i, average in enumerate(self._average)}
        save_file(tensors, folder / AVERAGE)

    def load(self, folder: Path) -> None:
        """Continue with the average of a checkpoint."""
        from safetensors.torch import load_file

        saved = load_file(folder / AVERAGE)
        for i, average in enumerate(self._average):
            average.copy_(saved[str(i)])
