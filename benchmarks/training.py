"""How fast do we train, and in how much memory, beside sentence-transformers on the same work?

    python benchmarks/training.py --layers 6 --batch 64 --out training.json
    python benchmarks/training.py --layers 1 --batch 8 --steps 3 --rounds 1 --no-tune --pairs python-stdlib   # a minute

Everybody trains LoRA layers of the same rank on the same linear layers of the same decoder, under the same autocast, on
the same batches of (query, passage, hard negative) in the same order, cut to the same length before. Tokens are counted
once, for all: those of the texts themselves, without templates, padding or demonstrations. So `tokens/s` says how much
of a corpus is learned from in a second, whatever else a method reads for it.

    ours A            no demonstrations: what the peer does (the same template, InfoNCE at the same temperature)
    ours A, cached    the same with the gradient cache, as the peer's CachedMultipleNegativesRankingLoss
    ours EPIC         with soft demonstrations in a second pass over the queries; and with the cache
    ours text         with text demonstrations, as bge-en-icl trains
    peer              MultipleNegativesRankingLoss;   peer, cached: CachedMultipleNegativesRankingLoss

The peer runs in its own trainer with fused AdamW. Its attention, the precision of its frozen weights and its mini-batch
are those that were fastest in short runs before (--no-tune: the first of each). Each measurement is a process of its
own; the set-ups take turns, round by round; a figure is the median of the rounds, with the lowest and the highest.
Where other work runs beside it, processor time is fairer (the last columns: of all cores together; with
OMP_WAIT_POLICY=passive, so that threads that wait do not count). The first --skip steps of a run warm up. Peak memory
is that of the steps after these: of the process on a CPU, of torch's allocator on a GPU. The loss of the first step
shows that it is the same work: no LoRA layer has moved yet.
"""

import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from training_runs import Job, Measured, Peer, batches_of, measure

from epic_search.encoder import weights
from epic_search.encoder.backbone import load_backbone, save_model
from epic_search.encoder.device import DTYPES, choose_device, choose_dtype
from epic_search.encoder.tokenizer import load_tokenizer, spans, token_ids
from epic_search.evaluation.job import machine
from epic_search.training.pairs import load_pairs
from epic_search.training.recipe import DATA_VARIABLE, DEFAULT_DATA, PairData, Recipe

TASK = "Given a query, retrieve the text that answers it"
TEMPERATURE = 0.02
RANK, ALPHA = 16, 32
MINI_BATCHES = (32, 8, 16, 64, 128, 256, 512)


@dataclass
class Row:
    """A set-up and what its rounds gave."""

    name: str
    settings: dict[str, Any]
    rounds: list[Measured] = field(default_factory=list)


def main(
    backbone: str = "smollm2-135m-instruct",
    layers: Annotated[int | None, typer.Option(help="So many layers of it. Default: all.")] = None,
    pairs: Annotated[
        str, typer.Option(help="JSONL files (a glob) of pairs with negatives, or python-stdlib.")
    ] = f"{os.environ.get(DATA_VARIABLE, DEFAULT_DATA)}/train/*.jsonl.gz",
    batch: int = 64,
    length: Annotated[int, typer.Option(help="Tokens of a text, at most.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 10,
    skip: Annotated[int, typer.Option(help="Steps before these.")] = 2,
    rounds: int = 5,
    token_budget: Annotated[int, typer.Option(help="Tokens that ours encodes at a time.")] = 8192,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    precision: Annotated[Literal["auto", "bfloat16", "float32"], typer.Option()] = "auto",
    threads: int | None = None,
    tune: bool = True,
    setups: Annotated[
        list[str] | None, typer.Option("--setup", help="These alone, by their names in the table.")
    ] = None,
    seed: int = 7,
    out: Path | None = None,
) -> None:
    """Measure training."""
    where = choose_device(device)
    dtype = choose_dtype(precision, where).value
    with tempfile.TemporaryDirectory() as work:
        folder, data = Path(work) / "backbone", Path(work) / "pairs.jsonl"
        source = weights.resolve(backbone)
        save_model(load_backbone(source, layers=layers, dtype=DTYPES[dtype]), folder, source=source)
        without_chat(folder)
        write_pairs(data, pairs, folder=folder, count=batch * (skip + steps), length=length, seed=seed)
        recipe = {
            "name": "benchmark",
            "seed": seed,
            "checkpoint_steps": 10**6,
            "encoder": {
                "name": "benchmark",
                "backbone": str(folder),
                "soft_tokens": {"projector": "rescale"},
                "lora": {"rank": RANK, "alpha": ALPHA},
            },
            "data": {"pairs": [{"files": str(data)}], "max_length": length, "instruction_dropout": 0.0},
            "objective": {"temperature": TEMPERATURE, "demonstrations": 0, "false_negative_margin": None},
            "optimizer": {
                "steps": skip + steps,
                "batch_size": batch,
                "warmup_steps": 0,
                "precision": dtype,
                "token_budget": token_budget,
            },
        }
        job = Job(recipe, "cuda" if where.type == "cuda" else "cpu", skip, threads)
        rows = [Row(name, changes) for name, changes in our_setups().items()]
        cached = tuned(job, batch=batch, dtype=dtype, tune=tune)
        rows += [Row("peer, cached", asdict(cached)), Row("peer", asdict(replace(cached, mini_batch=None)))]
        rows = [row for row in rows if not setups or row.name in setups]
        for number in range(rounds):
            for row in [*rows]:
                print(f"round {number + 1} of {rounds}: {row.name}", flush=True)
                try:
                    row.rounds.append(measure(job_of(row, job)))
                except torch.OutOfMemoryError:
                    print(f"{row.name} does not fit into memory", flush=True)
                    rows.remove(row)
        tokens = text_tokens(Recipe.model_validate(recipe), folder, skip=skip)
    report(rows, tokens=tokens)
    if out is not None:
        facts = {
            "machine": machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "sentence-transformers")},
            "backbone": backbone,
            "layers": layers,
            "batch": batch,
            "length": length,
            "steps": steps,
            "precision": dtype,
            "device": where.type,
            "threads": threads or torch.get_num_threads(),
            "token_budget": token_budget,
            "text_tokens": tokens,
            "rows": [{**asdict(row), "tokens_per_second": rates(row, tokens)} for row in rows],
        }
        out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def our_setups() -> dict[str, dict[str, Any]]:
    """What each of our set-ups changes in the recipe, table by table."""
    epic = {"objective": {"demonstrations": 5}, "encoder": {"soft_tokens": {"projector": "mlp"}}}
    text = {"objective": {"demonstrations": 5, "contrast_without": 0.0}, "encoder": {"demonstrations": "text"}}
    cache = {"optimizer": {"gradient_cache": True}}
    plain: dict[str, dict[str, Any]] = {"ours A": {}, "ours EPIC": epic, "ours text": text}
    return plain | {f"{name}, cached": changes | cache for name, changes in plain.items()}


def job_of(row: Row, job: Job) -> Job:
    """The measurement of a set-up."""
    if row.name.startswith("peer"):
        return replace(job, peer=Peer(**row.settings))
    return replace(job, recipe={key: merged(value, row.settings.get(key)) for key, value in job.recipe.items()})


def merged(value: Any, changes: dict[str, Any] | None) -> Any:
    """A table of the recipe with changes; anything else as it is."""
    return value | changes if changes else value


def tuned(job: Job, *, batch: int, dtype: str, tune: bool) -> Peer:
    """The fastest settings of the peer: first attention and frozen weights, then the mini-batch."""
    precisions = ("bfloat16", "float32") if dtype == "bfloat16" else ("float32",)
    kinds = [Peer(attention, kind, MINI_BATCHES[0]) for attention in ("eager", "sdpa") for kind in precisions]
    if not tune:
        return kinds[0]
    short = replace(job, recipe=job.recipe | {"optimizer": job.recipe["optimizer"] | {"steps": job.skip + 2}})

    def fastest(candidates: list[Peer]) -> Peer:
        seconds = {}
        for peer in candidates:
            try:
                seconds[peer] = measure(replace(short, peer=peer)).seconds / 2
                print(f"tuning: {peer} takes {seconds[peer]:.3f} s a step", flush=True)
            except torch.OutOfMemoryError:
                print(f"tuning: {peer} does not fit into memory", flush=True)
        return min(seconds, key=lambda peer: seconds[peer])

    best = fastest(kinds)
    return fastest([replace(best, mini_batch=size) for size in MINI_BATCHES if size <= batch])


def without_chat(folder: Path) -> None:
    """Take the chat template from a tokenizer: the peer would put it around every text, and read twice as much."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        said = json.loads(settings.read_text(encoding="utf-8"))
        said.pop("chat_template", None)
        settings.write_text(json.dumps(said), encoding="utf-8")


def write_pairs(path: Path, origin: str, *, folder: Path, count: int, length: int, seed: int) -> None:
    """Write `count` pairs of one task, each with a negative where the origin has any, with texts of `length` tokens."""
    data = PairData(builtin="python-stdlib") if origin == "python-stdlib" else PairData(files=origin)
    found = [pair for pairs in load_pairs(data).values() for pair in pairs]
    found = [pair for pair in found if pair.negatives] or found
    if len(found) < count:
        raise SystemExit(f"{origin} has {len(found)} pairs, and {count} are needed; lower --batch or --steps")
    tokenizer = load_tokenizer(folder)

    def cut(text: str) -> str:
        return spans(tokenizer, text, max_length=length, overlap=0)[0]

    with path.open("w", encoding="utf-8") as file:
        for i in np.random.default_rng(seed).permutation(len(found))[:count]:
            pair = found[i]
            negatives = [cut(text) for text in pair.negatives[:1]]
            row = {"task": TASK, "query": cut(pair.query), "positive": cut(pair.positive), "negatives": negatives}
            file.write(json.dumps(row) + "\n")


def text_tokens(recipe: Recipe, folder: Path, *, skip: int) -> int:
    """Tokens of the texts in the steps that are measured."""
    tokenizer = load_tokenizer(folder)
    texts = [text for batch in batches_of(recipe)[skip:] for text in (*batch.queries, *batch.passages)]
    return sum(len(ids) for ids in token_ids(tokenizer, texts, max_length=None))


def rates(row: Row, tokens: int) -> list[float]:
    """Tokens of texts per second in each round."""
    return [tokens / measured.seconds for measured in row.rounds]


def processor_seconds(row: Row) -> float:
    """Of the steps that are measured, median."""
    return statistics.median(measured.processor_seconds for measured in row.rounds)


def report(rows: list[Row], *, tokens: int) -> None:
    """Print the table: each set-up, and how it stands to the peer with the cache."""
    compared = next((row for row in rows if row.name == "peer, cached"), rows[0])
    base = statistics.median(rates(compared, tokens))
    columns = {"tokens/s": 10, "lowest": 10, "highest": 10, "to peer": 9, "peak MiB": 10, "read": 10, "loss 1": 8}
    columns |= {"processor": 11, "to peer ": 9}
    print(f"\n{'':18}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
    base_processor = tokens / processor_seconds(compared)
    for row in rows:
        found, middle = rates(row, tokens), statistics.median(rates(row, tokens))
        peak = statistics.median(measured.peak for measured in row.rounds) / 2**20
        last = row.rounds[-1]
        print(
            f"{row.name:18}{middle:10,.0f}{min(found):10,.0f}{max(found):10,.0f}{middle / base:10.2f}{peak:10,.0f}"
            f"{last.row_tokens:10,}{last.first_loss:8.3f}"
            f"{tokens / processor_seconds(row):11,.0f}{tokens / processor_seconds(row) / base_processor:9.2f}"
        )
    print(f"{compared.name}: {compared.settings}; processor: tokens in a second of one core;")
    print("read: tokens of all steps with templates and demonstrations, without padding")


if __name__ == "__main__":
    typer.run(main)
