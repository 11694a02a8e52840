"""How fast do we encode, beside sentence-transformers and transformers on the same weights, and how far from the limit?

    python benchmarks/encode.py --out encode.json
    python benchmarks/encode.py --layers 2 --tokens 4000 --rounds 2 --no-tune --no-others     # a minute
    python benchmarks/encode.py --processor-time           # on a machine that has other work to do

A language model (the first --layers of --backbone) with its end-of-sequence state as the vector. BOS and EOS are put
around every text by the tokenizer of the folder that all of them load, so that all read the same ids; before anything
is timed, the vectors of each are compared with transformers' in float32: cosines, and how many of a text's ten nearest
are the same. Texts are from the documentation of Python's standard library:

    short    16 tokens      medium   128 tokens      long   512 tokens
    mixed    log-normal around 90 tokens, 8 to 512

    ours                    Encoder.encode_passages
    ours, int8              the same with products in int8, where ours are in bfloat16 and the processor has AMX
    ours, not compiled      the same with the element-wise passes of torch, as where there is no C++ compiler
    sentence-transformers   SentenceTransformer.encode, with the attention and batch size that were fastest on them
    transformers            AutoModel on batches sorted by length and padded, attention and batch size likewise
    OpenVINO, and int8, ONNX Runtime int8     on a CPU, where they are installed: see runtimes.py; batch size likewise

All others compute in the same precision. They take turns, round by round: median, 10th and 90th percentile of tokens a
second, or with --processor-time a second of one core, in which threads that wait for work in a loop count, too.
The limit is what this machine reaches in plain products of the model's own matrix shapes, in the same precision, with
as many rows as a batch has tokens, measured in turns with the rest. FLOPs are those of the linear layers and of causal
attention, two a multiplication; `share` is their rate in ours over that of the plain products: of all FLOPs of the
model, and of those that ours does, which leaves out, of the last layer, all but what is read.

The roofline: bytes are the least that must move, the matrices once a batch, and what each product reads and writes once
a token; the rate at which memory is copied is measured in turns, too. `bound` says which of the two takes longer, at
its measured rate, and `of the roofline` what part of ours that longer time is.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import typer
from rounds import Seconds, facts, spread, take_turns, texts_of
from runtimes import Padded, runtimes, versions
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from training import without_chat

from epic_search.encoder import Encoder, weights
from epic_search.encoder.backbone import load_backbone, save_model
from epic_search.encoder.batching import batches, token_budget
from epic_search.encoder.device import DTYPES, Device, choose_device, choose_dtype
from epic_search.encoder.passes import VARIABLE, Compiled, tiles_on
from epic_search.encoder.tokenizer import load_tokenizer

LONGEST = 510  # and BOS and EOS
BATCH_SIZES = (8, 32, 128)
ATTENTIONS = ("sdpa", "eager")
CALIBRATION = 64  # texts that set the scales of int8


def main(
    backbone: str = "smollm2-135m-instruct",
    layers: Annotated[int | None, typer.Option(help="So many layers of it. Default: all.")] = 6,
    tokens: Annotated[int, typer.Option(help="Tokens of each set of texts.")] = 16384,
    rounds: int = 5,
    device: Device = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    tune: bool = True,
    others: Annotated[bool, typer.Option(help="OpenVINO and ONNX Runtime as well.")] = True,
    processor_time: bool = False,
    seed: int = 7,
    out: Path | None = None,
) -> None:
    """Measure encoding."""
    where = choose_device(device)
    precision = DTYPES[choose_dtype(dtype, where).value]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_model(folder, backbone, layers=layers, dtype=precision)
        tokenizer = load_tokenizer(folder)
        ours = Encoder.load(folder, device=where.type, dtype=dtype)
        coarse = None
        if precision == torch.bfloat16 and isinstance(tiles_on(where), Compiled):
            coarse = Encoder.load(folder, device=where.type, dtype="int8")
        compiled = {}
        if others and where.type == "cpu":
            lengths = sets(LONGEST * CALIBRATION, seed=seed + 1)["mixed"][:CALIBRATION]
            compiled = runtimes(folder, precision=precision, calibration=texts_of(lengths, tokenizer, seed=seed + 1))
        turns = partial(take_turns, clock=time.process_time if processor_time else time.perf_counter)
        results = {}
        for name, lengths in sets(tokens, seed=seed).items():
            texts = texts_of(lengths, tokenizer, seed=seed)
            cost = Cost.of(ours, [len(ids) for ids in ours.token_ids(texts)])
            own = partial(ours.encode_passages, texts)
            setups: dict[str, Callable[[], Any]] = {"ours": own, "ours, not compiled": partial(not_compiled, own)}
            if coarse is not None:
                setups["ours, int8"] = partial(coarse.encode_passages, texts)
            for peer in (SentenceTransformers, Transformers):
                choices: dict[str, Encode] = {
                    f"{attention}, {size}": peer(folder, where, precision, attention=attention, size=size)
                    for attention in ATTENTIONS
                    for size in BATCH_SIZES
                }
                setups[peer.name] = fastest(peer.name, choices, texts, turns if tune else None)
            for runtime, states in compiled.items():
                choices = {str(size): Padded(states, folder, size=size) for size in BATCH_SIZES}
                setups[runtime] = fastest(runtime, choices, texts, turns if tune else None)
            exact = Transformers(folder, where, torch.float32, attention="sdpa", size=BATCH_SIZES[0])(texts)
            quality = {setup: likeness(run(), exact) for setup, run in setups.items()}
            limit, copies = Products(ours, rows=min(cost.tokens, token_budget(where))), Copies(where)
            seconds = turns(setups | {"products": limit, "copies": copies}, rounds=rounds)
            results[name] = row = summary(seconds, cost, limit, copies) | {"beside float32": quality}
            report(name, row, cost)
    if out is not None:
        settings = {"backbone": backbone, "layers": layers, "dtype": str(precision), "device": where.type}
        found = facts(**settings, rounds=rounds, arguments=sys.argv[1:], runtimes=versions())
        out.write_text(json.dumps(found | {"sets": results}, indent=2) + "\n", "utf-8")


def not_compiled(encode: Callable[[], np.ndarray]) -> np.ndarray:
    """With torch's own element-wise passes."""
    with patch.dict(os.environ, {VARIABLE: "off"}):
        return encode()


def likeness(vectors_NE: np.ndarray, exact_NE: np.ndarray, *, nearest: int = 10) -> dict[str, float]:
    """Cosines to exact vectors, and what share of each text's nearest others is the same; of few texts, a quarter.

    The length of a vector may be off: sentence-transformers scales it in bfloat16.
    """
    a_NE, b_NE = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors_NE, exact_NE))
    cosines_N = (a_NE * b_NE).sum(axis=1)
    nearest = max(1, min(nearest, len(a_NE) // 4))
    tops = []
    for unit_NE in (a_NE, b_NE):
        scores_NN = unit_NE @ unit_NE.T
        np.fill_diagonal(scores_NN, -np.inf)
        tops.append(np.argsort(-scores_NN, axis=1)[:, :nearest])
    same = [len(np.intersect1d(a, b)) / nearest for a, b in zip(*tops, strict=True)]
    return {"mean": float(cosines_N.mean()), "least": float(cosines_N.min()), "same nearest": float(np.mean(same))}


def sets(tokens: int, *, seed: int) -> dict[str, list[int]]:
    """Lengths of the texts of each set."""
    mixed = np.clip(np.random.default_rng(seed).lognormal(4.5, 0.9, 4096), 8, LONGEST).astype(int)
    count = int(np.searchsorted(mixed.cumsum(), tokens)) + 1
    same = {name: [length] * max(1, tokens // length) for name, length in (("short", 16), ("medium", 128))}
    return same | {"long": [LONGEST] * max(1, tokens // LONGEST), "mixed": mixed[:count].tolist()}


def write_model(folder: Path, backbone: str, *, layers: int | None, dtype: torch.dtype) -> None:
    """A model folder whose tokenizer puts BOS and EOS around a text."""
    source = weights.resolve(backbone)
    model = load_backbone(source, layers=layers, dtype=dtype)
    save_model(model, folder, source=source)
    without_chat(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {"BOS": model.config.bos_token_id, "EOS": model.config.eos_token_id}
    around = {kind: tokenizer.id_to_token(id) for kind, id in ids.items()}
    tokenizer.post_processor = TemplateProcessing(
        single=f"{around['BOS']} $A {around['EOS']}", special_tokens=[(around[kind], id) for kind, id in ids.items()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@dataclass(frozen=True)
class Cost:
    """What encoding texts takes: tokens with BOS and EOS; FLOPs of all that a model does, and of what ours does.

    `bytes`: what has to move between memory and the processor at least.
    """

    tokens: int
    flops: float
    flops_of_ours: float
    bytes: float

    @classmethod
    def of(cls, encoder: Encoder, lengths: list[int]) -> "Cost":
        config = encoder.model.backbone.config
        read = np.asarray(lengths) + 2
        linear = [sum(2 * weight.numel() for weight in layer) for layer in matrices(encoder)]
        queries = 4 * config.num_attention_heads * config.head_dim  # FLOPs of one query and one key
        attention = queries * float((read * (read + 1) / 2).sum())
        whole = sum(linear) * read.sum() + attention * len(linear)
        keys_values = sum(2 * weight.numel() for weight in matrices(encoder)[-1][1:3])
        last = keys_values * read.sum() + (linear[-1] - keys_values) * len(read) + queries * read.sum()
        weights_read = sum(weight.nbytes for layer in matrices(encoder) for weight in layer)
        count = sum(1 for _ in batches(read.tolist(), token_budget=token_budget(encoder.device)))
        a_token = sum(sum(weight.shape) * weight.element_size() for layer in matrices(encoder) for weight in layer)
        return cls(
            int(read.sum()),
            float(whole),
            float(whole - linear[-1] * read.sum() - attention + last),
            float(weights_read * count + a_token * read.sum()),
        )


def matrices(encoder: Encoder) -> list[list[torch.Tensor]]:
    """The matrices of each layer: of queries, keys, values, output, gate, up and down."""
    found = []
    for layer in encoder.model.backbone.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        found.append([part.weight for part in (*parts, mlp.gate_proj, mlp.up_proj, mlp.down_proj)])
    return found


class Products:
    """The products of one layer for so many tokens, those of the same states joined, and nothing else; 20 times."""

    def __init__(self, encoder: Encoder, *, rows: int) -> None:
        query, key, value, output, gate, up, down = matrices(encoder)[0]
        parts = (torch.cat([query, key, value]), output, torch.cat([gate, up]), down)
        self._parts = [(torch.randn(rows, part.shape[1], dtype=part.dtype, device=part.device), part) for part in parts]
        self.flops = 20.0 * sum(2 * rows * part.numel() for part in parts)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(20):
            for states, weight in self._parts:
                F.linear(states, weight)


class Copies:
    """A copy of an array that no cache holds; `bytes` are read and written."""

    def __init__(self, device: torch.device) -> None:
        self._from = torch.zeros(2**28, dtype=torch.uint8, device=device)
        self._to = torch.empty_like(self._from)
        self.bytes = 2.0 * self._from.nbytes

    def __call__(self) -> None:
        self._to.copy_(self._from)


class SentenceTransformers:
    """The peer, with one attention and batch size."""

    name = "sentence-transformers"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, attention: str, size: int) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        options = {"attn_implementation": attention, "dtype": dtype}
        first = Transformer(str(folder), max_seq_length=2 * LONGEST, model_kwargs=options)
        pooling = Pooling(first.get_embedding_dimension(), pooling_mode="lasttoken")
        self._model = SentenceTransformer(modules=[first, pooling, Normalize()], device=device.type)
        self._size = size

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, batch_size=self._size, convert_to_numpy=True, show_progress_bar=False)


class Transformers(Padded):
    """transformers alone, in batches sorted by length and padded."""

    name = "transformers"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, attention: str, size: int) -> None:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=dtype).eval().to(device)
        super().__init__(
            lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state,
            folder,
            size=size,
            device=device,
        )


Encode = Callable[[list[str]], np.ndarray]


def fastest(
    name: str, choices: dict[str, Encode], texts: list[str], turns: Callable[..., Seconds] | None
) -> Callable[[], np.ndarray]:
    """The peer on these texts, with the settings that are fastest on them; those listed first if not measured."""
    setups = {choice: partial(encode, texts) for choice, encode in choices.items()}
    seconds = turns(setups, rounds=1) if turns else {choice: [0.0] for choice in setups}
    best = min(setups, key=lambda choice: seconds[choice][0])
    print(f"{name}: {best} texts at once", flush=True)
    return setups[best]


def summary(seconds: Seconds, cost: Cost, limit: Products, copies: Copies) -> dict[str, Any]:
    """Tokens a second of each set-up, its ratio to ours, and what share of the limit ours reaches."""
    encoding = {name: found for name, found in seconds.items() if name not in ("products", "copies")}
    rates = {name: spread([cost.tokens / s for s in found]) for name, found in encoding.items()}
    middle = rates["ours"]["median"]
    flops_a_second = spread([limit.flops / s for s in seconds["products"]])
    shares = {
        name: flops / cost.tokens * middle / flops_a_second["median"]
        for name, flops in (("of all FLOPs", cost.flops), ("of those that are done", cost.flops_of_ours))
    }
    ratios = {
        f"{own} to": {name: rates[own]["median"] / rate["median"] for name, rate in rates.items() if name != own}
        for own in ("ours", "ours, int8")
        if own in rates
    }
    bytes_a_second = spread([copies.bytes / s for s in seconds["copies"]])
    least = {
        "products": cost.flops_of_ours / flops_a_second["median"],
        "memory": cost.bytes / bytes_a_second["median"],
    }
    roofline = {
        "FLOP": cost.flops_of_ours,
        "bytes": cost.bytes,
        "seconds": least,
        "bound": max(least, key=lambda name: least[name]),
        "of the roofline": max(least.values()) * middle / cost.tokens,
    }
    return {
        "tokens/s": rates,
        **ratios,
        "products, FLOP/s": flops_a_second,
        "copies, bytes/s": bytes_a_second,
        "share": shares,
        "roofline": roofline,
    }


def report(name: str, row: dict[str, Any], cost: Cost) -> None:
    """Print the results of a set of texts."""
    print(
        f"\n{name}: {cost.tokens} tokens, {cost.flops / 1e9:,.0f} GFLOP; median, 10th and 90th percentile, "
        "ratio of ours to it (and of int8); beside float32: mean and least cosine, same nearest"
    )
    for setup, rate in row["tokens/s"].items():
        ratio, like = row["ours to"].get(setup, 1.0), row["beside float32"][setup]
        coarse = f"{row['ours, int8 to'].get(setup, 1.0):8.2f}" if "ours, int8 to" in row else ""
        print(
            f"  {setup:24}{rate['median']:10,.0f} tokens/s{rate['p10']:10,.0f}{rate['p90']:10,.0f}{ratio:8.2f}{coarse}"
            f"{like['mean']:10.5f}{like['least']:9.5f}{like['same nearest']:7.3f}"
        )
    limit, share = row["products, FLOP/s"]["median"], row["share"]
    print(f"  products {limit / 1e9:,.0f} GFLOP/s; ours: {', '.join(f'{v:.0%} {k}' for k, v in share.items())}")
    copied, roofline = row["copies, bytes/s"]["median"], row["roofline"]
    print(
        f"  copies {copied / 1e9:,.1f} GB/s; {roofline['FLOP'] / roofline['bytes']:,.0f} FLOP a byte: bound by "
        f"{roofline['bound']}, ours at {roofline['of the roofline']:.0%} of the roofline\n"
    )


if __name__ == "__main__":
    typer.run(main)
