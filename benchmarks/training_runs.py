"""One training run, ours or sentence-transformers', in a process of its own: the work of `training.py`."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from safetensors.numpy import load_file

from epic_search.encoder.device import DTYPES
from epic_search.encoder.prompt import INSTRUCTION, QUERY, RESPONSE
from epic_search.training.mixture import Mixture
from epic_search.training.pairs import TrainBatch
from epic_search.training.recipe import Recipe
from epic_search.training.trainer import StepReport, train


@dataclass(frozen=True)
class Peer:
    """How sentence-transformers is set up. `mini_batch` is of texts; None: the loss without a cache."""

    attention: str
    weights: str
    mini_batch: int | None


@dataclass(frozen=True)
class Job:
    """One measurement: a recipe for the trainer of ours, or what a peer takes from it."""

    recipe: dict[str, Any]
    device: Literal["cpu", "cuda"]
    skip: int
    threads: int | None
    peer: Peer | None = None


@dataclass
class Measured:
    """`seconds` of the steps after the first `skip`, and of the processor in them, and bytes at their peak.

    `row_tokens`: what was read in all steps, with templates and demonstrations and without padding; `trained`: the
    number of LoRA weights.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak: int = 0
    first_loss: float = 0.0
    row_tokens: int = 0
    trained: int = 0


def measure(job: Job) -> Measured:
    """Run a job in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(run_ours if job.peer is None else run_peer, job).result()


class Watch:
    """Takes the time and memory of a run, step by step."""

    def __init__(self, job: Job) -> None:
        self.measured = Measured()
        self._job = job
        self._began = 0.0
        self._processor_began = 0.0

    def step(self, number: int) -> None:
        """After a step, counted from 1."""
        on_gpu = self._job.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        if number == self._job.skip:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak so far
            self._began, self._processor_began = time.perf_counter(), time.process_time()
        if number == self._job.recipe["optimizer"]["steps"]:
            self.measured.seconds = time.perf_counter() - self._began
            self.measured.processor_seconds = time.process_time() - self._processor_began
            self.measured.peak = torch.cuda.max_memory_allocated() if on_gpu else peak_of_process()


def peak_of_process() -> int:
    """The most memory that this process has had in use, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run_ours(job: Job) -> Measured:
    """Train with our trainer, as the command line does."""
    if job.threads:
        torch.set_num_threads(job.threads)
    recipe, watch = Recipe.model_validate(job.recipe), Watch(job)
    measured = watch.measured

    def seen(row: StepReport) -> None:
        watch.step(row.step)
        measured.first_loss = row.loss if row.step == 1 else measured.first_loss
        measured.row_tokens += round(row.tokens_per_second / row.pairs_per_second * recipe.optimizer.batch_size)

    with tempfile.TemporaryDirectory() as work:
        result = train(recipe, out=Path(work) / "run", device=job.device, report=seen)
        lora = load_file(result.encoder / "lora" / "adapter_model.safetensors")
    measured.trained = sum(array.size for array in lora.values())
    return measured


def run_peer(job: Job) -> Measured:
    """Train with sentence-transformers, on the same batches in the same order."""
    from peft import LoraConfig
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import TrainerCallback

    assert job.peer is not None
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.recipe["seed"])
    recipe, watch = Recipe.model_validate(job.recipe), Watch(job)
    settings = recipe.optimizer
    assert recipe.encoder is not None and recipe.encoder.lora is not None
    options = {"attn_implementation": job.peer.attention, "dtype": DTYPES[job.peer.weights]}
    transformer = Transformer(recipe.encoder.backbone, model_kwargs=options)
    transformer.max_seq_length = recipe.data.max_length + 64  # texts are cut already, and templates come on top
    tokenizer = transformer.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=job.device)
    lora = recipe.encoder.lora
    model.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, bias="none"))
    columns = peer_columns(recipe, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    watch.measured.row_tokens = sum(int(model.preprocess(texts)["attention_mask"].sum()) for texts in columns.values())
    watch.measured.trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    class InOrder(DefaultBatchSampler):
        """The batches as they stand in the columns."""

        def __init__(self, dataset: Dataset, *, batch_size: int, drop_last: bool, **_: object) -> None:
            BatchSampler.__init__(self, SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    class Observer(TrainerCallback):
        """Sees each step and the logged loss of the first."""

        def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
            watch.step(state.global_step)

        def on_log(self, args: object, state: Any, control: object, **said: Any) -> None:
            if state.global_step == 1:
                watch.measured.first_loss = said["logs"].get("loss", watch.measured.first_loss)

    loss: torch.nn.Module = losses.MultipleNegativesRankingLoss(model, scale=1 / recipe.objective.temperature)
    if job.peer.mini_batch is not None:
        loss = losses.CachedMultipleNegativesRankingLoss(
            model, scale=1 / recipe.objective.temperature, mini_batch_size=job.peer.mini_batch
        )
    with tempfile.TemporaryDirectory() as work:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=work,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_grad_norm=settings.clip_norm,
            optim="adamw_torch_fused",
            bf16=settings.precision == "bfloat16",
            use_cpu=job.device == "cpu",
            batch_sampler=InOrder,
            logging_strategy="no",
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=recipe.seed,
        )
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Observer()]
        ).train()
    return watch.measured


def peer_columns(recipe: Recipe, *, bos: str, eos: str) -> dict[str, list[str]]:
    """The batches of a recipe, one after the other, in our template: columns anchor, positive and, if any, negative."""
    columns: dict[str, list[str]] = {"anchor": [], "positive": [], "negative": []}
    for batch in batches_of(recipe):
        count = len(batch.queries)
        instructions = [INSTRUCTION.format(task=task) for task in batch.tasks]
        rows = zip(instructions, batch.queries, strict=True)
        columns["anchor"] += [f"{bos}{said}{QUERY}{text}{RESPONSE}{eos}" for said, text in rows]
        columns["positive"] += [f"{bos}{text}{eos}" for text in batch.passages[:count]]
        columns["negative"] += [f"{bos}{text}{eos}" for text in batch.passages[count:]]
    return {name: texts for name, texts in columns.items() if texts}


def batches_of(recipe: Recipe) -> list[TrainBatch]:
    """All batches of a run."""
    settings = recipe.optimizer
    mixture = Mixture(recipe.data, batch_size=settings.batch_size, steps=settings.steps, seed=recipe.seed)
    return [mixture.batch(step) for step in range(settings.steps)]
