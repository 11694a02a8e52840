"""An encoder and a store that many threads use at once: their faces are the usual ones, their work goes in batches.

So a `Searcher` answers concurrent requests as it answers one, and knows nothing of the others.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.encoder.batching import token_budget
from epic_search.index.store.protocol import RRF, Fusion, Match, StoreQuery
from epic_search.index.taught import as_stored
from epic_search.serving.batcher import Batcher

if TYPE_CHECKING:
    from epic_search.encoder import Demonstration, Encoder, Prompt
    from epic_search.encoder.prompt import DemonstrationKind
    from epic_search.index.filters import Filter
    from epic_search.index.store.protocol import VectorStore

WAITING_BATCHES = 64  # of tokens, before a request is turned away
PROMPTS = 256  # kept: a prompt that comes again is not encoded again
QUERIES = 256  # whose vectors are kept: to explain a search, or to rank it anew after teaching, encodes nothing
SEARCHES = 64  # queries in one request to the engine

Observe = Callable[[int, int], None]
"""Told of each batch: how many texts (or queries), and how many tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A text to encode: a query under a prompt, or, without one, a passage. `tokens`: in all of the row."""

    text: str
    prompt: "Prompt | None"
    tokens: int


class SharedEncoder:
    """An `Encoder`, as far as searching and teaching use it. Close it."""

    def __init__(self, encoder: "Encoder", *, observe: Observe = lambda texts, tokens: None) -> None:
        self._encoder = encoder
        self._observe = observe
        self._one_at_a_time = threading.Lock()
        self._prompts: OrderedDict[Hashable, Prompt] = OrderedDict()
        self._keeping = threading.Lock()
        self._queries: OrderedDict[tuple[str, Prompt], np.ndarray] = OrderedDict()
        budget = token_budget(encoder.device)
        self._batcher = Batcher(self._encode, name="encoder", budget=budget, capacity=WAITING_BATCHES * budget)

    def __getattr__(self, name: str) -> Any:
        """What an encoder is (its name, its widths) and what asks nothing of the model (token ids, layouts)."""
        return getattr(self._encoder, name)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        prompt: "Prompt | None" = None,
        prompts: "Sequence[Prompt] | None" = None,
        whole: bool = False,
    ) -> np.ndarray:
        """See Encoder; texts of all threads share batches, whatever their prompts."""
        if prompts is None:
            prompts = [prompt or self.prompt()] * len(texts)
        asked = list(zip(texts, prompts, strict=True))
        with self._keeping:
            found = {query: self._queries[query] for query in asked if query in self._queries}
        new = [query for query in dict.fromkeys(asked) if query not in found]
        around = {prompt: len(self._encoder.layout(prompt)) for prompt in {prompt for _, prompt in new}}
        ids = self._encoder.token_ids([text for text, _ in new])
        rows = [
            _Text(text, prompt, around[prompt] + len(of_text)) for (text, prompt), of_text in zip(new, ids, strict=True)
        ]
        found |= zip(new, self._rows(rows), strict=True)
        with self._keeping:
            self._queries |= found
            for query in found:
                self._queries.move_to_end(query)
            while len(self._queries) > QUERIES:
                self._queries.popitem(last=False)
        return self._stacked([found[query] for query in asked], whole=whole)

    def encode_passages(self, texts: Sequence[str], *, whole: bool = False) -> np.ndarray:
        """See Encoder; texts of all threads share batches."""
        around = len(self._encoder.template.passage)
        ids = self._encoder.token_ids(texts)
        rows = [_Text(text, None, around + len(of_text)) for text, of_text in zip(texts, ids, strict=True)]
        return self._stacked(self._rows(rows), whole=whole)

    def prompt(
        self,
        *,
        task: str | None = None,
        demonstrations: "Sequence[Demonstration]" = (),
        kind: "DemonstrationKind | None" = None,
    ) -> "Prompt":
        """See Encoder; the same again is the same object, whose prefix the encoder knows."""
        key = (task, tuple(demonstrations), kind)
        with self._one_at_a_time:
            made = self._prompts.get(key) or self._encoder.prompt(task=task, demonstrations=demonstrations, kind=kind)
            self._prompts[key] = made
            self._prompts.move_to_end(key)
            if len(self._prompts) > PROMPTS:
                self._prompts.popitem(last=False)
        return made

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be encoded."""
        return self._batcher.waiting

    def close(self) -> None:
        """End the worker."""
        self._batcher.close()

    def _rows(self, texts: list[_Text]) -> list[np.ndarray]:
        return self._batcher(texts, costs=[text.tokens for text in texts])

    def _stacked(self, rows: list[np.ndarray], *, whole: bool) -> np.ndarray:
        width = self._encoder.model.dim
        vectors_NE = np.stack(rows) if rows else np.empty((0, width), dtype=np.float32)
        return as_stored(vectors_NE, width if whole else self._encoder.dim)

    def _encode(self, _: Hashable, texts: list[_Text]) -> list[np.ndarray]:
        """Whole vectors (E,) of texts of any kind."""
        vectors: dict[int, np.ndarray] = {}
        queries = [i for i, text in enumerate(texts) if text.prompt is not None]
        passages = [i for i, text in enumerate(texts) if text.prompt is None]
        with self._one_at_a_time:
            if queries:
                prompts = [prompt for text in texts if (prompt := text.prompt) is not None]
                rows_NE = self._encoder.encode_queries([texts[i].text for i in queries], prompts=prompts, whole=True)
                vectors |= zip(queries, rows_NE, strict=True)
            if passages:
                rows_NE = self._encoder.encode_passages([texts[i].text for i in passages], whole=True)
                vectors |= zip(passages, rows_NE, strict=True)
        self._observe(len(texts), sum(text.tokens for text in texts))
        return [vectors[i] for i in range(len(texts))]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What searches that go to the engine together have in common. `filter` is compared as text: 1 is not True."""

    limit: int
    name: str
    filter: str
    fields: tuple[str, ...] | None
    fusion: Fusion


class SharedStore:
    """A `VectorStore` whose searches go to the engine together: it answers ten in the time of three."""

    def __init__(self, store: "VectorStore", *, observe: Observe = lambda queries, tokens: None) -> None:
        self._store = store
        self._observe = observe
        self._batcher = Batcher(self._search, name="store", budget=SEARCHES, capacity=16 * SEARCHES, window=0.0)

    def __getattr__(self, name: str) -> Any:
        """Everything else is as it was."""
        return getattr(self._store, name)

    def search(
        self,
        queries: Sequence[StoreQuery],
        *,
        limit: int,
        name: str = "",
        filter: "Filter | None" = None,
        fields: Sequence[str] | None = None,
        fusion: Fusion = RRF,
    ) -> list[list[Match]]:
        """See VectorStore."""
        key = _Asked(limit, name, repr(filter), None if fields is None else tuple(fields), fusion)
        return self._batcher([(query, filter) for query in queries], key=key)

    def close(self) -> None:
        """End the worker; whoever opened the store closes it."""
        self._batcher.close()

    def _search(self, key: Hashable, asked: list[tuple[StoreQuery, "Filter | None"]]) -> list[list[Match]]:
        assert isinstance(key, _Asked), key
        self._observe(len(asked), 0)
        return self._store.search(
            [query for query, _ in asked],
            limit=key.limit,
            name=key.name,
            filter=asked[0][1],
            fields=key.fields,
            fusion=key.fusion,
        )
