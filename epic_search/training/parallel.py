"""Several processes that train as one, each on a device of its own, as torchrun and `accelerate launch` start them.

A batch is a pure function of the seed and the step, so every process knows all its rows. Each encodes its share; then
all see every vector, whoever encoded it (cross-batch negatives: RocketQA, arXiv 2010.08191), and compute the loss of
the whole batch. What a process sends back is that loss divided by the number of processes. Summed over them it is the
loss, once, so the gradients are those of one process, also through demonstrations, whose vectors come from everywhere.

Shapes: N rows of a batch, B of them this process's share, E width of a vector.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from epic_search.encoder.device import Device, choose_device
from epic_search.errors import UserError

PATIENCE = timedelta(hours=2)  # for what the first process does alone: measuring and writing


@dataclass(frozen=True)
class World:
    """This process, number `rank` of the `size` that share the work. `World()`: one by itself, which does all of it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The processes of torch's default group, or this one alone where there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes for all."""
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> np.ndarray:
        """Numbers of this process's rows: all are dealt out, longest first, so that everyone has about equal work."""
        return np.argsort(-np.asarray(lengths), kind="stable")[self.rank :: self.size]

    def gather(self, own_BE: Tensor, own_B: np.ndarray, *, count: int) -> Tensor:
        """(`count`, E) vectors of all rows, with gradients; this process brings those of the rows `own_B`."""
        # Even where its own vectors need no gradient, a process has to take part in the backward pass.
        whole_NE = own_BE.new_zeros(count, own_BE.shape[1]).requires_grad_(self.size > 1)
        return self.sum(whole_NE.index_copy(0, torch.from_numpy(own_B).to(own_BE.device), own_BE))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, with gradients."""
        return _Sum.apply(tensor) if self.size > 1 else tensor

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over all processes; a parameter that has none in any of them stays without."""
        if self.size == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        flat = torch.cat([used, *gradients])
        dist.all_reduce(flat)
        used, *sums = flat.split([len(used), *map(len, gradients)])
        for parameter, total, count in zip(parameters, sums, used.tolist(), strict=True):
            if count:
                parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def wait(self, *, agreeing_on: str = "") -> None:
        """Wait for all processes; raises UserError in each of them where they do not all say the same."""
        if self.size == 1:
            return
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, agreeing_on)
        for rank, other in enumerate(said):
            if other != said[0]:
                raise UserError(
                    f"process 0 has {said[0]}, but process {rank} has {other}; start all of them with the same files "
                    "and the same --out"
                )


ALONE = World()


class _Sum(torch.autograd.Function):
    """A sum over processes. Each process's part counts in the loss of all, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def meet() -> Store:
    """The store that all processes share, at the place that torchrun's environment variables name."""
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return store


@contextmanager
def group(store: Store, device: Device) -> Iterator[None]:
    """For as long as the context lasts, `World.current()` is the processes that met at the store.

    On GPUs each gets the one of its LOCAL_RANK. Raises UserError where there are more processes than GPUs.
    """
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    cuda = choose_device(device).type == "cuda"
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own, because torch sees only "
                f"{torch.cuda.device_count()}; start so many processes, or use --device cpu"
            )
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    yield
    # Not after an error: the others may be in the middle of something, and would never answer.
    dist.destroy_process_group()
