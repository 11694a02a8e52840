"""Small data of every kind, tiny models, and a way to run evaluations that needs no network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from epic_search.encoder.passes import VARIABLE

WORDS = ["river bank water", "stock market price", "guitar song chord", "cell protein gene"]
LABELS = ["nature", "money", "music", "biology"]

Write = Callable[[Path, Sequence[dict[str, Any]]], Path]
Data = Callable[..., Path]
Evaluate = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    """What a run returned, and (state, model, task, condition) of each job in order."""

    report: Any
    jobs: list[tuple[str, str, str, str]]

    @property
    def states(self) -> list[str]:
        """How each job ended, in order."""
        return [job[0] for job in self.jobs]


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of untrained encoders lie so near each other that scores would depend on the compiler here."""
    monkeypatch.setenv(VARIABLE, "off")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write JSON lines; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(kind: str, number: int) -> dict[str, Any]:
    """A row of a kind's `test.jsonl` or `train.jsonl`; rows of different numbers share no text."""
    text, other = f"{WORDS[number % 4]} {number}", f"{WORDS[(number + 1) % 4]} other {number}"
    alike = number % 2
    match kind:
        case "reranking":
            return {"query": text, "positive": [f"{text} yes"], "negative": [other, f"nothing {number}"]}
        case "sts":
            return {"sentence1": text, "sentence2": f"{text} too" if alike else other, "score": 4.5 if alike else 0.5}
        case "pair_classification":
            return {"sentence1": text, "sentence2": f"{text} too" if alike else other, "label": alike}
        case _:
            return {"text": text, "label": LABELS[number % 4]}


def broken(task: Any, error: BaseException) -> Any:
    """The task with data that cannot be loaded."""

    def make() -> Any:
        def load_data(*args: Any, **options: Any) -> None:
            raise error

        made = task.make()
        made.load_data = load_data
        return made

    return replace(task, make=make)


def result_files(out: Path) -> list[Path]:
    """The results in a folder, without what mteb and we store beside them."""
    return sorted(path for path in (out / "results").rglob("*.json") if "epic_search" in path.read_text())


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Makes a folder of evaluation data: `test` rows, and `train` rows that follow them."""

    def make(kind: str, *, test: int = 16, train: int = 0, name: str | None = None) -> Path:
        folder = tmp_path / (name or kind)
        if kind == "retrieval":
            numbers = range(test + train)
            write_rows(
                folder / "corpus.jsonl",
                [{"_id": f"d{i}", "title": f"Title {i}", "text": f"{WORDS[i % 4]} text {i}"} for i in numbers],
            )
            write_rows(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"{WORDS[i % 4]} {i}"} for i in numbers])
            (folder / "qrels").mkdir(exist_ok=True)
            for split, ids in (("test", numbers[:test]), ("train", numbers[test:])):
                if ids:
                    (folder / "qrels" / f"{split}.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in ids))
            return folder
        write_rows(folder / "test.jsonl", [row(kind, i) for i in range(test)])
        if kind == "classification" and not train:
            train = 32
        if train:
            write_rows(folder / "train.jsonl", [row(kind, i) for i in range(test, test + train)])
        return folder

    return make


@pytest.fixture
def sts(data: Data) -> Any:
    """A task that is quick, with 4 pairs to demonstrate."""
    from epic_search.evaluation.tasks import folder_task

    return folder_task(data("sts", train=8))


@pytest.fixture
def classification(data: Data) -> Any:
    """A second task."""
    from epic_search.evaluation.tasks import folder_task

    return folder_task(data("classification"))


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Demonstrations that belong to no task here."""
    return write_rows(tmp_path / "pairs.jsonl", [{"query": f"ask {i}", "passage": f"answer {i}"} for i in range(12)])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own offline mode: whatever asks for it fails at once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def tiny_model(tiny_encoder_folder: Path) -> Any:
    """The tiny encoder as a model of an evaluation, called "tiny"; its weights are loaded once."""
    from epic_search.evaluation.models import Settings, find_model

    return find_model(f"tiny={tiny_encoder_folder}", settings=Settings(device="cpu"))


@pytest.fixture(scope="session")
def sentence_transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model with random weights that reads letters and digits as word pieces."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    bert = tmp_path_factory.mktemp("peer") / "bert"
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    tokenizer.save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=48)
    folder = bert.parent / "tiny-peer"
    pooling = Pooling(config.hidden_size)
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of results."""
    return tmp_path / "out"


@pytest.fixture
def evaluate(out: Path, tiny_model: Any) -> Evaluate:
    """Runs tasks (with the tiny encoder unless told otherwise), storing results in `out`."""
    from epic_search.evaluation.runner import Plan, Progress, run

    def call(*tasks: Any, models: Sequence[Any] = (tiny_model,), overwrite: bool = False, **plan: Any) -> Ran:
        jobs: list[tuple[str, str, str, str]] = []

        def listen(progress: Progress) -> None:
            if progress.state != "running":
                jobs.append((progress.state, progress.model, progress.task, progress.condition))

        report = run(Plan(tasks, models, **plan), out=out, overwrite=overwrite, report=listen)
        return Ran(report, jobs)

    return call
