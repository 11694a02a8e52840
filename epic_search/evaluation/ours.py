"""Our encoder as mteb asks for a model: it encodes, and it searches through the index and searcher that users call."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.encoder import Encoder, Prompt
from epic_search.errors import UserError
from epic_search.evaluation.meter import Meter, sample
from epic_search.evaluation.ranking import best_documents
from epic_search.evaluation.splits import query_texts
from epic_search.index import Searcher, index_corpus
from epic_search.index.document import Document
from epic_search.index.passages import cut

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from torch.utils.data import DataLoader

QUERIES_AT_ONCE = 64  # bounds the size of one answer of the index: rankings go down to a thousand documents


class MeteredEncoder:
    """An encoder whose texts, tokens and seconds are counted; everything else is the encoder's own."""

    def __init__(self, encoder: Encoder, meter: Meter) -> None:
        self._encoder = encoder
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_passages(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """See Encoder."""
        with self._meter.encoding():
            vectors_PE = self._encoder.encode_passages(texts, **options)
        around = len(self._encoder.template.passage)
        self._meter.count_passages(len(texts), sampled_tokens=self._tokens(texts, around))
        return vectors_PE

    def encode_queries(self, texts: Sequence[str], *, prompt: Prompt | None = None, **options: Any) -> np.ndarray:
        """See Encoder."""
        with self._meter.encoding():
            vectors_QE = self._encoder.encode_queries(texts, prompt=prompt, **options)
        around = len(self._encoder.layout(prompt or self._encoder.prompt()))
        self._meter.count_queries(texts, sampled_tokens=self._tokens(texts, around))
        return vectors_QE

    def _tokens(self, texts: Sequence[str], around: int) -> list[int]:
        return [around + len(ids) for ids in self._encoder.token_ids(sample(texts))]


class EvaluatedEncoder:
    """mteb's EncoderProtocol for one encoder under one prompt.

    Texts that mteb calls documents are encoded as passages; all others, those of symmetric tasks among them, as queries
    under the prompt.
    """

    def __init__(self, encoder: Encoder, *, prompt: Prompt, meta: "ModelMeta", meter: Meter) -> None:
        self.encoder: Encoder = MeteredEncoder(encoder, meter)  # type: ignore[assignment]
        self.prompt = prompt
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: "DataLoader",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """(n, dim) float32 unit-length vectors of the loader's texts, in its order."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == "document":
            return self.encoder.encode_passages(texts)
        return self.encoder.encode_queries(texts, prompt=self.prompt)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """(n, m) cosines of two sets of unit vectors."""
        return np.atleast_2d(embeddings1) @ np.atleast_2d(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """(n,) cosines of vectors of the same rows."""
        return np.einsum("ne,ne->n", np.atleast_2d(embeddings1), np.atleast_2d(embeddings2))


class ExactSearch(EvaluatedEncoder):
    """Adds mteb's SearchProtocol without an index: all cosines by one product, the best passage of each document.

    The yardstick of IndexSearch, and what ranks given candidates. `cache` keeps the passages' vectors of a corpus for
    the prompts to come.
    """

    def __init__(self, *args: Any, cache: dict[str, tuple[np.ndarray, np.ndarray]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._cache = cache

    def index(
        self, corpus: "Dataset", *, task_metadata: "TaskMetadata", hf_split: str, hf_subset: str, **_: Any
    ) -> None:
        """Encode the passages of every document that has a text."""
        key = _corpus_key(task_metadata, hf_split, hf_subset)
        if key not in self._cache:
            self._cache.clear()  # one corpus at a time
            rows = [row for row in map(_document, corpus) if row.text.strip() or row.title.strip()]
            documents = cut(rows, self.encoder)
            vectors_PE = self.encoder.encode_passages([text for document in documents for text in document.texts])
            owners_P = np.repeat([d.document.id for d in documents], [len(d.texts) for d in documents])
            self._cache[key] = (owners_P, vectors_PE)
        self._owners_P, self._passages_PE = self._cache[key]

    def search(
        self,
        queries: "Dataset",
        *,
        top_k: int,
        top_ranked: dict[str, list[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {document id: cosine}} of the `top_k` best documents, or of the candidates in `top_ranked`."""
        ids = list(queries["id"])
        queries_QE = self.encoder.encode_queries(query_texts(queries), prompt=self.prompt)
        documents_D = np.unique(self._owners_P)
        order_P = np.argsort(self._owners_P, kind="stable")
        starts_D = np.searchsorted(self._owners_P[order_P], documents_D)
        position = {str(document): i for i, document in enumerate(documents_D)}
        results: dict[str, dict[str, float]] = {}
        for query, vector_E in zip(ids, queries_QE, strict=True):
            best_D = np.maximum.reduceat((self._passages_PE @ vector_E)[order_P], starts_D)
            candidates = None if top_ranked is None else top_ranked.get(query, [])
            results[query] = best_documents(best_D, position, top_k=top_k, candidates=candidates)
        return results


class IndexSearch(EvaluatedEncoder):
    """Adds mteb's SearchProtocol through an index in `home`, which serves every prompt after the first."""

    def __init__(self, *args: Any, home: Path, exact: ExactSearch, **options: Any) -> None:
        super().__init__(*args, **options)
        self._home = home
        self._exact = exact
        self._name = ""
        self._corpus: tuple[Any, dict[str, Any]] = (None, {})

    def index(
        self, corpus: "Dataset", *, task_metadata: "TaskMetadata", hf_split: str, hf_subset: str, **_: Any
    ) -> None:
        """Index the corpus as `epic-search index` does, unless it is there; a stopped run goes on where it was."""
        where = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        self._corpus = (corpus, where)
        self._name = _corpus_key(task_metadata, hf_split, hf_subset)

    def search(
        self,
        queries: "Dataset",
        *,
        top_k: int,
        top_ranked: dict[str, list[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {document id: cosine}} of the `top_k` best documents, or of the candidates in `top_ranked`."""
        corpus, where = self._corpus
        if top_ranked is not None:  # a person's index is not asked to rank candidates that came from elsewhere
            self._exact.index(corpus, **where)
            return self._exact.search(queries, top_k=top_k, top_ranked=top_ranked)
        self._index(corpus)
        results: dict[str, dict[str, float]] = {}
        with Searcher.open(self._name, home=self._home, encoder=self.encoder) as searcher:
            asked = [
                (query, text)
                for query, text in zip(queries["id"], query_texts(queries), strict=True)
                if text.strip()  # the searcher refuses to look for nothing
            ]
            for first in range(0, len(asked), QUERIES_AT_ONCE):
                some = asked[first : first + QUERIES_AT_ONCE]
                found = searcher.search(
                    [text for _query, text in some], k=top_k, mode="dense", prompt=self.prompt, texts=False
                )
                for (query, _text), hits in zip(some, found, strict=True):
                    results[query] = {hit.id: hit.score for hit in hits}
        return results

    def _index(self, corpus: "Dataset") -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        file = self._home / f"{self._name}.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for row in corpus:
                lines.write(json.dumps({"_id": row["id"], "title": row.get("title") or "", "text": row["text"]}) + "\n")
        report = index_corpus(file, name=self._name, encoder=self.encoder, home=self._home)
        if lost := report.problem_counts.keys() - {"empty text"}:
            raise UserError(f"some documents cannot be indexed ({', '.join(sorted(lost))}): {report.problems[0]}")


def _document(row: dict[str, Any]) -> Document:
    return Document(str(row["id"]), (row.get("title") or "").strip(), row["text"], {}, "", 0, b"")


def _corpus_key(task_metadata: "TaskMetadata", hf_split: str, hf_subset: str) -> str:
    """A valid index name that no other corpus has, and no other version of this one."""
    parts = f"{task_metadata.dataset['path']}@{task_metadata.dataset['revision']}/{hf_subset}/{hf_split}"
    plain = re.sub(r"[^a-z0-9]+", "-", task_metadata.name.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
