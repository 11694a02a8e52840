"""What does a query cost with demonstrations, and what would it cost without a shared prefix?

    python benchmarks/query_latency.py --out query_latency.json
    python benchmarks/query_latency.py --rounds 5 --k 0 --k 8        # a minute

One query at a time, through a resident encoder: tokens, Contextual token, decoder, vector. Each round asks another
query of every set-up in turn. For k demonstrations, soft or as text (--tokens each, both texts together):

    cached       their keys and values were computed before: what `Searcher`, the server and the library do
    not cached   they are computed for this query, and thrown away: the first query of a process
    re-encoded   prompt and query are tokenised and run as one text through transformers, padded, in our precision: what
                 FlagEmbedding does for bge-en-icl, query by query. Beside it: the same text through our decoder
    FlagEmbedding itself, with --flag-embedding (see flag_embedding.py), of the decoder alone

`none` is the task alone (k = 0). Medians with 10th and 90th percentile in milliseconds, and the ratio to k = 0 cached.
Bytes are those of the cached keys and values.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flag_embedding import flag_embedding as make_peer
from rounds import facts, spread, take_turns, texts_of

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.encoder.device import Device, Dtype
from epic_search.encoder.prefix import Around, Prefixes
from epic_search.encoder.tokenizer import load_tokenizer

TASK = "Given a question, retrieve the text that answers it"


class NothingShared(Prefixes):
    """Every query is run with its whole prompt."""

    def share(self, around: Sequence[Around]) -> tuple[None, Sequence[Around]]:
        return None, around


def main(
    encoder: str = "epic-mini",
    k: Annotated[list[int], typer.Option(help="Numbers of demonstrations.")] = [0, 1, 4, 8, 16],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="Tokens of a text demonstration: 8 of them make 400.")] = 50,
    query_tokens: int = 12,
    rounds: int = 50,
    flag_embedding: Annotated[bool, typer.Option("--flag-embedding", help="FlagEmbedding itself, too.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: int = 7,
    out: Path | None = None,
) -> None:
    """Measure the latency of queries."""
    model = Encoder.load(encoder, device=device, dtype=dtype)
    tokenizer = load_tokenizer(model.checkpoint.backbone)
    queries = iter(np.resize(texts_of([query_tokens] * 64, tokenizer, seed=seed), 10**6))
    lengths = [tokens // 4, tokens - tokens // 4] * max(k)
    texts = texts_of(lengths, tokenizer, seed=seed + 1)
    shown = [Demonstration(query=q, passage=p) for q, p in zip(texts[::2], texts[1::2], strict=True)]
    prompts = {"none": model.prompt(task=TASK)} | {
        f"{kind} {number}": model.prompt(task=TASK, demonstrations=shown[:number], kind=kind)
        for number in k
        if number
        for kind in ("soft", "text")
    }
    kept = model.prefixes

    def ask(prompt: Prompt, *, prefixes: Callable[[], Prefixes] = lambda: kept, layout: str = "packed") -> None:
        model.prefixes = prefixes()
        if model.model.layout != layout:
            model.model.use_layout(layout)
        model.encode_queries([next(queries)], prompt=prompt)

    def fresh() -> Prefixes:
        return Prefixes(model.model, identity="")

    nothing = NothingShared(model.model, identity="")
    fast = model.model.layout
    setups: dict[str, Callable[[], None]] = {}
    for name, prompt in prompts.items():
        setups[f"{name}, cached"] = lambda prompt=prompt: ask(prompt, layout=fast)
        setups[f"{name}, not cached"] = lambda prompt=prompt: ask(prompt, prefixes=fresh, layout=fast)
        if name.startswith("text"):
            # Another prompt object each time: its texts are tokenised again.
            setups[f"{name}, re-encoded by our decoder"] = lambda prompt=prompt: ask(
                replace(prompt), prefixes=lambda: nothing, layout=fast
            )
            setups[f"{name}, re-encoded"] = lambda prompt=prompt: ask(
                replace(prompt), prefixes=lambda: nothing, layout="padded"
            )
    if flag_embedding:
        for number in k:
            peer = make_peer(model, task=TASK, demonstrations=shown[:number])
            setups[f"text {number}, FlagEmbedding"] = lambda peer=peer: peer(next(queries))
    seconds = take_turns(setups, rounds=rounds)
    ask(prompts["none"], layout=fast)
    sizes = {name: size_of(model, prompt) for name, prompt in prompts.items()}
    rows = {name: spread([1000 * s for s in found]) for name, found in seconds.items()}
    report(rows, sizes)
    if out is not None:
        settings = {"encoder": encoder, "dtype": str(model.dtype), "device": model.device.type, "rounds": rounds}
        result = facts(**settings, tokens=tokens, query_tokens=query_tokens) | {"milliseconds": rows, "prefix": sizes}
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def size_of(model: Encoder, prompt: Prompt) -> dict[str, int]:
    """Tokens and bytes of a prompt's prefix."""
    around = model.layout(prompt), torch.from_numpy(prompt.vectors_SE).to(model.device)
    prefix, _ = model.prefixes.share([around])
    return {"tokens": len(prefix), "bytes": prefix.nbytes} if prefix else {"tokens": 0, "bytes": 0}


def report(rows: dict[str, dict[str, float]], sizes: dict[str, Any]) -> None:
    """Print the table."""
    base = rows["none, cached"]["median"]
    print(f"{'':36}{'ms':>9}{'p10':>9}{'p90':>9}{'to k = 0':>10}{'tokens':>8}{'KiB':>8}")
    for name, row in rows.items():
        size = sizes.get(name.split(",")[0], {"tokens": 0, "bytes": 0})  # of no demonstrations, for a peer
        print(
            f"{name:36}{row['median']:9.2f}{row['p10']:9.2f}{row['p90']:9.2f}{row['median'] / base:10.2f}"
            f"{size['tokens']:8}{size['bytes'] / 1024:8.0f}"
        )
    for name in sizes:
        soft = name.replace("text", "soft")
        if name != soft:
            once, again = rows[f"{soft}, cached"]["median"], rows[f"{name}, re-encoded"]["median"]
            print(f"{soft} cached against {name} re-encoded: {again / once:.1f}x faster", end=", ")
            print(f"{sizes[name]['bytes'] / max(1, sizes[soft]['bytes']):.1f}x less memory than the text's cache")
            if (peer := f"{name}, FlagEmbedding") in rows:
                print(f"{soft} cached against {peer}: {rows[peer]['median'] / once:.1f}x faster")


if __name__ == "__main__":
    typer.run(main)
