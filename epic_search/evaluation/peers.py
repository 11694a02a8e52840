"""What our encoder is measured against: sentence-transformers models and BM25, each with its recommended settings."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.evaluation.meter import Meter, sample
from epic_search.evaluation.ranking import best_documents
from epic_search.evaluation.splits import query_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

# Lucene's variant with the parameters of the published BEIR baselines (Pyserini).
K1 = 0.9
B = 0.4


class SentenceTransformerPeer:
    """mteb's EncoderProtocol for a sentence-transformers model, with the prompts that its own configuration names."""

    def __init__(self, model: "SentenceTransformer", *, meta: "ModelMeta", meter: Meter) -> None:
        from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

        self._wrapped = SentenceTransformerEncoderWrapper(model)
        self._model = model
        self._meter = meter
        self._prompt = ""
        self.mteb_model_meta = meta

    def encode(
        self, inputs: "DataLoader", *, task_metadata: "TaskMetadata", prompt_type: Any = None, **options: Any
    ) -> np.ndarray:
        """(n, dim) vectors of the loader's texts, in its order."""
        texts = [text for batch in inputs for text in batch["text"]]
        with self._meter.encoding():
            vectors = self._wrapped.encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **options)
        prompt = self._own_prompt(task_metadata, prompt_type)
        read = [prompt + text for text in sample(texts)]
        tokens = self._model.tokenizer(read, truncation=True, max_length=self._model.max_seq_length)
        counts = [len(ids) for ids in tokens["input_ids"]]
        if prompt_type == "document":
            self._meter.count_passages(len(texts), sampled_tokens=counts)
        else:
            self._meter.count_queries(texts, sampled_tokens=counts)
            self._prompt = prompt
        return np.asarray(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n, m) similarities as the model defines them."""
        return self._wrapped.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n,) similarities as the model defines them."""
        return self._wrapped.similarity_pairwise(embeddings1, embeddings2)

    def query_seconds(self, query: str) -> float:
        """How long one query by itself takes to encode."""
        started = time.perf_counter()
        self._model.encode([query], prompt=self._prompt or None, show_progress_bar=False)
        return time.perf_counter() - started

    def _own_prompt(self, task_metadata: "TaskMetadata", prompt_type: Any) -> str:
        """What the model's configuration puts before texts of this sort."""
        from mteb.models.abs_encoder import get_prompt_name

        prompts = {name: text for name, text in self._model.prompts.items() if text}
        name = get_prompt_name(prompts, task_metadata, prompt_type) if prompts else None
        return prompts.get(name or "", "")


class BM25Peer:
    """mteb's SearchProtocol for BM25: bm25s with Lucene's scoring, English stop words and the Porter stemmer.

    Title and text are one field.
    """

    def __init__(self, *, meta: "ModelMeta", meter: Meter) -> None:
        import Stemmer

        self.mteb_model_meta = meta
        self._meter = meter
        self._stemmer = Stemmer.Stemmer("porter")

    def index(self, corpus: "Dataset", **_: Any) -> None:
        """Tokenise and index every document."""
        import bm25s

        texts = [" ".join(part for part in (row.get("title") or "", row["text"]) if part) for row in corpus]
        with self._meter.encoding():
            self._ids = list(corpus["id"])
            self._retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
            self._retriever.index(self._tokens(texts), show_progress=False)
        self._meter.texts += len(texts)

    def search(
        self,
        queries: "Dataset",
        *,
        top_k: int,
        top_ranked: dict[str, list[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {document id: BM25 score}} of the `top_k` best documents, or of the candidates in `top_ranked`."""
        position = {document: i for i, document in enumerate(self._ids)}
        results: dict[str, dict[str, float]] = {}
        with self._meter.encoding():
            for query, text in zip(queries["id"], query_texts(queries), strict=True):
                candidates = None if top_ranked is None else top_ranked.get(query, [])
                results[query] = best_documents(self._scores(text), position, top_k=top_k, candidates=candidates)
        self._meter.texts += len(results)
        self._meter.queries += len(results)
        self._meter.keep_some(query_texts(queries))
        return results

    def query_seconds(self, query: str) -> float:
        """How long one query by itself takes to score against the last corpus."""
        started = time.perf_counter()
        self._scores(query)
        return time.perf_counter() - started

    def _scores(self, text: str) -> np.ndarray:
        [words] = self._tokens([text], return_ids=False)
        known = [word for word in words if word in self._retriever.vocab_dict]
        if not known:
            return np.zeros(len(self._ids), dtype=np.float32)
        return self._retriever.get_scores(known)

    def _tokens(self, texts: list[str], *, return_ids: bool = True) -> Any:
        import bm25s

        return bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, show_progress=False, return_ids=return_ids, allow_empty=True
        )
