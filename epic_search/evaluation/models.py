"""The models of an evaluation, by the names that users give them: ours, sentence-transformers ones and BM25.

Finding a model is cheap and tells its name and revision; weights are loaded when the first task asks for them, so that
a mistyped third model is known before the first has run, and finished results need no model at all.
"""

import hashlib
import re
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from epic_search.encoder import Encoder, weights
from epic_search.encoder import checkpoint as checkpoints
from epic_search.encoder.device import Device, Dtype, choose_device, choose_dtype
from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError
from epic_search.evaluation.demonstrations import Pool, make_prompt
from epic_search.evaluation.kinds import KINDS, SEARCH_KINDS, ClassDemonstrations, Control, Kind
from epic_search.evaluation.meter import Meter
from epic_search.evaluation.ours import EvaluatedEncoder, ExactSearch, IndexSearch
from epic_search.training.teachers import load_sentence_transformer

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from sentence_transformers import SentenceTransformer

Search = Literal["index", "exact"]

BM25 = "bm25"
REVISION_DIGITS = 16
NAME = re.compile(r"[\w.+-]+")  # in tables "@" and ":" part a model from its demonstrations


@dataclass(frozen=True)
class Settings:
    """How models are run. `max_length` (tokens) caps what each reads of a text; None leaves each its own.

    `dim` cuts the vectors of our encoders.
    """

    search: Search = "index"
    max_length: int | None = None
    dim: int | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"

    @property
    def experiment(self) -> dict[str, Any]:
        """What differs from the defaults and changes vectors: part of what results are filed under."""
        given = {
            "search": "exact" if self.search == "exact" else None,
            "max_length": self.max_length,
            "dim": self.dim,
            "dtype": None if self.dtype == "auto" else self.dtype,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Condition:
    """Under which prompt a task is run: `demos` demonstrations drawn with `seed`, or a control of them.

    `classes` and `pairs` (name and digest of the file that takes the place of training splits) say what they are drawn
    from, and `demos_kind` what they become, where that is not what the model was trained to read.
    """

    demos: int = 0
    seed: int = 0
    control: Control | None = None
    classes: ClassDemonstrations = "examples"
    pairs: str | None = None
    demos_kind: DemonstrationKind | None = None

    @property
    def experiment(self) -> dict[str, Any]:
        """What mteb files the results under, beside the model's name and revision; {} for the plain model."""
        if self.demos == 0:
            return {}
        unusual = {
            "control": self.control,
            "classes": None if self.classes == "examples" else self.classes,
            "pairs": self.pairs,
            "demos_kind": self.demos_kind,
        }
        return {"demos": self.demos, "seed": self.seed} | {key: value for key, value in unusual.items() if value}

    def __str__(self) -> str:
        if self.demos == 0:
            return "no demonstrations"
        words = [str(self.demos), self.control, self.demos_kind, "demonstrations"]
        return f"{' '.join(word for word in words if word)}, seed {self.seed}"


class Bound(Protocol):
    """A model ready for one task under one condition: what mteb evaluates, and what it cost.

    `demos_kind`: what its demonstrations are in the input; None where there are none.
    """

    model: Any
    meter: Meter
    demonstrations: list[list[str]]
    demos_kind: DemonstrationKind | None
    settings: dict[str, Any]

    def query_seconds(self, query: str) -> float:
        """How long one query by itself takes, from text to vector (BM25: to scores)."""


class EvaluatedModel(Protocol):
    """A model that takes part. `name` is mteb's, organisation and all; `label` is the one in tables.

    `demos_kind`: the demonstrations that it was trained to read; None: it takes no prompts.
    """

    label: str
    name: str
    revision: str
    dtype: str | None  # None: whatever the model itself chooses
    kinds: frozenset[Kind]
    demos_kind: DemonstrationKind | None

    def meta(self, condition: Condition) -> "ModelMeta":
        """mteb's description of this model under a condition: what its results are filed under."""

    def bind(self, *, instruction: str | None, pool: Pool | None, condition: Condition, work: Path) -> Bound:
        """This model under one prompt; `work` is a folder for indexes.

        Raises UserError when the weights cannot be loaded, and when the prompt cannot be made.
        """


def find_model(reference: str, *, settings: Settings) -> EvaluatedModel:
    """A model by what the user calls it, optionally with a label in front: `[LABEL=]REFERENCE`.

    A reference is a checkpoint of ours (registry name, folder, hub id), `st:` and a sentence-transformers folder or hub
    id, or `bm25`. Raises UserError where it leads nowhere or needs a package that is not installed.
    """
    label, given, what = reference.partition("=")
    if not given or Path(reference.removeprefix(weights.SENTENCE_TRANSFORMERS)).exists():  # a path may hold a "=", too
        label, what = "", reference
    elif not NAME.fullmatch(label):
        raise UserError(f"--model {reference!r}: a name is of letters, digits, '.', '_', '+' and '-', as NAME=MODEL")
    if not what:
        raise UserError(f"--model {reference!r} names no model; give a name, a folder or a hub id")
    if what == BM25:
        _require("bm25s", "Stemmer")
        return BM25Model(label=label or BM25)
    if what.startswith(weights.SENTENCE_TRANSFORMERS):
        _require("sentence_transformers")
        return SentenceTransformerModel.find(
            what.removeprefix(weights.SENTENCE_TRANSFORMERS), label=label, settings=settings
        )
    return EncoderModel.find(what, label=label, settings=settings)


@dataclass
class EncoderModel:
    """An encoder of ours. Its revision is its fingerprint."""

    label: str
    name: str
    revision: str
    reference: str
    settings: Settings
    dtype: str | None
    demos_kind: DemonstrationKind | None
    kinds: frozenset[Kind] = frozenset(KINDS)
    _corpora: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, reference: str, *, label: str, settings: Settings) -> "EncoderModel":
        """By registry name, folder or hub id."""
        found = checkpoints.find(reference)
        found.truncated(settings.dim)  # a width it was not trained for is told now
        name = _last_part(found.config.name)
        organisation = "epic-search" if reference in checkpoints.registry() else "local"
        return cls(
            label=label or name,
            name=reference if weights.is_hub_id(reference) else f"{organisation}/{label or name}",
            revision=found.fingerprint()[:REVISION_DIGITS],
            reference=reference,
            settings=settings,
            dtype=choose_dtype(settings.dtype, choose_device(settings.device)).value,
            demos_kind=found.config.demonstrations,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder."""
        settings = self.settings
        return Encoder.load(
            self.reference,
            device=settings.device,
            dtype=settings.dtype,
            max_length=settings.max_length,
            dim=settings.dim,
        )

    def meta(self, condition: Condition) -> "ModelMeta":
        """See EvaluatedModel."""
        return _meta(self.name, self.revision, condition.experiment | self.settings.experiment)

    def bind(self, *, instruction: str | None, pool: Pool | None, condition: Condition, work: Path) -> "BoundEncoder":
        """See EvaluatedModel."""
        encoder = self.encoder
        prompt = make_prompt(
            encoder,
            instruction=instruction,
            pool=pool,
            k=condition.demos,
            seed=condition.seed,
            control=condition.control,
            kind=condition.demos_kind,
        )
        meter, meta = Meter(), self.meta(condition)
        exact = ExactSearch(encoder, prompt=prompt, meta=meta, meter=meter, cache=self._corpora)
        if self.settings.search == "exact":
            return BoundEncoder(encoder, exact, meter, condition, self.settings.search)
        home = work / encoder.fingerprint[:REVISION_DIGITS]
        model = IndexSearch(encoder, prompt=prompt, meta=meta, meter=meter, home=home, exact=exact)
        return BoundEncoder(encoder, model, meter, condition, self.settings.search)


class BoundEncoder:
    """See Bound."""

    def __init__(
        self, encoder: Encoder, model: EvaluatedEncoder, meter: Meter, condition: Condition, search: Search
    ) -> None:
        self._encoder = encoder
        self.model = model
        self.meter = meter
        # The texts of random demonstrations are not what the model saw.
        shown = () if condition.control == "random" else model.prompt.demonstrations
        self.demonstrations = [[d.query, d.passage] for d in shown]
        self.demos_kind = model.prompt.kind if condition.demos else None
        self.settings = {
            "search": search,
            "long_documents": "split into passages, the best counts",
            "max_length": encoder.config.max_length,
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "device": encoder.device.type,
        }

    def query_seconds(self, query: str) -> float:
        """See Bound."""
        started = time.perf_counter()
        self._encoder.encode_queries([query], prompt=self.model.prompt)
        return time.perf_counter() - started


@dataclass
class SentenceTransformerModel:
    """A sentence-transformers model with its own prompts, similarity and cut-off length."""

    label: str
    name: str
    revision: str
    folder: Path
    settings: Settings
    dtype: str | None
    kinds: frozenset[Kind] = frozenset(KINDS)
    demos_kind: DemonstrationKind | None = None

    @classmethod
    def find(cls, reference: str, *, label: str, settings: Settings) -> "SentenceTransformerModel":
        """By folder, by the name of known weights, or by hub id (downloaded now)."""
        if not reference:
            raise UserError("'st:' names no model; write st:FOLDER or st:ORGANISATION/NAME")
        if settings.dtype == "int8":
            raise UserError(f"dtype 'int8' is for encoders of our own, and not for 'st:{reference}'; use bfloat16")
        folder = weights.resolve_sentence_transformers(reference)
        if weights.is_hub_id(reference):
            name, revision = reference, folder.name  # the commit
        else:
            name, revision = f"local/{label or _last_part(reference)}", _digest(folder)
        dtype = None if settings.dtype == "auto" else settings.dtype
        return cls(label or _last_part(reference), name, revision[:REVISION_DIGITS], folder, settings, dtype)

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The loaded model."""
        device = choose_device(self.settings.device).type
        return load_sentence_transformer(
            self.folder, device=device, dtype=self.dtype, max_length=self.settings.max_length
        )

    def meta(self, condition: Condition) -> "ModelMeta":
        """See EvaluatedModel."""
        changed = {"max_length": self.settings.max_length, "dtype": self.dtype}
        return _meta(self.name, self.revision, {key: value for key, value in changed.items() if value is not None})

    def bind(self, *, instruction: str | None, pool: Pool | None, condition: Condition, work: Path) -> "BoundPeer":
        """See EvaluatedModel."""
        from epic_search.evaluation.peers import SentenceTransformerPeer

        meter = Meter()
        peer = SentenceTransformerPeer(self.model, meta=self.meta(condition), meter=meter)
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        settings = {
            "search": "exact",
            "long_documents": "cut",
            "max_length": self.model.max_seq_length,
            "dtype": dtype,
            "device": self.model.device.type,
        }
        return BoundPeer(peer, meter, settings)


@dataclass
class BM25Model:
    """Lucene's BM25 over whole documents. It searches, and does nothing else."""

    label: str
    name: str = "epic-search/bm25s-lucene"
    revision: str = "k1-0.9-b-0.4-porter"
    dtype: str | None = None
    kinds: frozenset[Kind] = SEARCH_KINDS
    demos_kind: DemonstrationKind | None = None

    def meta(self, condition: Condition) -> "ModelMeta":
        """See EvaluatedModel."""
        return _meta(self.name, self.revision, {})

    def bind(self, *, instruction: str | None, pool: Pool | None, condition: Condition, work: Path) -> "BoundPeer":
        """See EvaluatedModel."""
        from epic_search.evaluation.peers import BM25Peer

        meter = Meter()
        settings = {
            "search": "bm25",
            "long_documents": "read whole",
            "max_length": None,
            "dtype": "float32",
            "device": "cpu",
        }
        return BoundPeer(BM25Peer(meta=self.meta(condition), meter=meter), meter, settings)


class BoundPeer:
    """See Bound."""

    demos_kind: DemonstrationKind | None = None

    def __init__(self, model: Any, meter: Meter, settings: dict[str, Any]) -> None:
        self.demonstrations: list[list[str]] = []
        self.model = model
        self.meter = meter
        self.settings = settings

    def query_seconds(self, query: str) -> float:
        """See Bound."""
        seconds: float = self.model.query_seconds(query)
        return seconds


def _meta(name: str, revision: str, experiment: dict[str, Any]) -> "ModelMeta":
    from mteb.models import ModelMeta

    overwrites = {"name": name, "revision": revision, "experiment_kwargs": experiment or None}
    return ModelMeta.create_empty(overwrites=overwrites)


def _require(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(
            f"evaluating this model needs {' and '.join(missing)}; install them with pip install 'epic-search[eval]'"
        )


def _last_part(reference: str) -> str:
    return reference.rstrip("/").rsplit("/", 1)[-1]


def _digest(folder: Path) -> str:
    """Hex digest of all that makes a sentence-transformers model: weights, and how its modules are set up."""
    digest = hashlib.sha256(weights.digest(folder).encode())
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".txt") or (file.suffix == ".safetensors" and file.parent != folder):
            digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
