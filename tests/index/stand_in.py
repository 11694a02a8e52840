"""An encoder without a model: words hashed into a vector, with the face of `epic_search.encoder.Encoder`.

Run as a script it indexes a file, slowly if asked to, for the tests that kill, interrupt and compete with it:
    python stand_in.py HOME NAME CORPUS SECONDS_PER_CALL
"""

import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from epic_search.encoder import Demonstration, Prompt
from epic_search.errors import UserError


class StandIn:
    """Texts with common words have a high cosine. A prompt adds its demonstrations' passages to the query."""

    def __init__(
        self,
        name: str = "stand-in",
        *,
        dim: int = 512,
        max_length: int = 100,
        delay: float = 0.0,
        matryoshka: list[int] | None = None,
    ) -> None:
        self.name = self.reference = name
        self.dim = dim
        self.fingerprint = 4 * f"{zlib.crc32(f'{name} {dim} {max_length}'.encode()):08x}"
        self.config = SimpleNamespace(max_length=max_length, dim=None, matryoshka=matryoshka)
        self.delay = delay
        self.encoded: list[str] = []
        self.asked: list[str] = []

    def encode_passages(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[Sequence[int]] | None = None,
        whole: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        time.sleep(self.delay)
        self.encoded += texts
        vectors_PE = np.stack([self._vector(text) for text in texts])
        if progress is not None:
            progress(len(texts))
        return vectors_PE

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        prompt: Prompt | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        whole: bool = False,
    ) -> np.ndarray:
        self.asked += texts
        vectors_QE = np.stack([self._vector(text) for text in texts])
        for row, shown in enumerate(prompts or [prompt] * len(texts)):
            if shown is not None and shown.demonstrations:
                vectors_QE[row] += shown.vectors_SE[1::2].mean(axis=0)
        return vectors_QE / np.linalg.norm(vectors_QE, axis=1, keepdims=True)

    def prompt(self, *, task: str | None = None, demonstrations: Sequence[Demonstration] = ()) -> Prompt:
        if task == "too long":
            raise UserError("the prompt takes too many tokens")
        texts = [text for pair in demonstrations for text in (pair.query, pair.passage)]
        vectors_SE = np.stack([self._vector(text) for text in texts]) if texts else np.empty((0, self.dim), np.float32)
        return Prompt(task or None, tuple(demonstrations), vectors_SE, self.fingerprint)

    def save_prefix(self, prompt: Prompt, path: Path) -> None:
        """A stand-in has none."""

    def restore_prefix(self, prompt: Prompt, path: Path) -> bool:
        return False

    def split(self, texts: Sequence[str], *, titles: Sequence[str]) -> list[list[str]]:
        return [self._split(text, len(title.split())) for text, title in zip(texts, titles, strict=True)]

    def token_ids(self, texts: Sequence[str], *, max_length: int | None = None) -> list[list[int]]:
        longest = max_length or self.config.max_length
        return [[zlib.crc32(word.encode()) for word in text.split()][:longest] for text in texts]

    def _split(self, text: str, taken: int) -> list[str]:
        words, length = text.split(), self.config.max_length - taken
        if len(words) <= length:
            return [text]
        starts = range(0, len(words) - 12, length - 12)
        return [" ".join(words[start : start + length]) for start in starts]

    def _vector(self, text: str) -> np.ndarray:
        vector_E = np.full(self.dim, 1e-3, dtype=np.float32)
        for id in self.token_ids([text.lower()])[0]:
            vector_E[id % self.dim] += 1.0 if id & 0x10000 else -1.0
        return vector_E / np.linalg.norm(vector_E)


class NoTies(StandIn):
    """No two texts are equally near to a query, so rankings can be compared place by place."""

    def __init__(self, name: str = "no-ties", *, dim: int = 32, max_length: int = 100) -> None:
        super().__init__(name, dim=dim, max_length=max_length)

    def _vector(self, text: str) -> np.ndarray:
        noise_E = np.random.default_rng(zlib.crc32(f"{self.name} {text}".encode())).standard_normal(self.dim)
        vector_E = super()._vector(text) + 0.2 * noise_E.astype(np.float32)
        return vector_E / np.linalg.norm(vector_E)


if __name__ == "__main__":
    from epic_search.index import index_corpus

    home, name, corpus, delay = sys.argv[1:]
    print("start", flush=True)
    index_corpus(
        Path(corpus),
        name=name,
        encoder=StandIn(delay=float(delay)),  # type: ignore[arg-type]
        home=Path(home),
        progress=lambda progress: print(progress.stage, progress.documents, flush=True),
    )
