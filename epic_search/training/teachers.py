"""Teachers: models that say how well a passage answers a query, for choosing and weighing training data.

Shapes: Q queries, P passages, E width of a vector.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from epic_search.encoder import Encoder, weights
from epic_search.encoder.device import Device, choose_device, choose_dtype
from epic_search.encoder.encoder import Progress
from epic_search.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

AT_ONCE = 1024  # texts between two reports of progress


class Teacher(Protocol):
    """Scores are products of the unit-length vectors of queries and passages."""

    def encode_queries(self, texts: Sequence[str], *, task: str | None, progress: Progress | None = None) -> np.ndarray:
        """(Q, E) float32 unit-length vectors of queries under a task's instruction (or none), in input order."""

    def encode_passages(self, texts: Sequence[str], *, progress: Progress | None = None) -> np.ndarray:
        """(P, E) float32 unit-length vectors of passages, in input order."""


class EncoderTeacher:
    """An encoder of ours, without demonstrations."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode_queries(self, texts: Sequence[str], *, task: str | None, progress: Progress | None = None) -> np.ndarray:
        """See Teacher."""
        return self._encoder.encode_queries(texts, prompt=self._encoder.prompt(task=task), progress=progress)

    def encode_passages(self, texts: Sequence[str], *, progress: Progress | None = None) -> np.ndarray:
        """See Teacher."""
        return self._encoder.encode_passages(texts, progress=progress)


class SentenceTransformerTeacher:
    """A sentence-transformers model with the prompts of its own configuration; our instructions are not for it."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model

    def encode_queries(self, texts: Sequence[str], *, task: str | None, progress: Progress | None = None) -> np.ndarray:
        """See Teacher."""
        return self._encode(self._model.encode_query, texts, progress)

    def encode_passages(self, texts: Sequence[str], *, progress: Progress | None = None) -> np.ndarray:
        """See Teacher."""
        return self._encode(self._model.encode_document, texts, progress)

    def _encode(self, encode: Any, texts: Sequence[str], progress: Progress | None) -> np.ndarray:
        parts = []
        for some in _portions(texts):
            parts.append(encode(some, show_progress_bar=False, convert_to_numpy=True))
            if progress is not None:
                progress(len(some))
        vectors_NE = np.concatenate(parts).astype(np.float32)
        # Here, since the model may have made them in bfloat16.
        return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


def find_teacher(reference: str, *, device: Device = "auto") -> Teacher:
    """A teacher by what the user calls it: an encoder of ours, or `st:` and a sentence-transformers model.

    Each is a known name, a folder or a hub id. Raises UserError where it leads nowhere, and when
    sentence-transformers is needed and not installed.
    """
    if not reference.startswith(weights.SENTENCE_TRANSFORMERS):
        return EncoderTeacher(Encoder.load(reference, device=device))
    if find_spec("sentence_transformers") is None:
        raise UserError(
            f"the teacher {reference!r} needs sentence-transformers; install it with pip install 'epic-search[eval]'"
        )
    folder = weights.resolve_sentence_transformers(reference.removeprefix(weights.SENTENCE_TRANSFORMERS))
    where = choose_device(device)
    dtype = choose_dtype("auto", where).value
    return SentenceTransformerTeacher(load_sentence_transformer(folder, device=where.type, dtype=dtype))


def load_sentence_transformer(
    folder: Path, *, device: str, dtype: str | None = None, max_length: int | None = None
) -> "SentenceTransformer":
    """A sentence-transformers model from a local folder; `dtype` and the cut-off in tokens are its own if not given."""
    from sentence_transformers import SentenceTransformer

    options = {"dtype": dtype} if dtype is not None else None
    model = SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs=options)
    if max_length is not None:
        model.max_seq_length = min(max_length, model.max_seq_length or max_length)
    return model


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(texts), AT_ONCE):
        yield list(texts[first : first + AT_ONCE])
