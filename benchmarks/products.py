"""How fast are matrix products on AMX tiles, beside torch's, each with what follows it in a layer?

    python benchmarks/products.py
    python benchmarks/products.py --threads 2 --rows 1024 --rows 2048

The shapes of SmolLM2-135M and of MiniLM-L6, in bfloat16; ours as `Compiled` does them, in int8 as well, torch's with
the compiled gated SiLU or with torch's GELU. They take turns; GFLOP/s, two FLOPs a multiplication, a second of one core
(of processor time, so that a machine with other work to do can be used), median; and of all products of a layer
together.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from rounds import take_turns
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.passes import Compiled, compiled
from epic_search.encoder.tiles import WORTH, Weight

WORK = 2e9  # FLOPs of a turn, at least
LAYERS = {
    "decoder": ((576, 960, ""), (576, 576, ""), (576, 3072, "gated"), (1536, 576, "")),
    "BERT": ((384, 1152, ""), (384, 384, ""), (384, 1536, "gelu"), (1536, 384, "")),
}


@torch.inference_mode()
def main(
    rows: Annotated[list[int], typer.Option()] = [16, 128, 512, 1024, 2048],  # noqa: B006
    threads: int = 1,
    rounds: int = 11,
) -> None:
    """Measure products."""
    torch.set_num_threads(threads)
    library = compiled(build=True)
    if not isinstance(library, Compiled) or not library.has_tiles:
        raise SystemExit(f"there are no products on tiles here: {library}")
    for count in rows:
        for layer, shapes in LAYERS.items():
            work, seconds = 0.0, [0.0, 0.0, 0.0]
            for inputs, outputs, then in shapes:
                flops = 2.0 * count * inputs * outputs
                times = max(1, int(WORK / flops))
                setups = ways(library, count, inputs, outputs, then, times=times)
                turns = take_turns(setups, rounds=rounds, clock=time.process_time)
                found = [statistics.median(taken) / times for taken in turns.values()]
                report(f"{count:5} x {inputs:4} -> {outputs:4} {then:5}", flops, found)
                work, seconds = work + flops, [a + b for a, b in zip(seconds, found, strict=True)]
            report(f"{count:5} {layer}", work, seconds)


def ways(
    library: Compiled, rows: int, inputs: int, outputs: int, then: str, *, times: int
) -> dict[str, Callable[[], None]]:
    """The same product by torch, by ours and by ours in int8, so many times."""
    torch.manual_seed(0)
    states = torch.randn(rows, inputs).bfloat16()
    plain = (torch.randn(outputs, inputs) / inputs**0.5).bfloat16()
    weight, coarse = (Weight(plain, gated=then == "gated", int8=int8) for int8 in (False, True))
    weight.fits(states.new_empty(WORTH, inputs))
    after: Callable[[Tensor], Tensor] = {"": lambda x: x, "gated": library.gate, "gelu": F.gelu}[then]
    own = {"": library.linear, "gated": library.gated, "gelu": library.gelu}[then]
    return {
        "torch": partial(repeat, lambda: after(F.linear(states, plain)), times),
        "ours": partial(repeat, lambda: own(states, weight), times),
        "int8": partial(repeat, lambda: own(states, coarse), times),
    }


def repeat(run: Callable[[], Tensor], times: int) -> None:
    """Results are dropped."""
    for _ in range(times):
        run()


def report(name: str, flops: float, seconds: list[float]) -> None:
    """torch's rate, ours and that of int8; how many times as fast as torch's ours is, and int8 as ours."""
    theirs, ours, coarse = seconds
    rates = "".join(f"{flops / taken / 1e9:8,.0f}" for taken in seconds)
    print(f"{name:28}{rates}{theirs / ours:8.2f}{ours / coarse:8.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
