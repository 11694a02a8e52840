"""The indexes that a server has open, and their encoders: each loaded once, whoever asks."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from epic_search.errors import Unavailable, UserError
from epic_search.index import Searcher
from epic_search.index.folder import Home
from epic_search.index.manifest import Manifest
from epic_search.index.place import manifest_of
from epic_search.serving.problems import RETRY, ApiError
from epic_search.serving.shared import SharedEncoder, SharedStore

if TYPE_CHECKING:
    from epic_search.encoder import Encoder
    from epic_search.index.store.protocol import VectorStore
    from epic_search.serving.metrics import Metrics

Load = Callable[[Manifest], "Encoder"]


class Served:
    """An index that is open until it is deleted, or its store fails; the next request opens it again."""

    def __init__(self, name: str, open_: Callable[[str], Searcher]) -> None:
        self.name = name
        self.one_writer = threading.Lock()
        self._open = open_
        self._changing = threading.Lock()
        self._users = 0
        self._is_lost = False
        self._searcher: Searcher | None = open_(name)

    @contextmanager
    def use(self) -> Iterator[Searcher]:
        """The open index; raises ApiError when it is no more, or cannot be opened now."""
        searcher = self._enter()
        try:
            yield searcher
        except Unavailable:
            self._is_lost = True
            raise
        finally:
            with self._changing:
                self._users -= 1

    def close(self) -> None:
        """Close the index."""
        with self._changing:
            if self._searcher is not None:
                self._searcher.close()
                self._searcher = None

    def _enter(self) -> Searcher:
        with self._changing:
            lock = self._searcher.lock if self._searcher is not None else None
            if lock is not None and not lock.is_in_place:
                self._is_lost = True
            if self._is_lost:
                if self._users:
                    raise ApiError(503, f"index '{self.name}' is being opened again", "ask again", headers=RETRY)
                if self._searcher is not None:
                    self._searcher.close()
                    self._searcher = None
                self._is_lost = False
            if self._searcher is None:
                self._searcher = self._open(self.name)
            self._users += 1
            return self._searcher


class Shelf:
    """The indexes by name. `load` gives the encoder that a manifest names. Close it."""

    def __init__(self, names: Sequence[str], *, home: Home, load: Load, metrics: "Metrics") -> None:
        """Open all; raises UserError for one that cannot be opened."""
        self._home = home
        self._load = load
        self._metrics = metrics
        self._url: str | None = None
        self._encoders: dict[str, SharedEncoder] = {}  # by fingerprint
        self._loading = threading.Lock()
        self._served: dict[str, Served] = {}
        self.opened = int(time.time())
        try:
            for name in names:
                self._served[name] = Served(name, self._open)
        except BaseException:
            self.close()
            raise
        metrics.watch("waiting_tokens", "Tokens that wait to be encoded.", self._waiting_tokens)

    @property
    def names(self) -> list[str]:
        """Of the indexes, the default first."""
        return list(self._served)

    @contextmanager
    def use(self, name: str | None) -> Iterator[Searcher]:
        """An open index, the first by default; raises ApiError for one that is not served, or is gone."""
        with self._find(name).use() as searcher:
            yield searcher

    @contextmanager
    def change(self, name: str) -> Iterator[Searcher]:
        """The same, for what writes: one at a time."""
        served = self._find(name)
        with served.one_writer, served.use() as searcher:
            yield searcher

    def encoders(self) -> dict[str, SharedEncoder]:
        """The encoders by the name that clients ask for: their own, with the fingerprint where two have the same."""
        named: dict[str, SharedEncoder] = {}
        for fingerprint, encoder in list(self._encoders.items()):
            named[encoder.name if encoder.name not in named else f"{encoder.name}@{fingerprint[:12]}"] = encoder
        return named

    def announce(self, url: str) -> None:
        """Let other processes know where these indexes are served."""
        self._url = url
        for name in self.names:
            with self.use(name) as searcher:
                _announce(searcher, url)

    def close(self) -> None:
        """Close all."""
        for served in self._served.values():
            served.close()
        for encoder in self._encoders.values():
            encoder.close()

    def _find(self, name: str | None) -> Served:
        served = self._served.get(self.names[0] if name is None else name)
        if served is None:
            raise ApiError(404, f"no index '{name}' is served", f"served are {', '.join(self.names)}")
        return served

    def _open(self, name: str) -> Searcher:
        try:
            manifest = manifest_of(name, self._home)
        except UserError as error:
            if self._url is None:
                raise  # the server is only starting
            hint = f"index it again with 'epic-search index FILE --name {name}', and ask again"
            raise ApiError(404, f"index '{name}' is not there any more", hint) from error
        encoder = cast("Encoder", self._encoder(manifest))
        searcher = Searcher.open(name, home=self._home, encoder=encoder)
        observe = self._metrics.batches_of("store")
        searcher.through(lambda store: cast("VectorStore", SharedStore(store, observe=observe)))
        if self._url is not None:
            _announce(searcher, self._url)
        return searcher

    def _encoder(self, manifest: Manifest) -> SharedEncoder:
        with self._loading:
            if manifest.fingerprint not in self._encoders:
                loaded = self._load(manifest)
                manifest.require_encoder(loaded)
                shared = SharedEncoder(loaded, observe=self._metrics.batches_of("encoder"))
                self._encoders[manifest.fingerprint] = shared
            return self._encoders[manifest.fingerprint]

    def _waiting_tokens(self) -> float:
        return float(sum(encoder.waiting_tokens for encoder in list(self._encoders.values())))


def _announce(searcher: Searcher, url: str) -> None:
    if searcher.lock is not None:
        searcher.lock.announce(url)
