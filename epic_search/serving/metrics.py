"""What the server counts, in Prometheus' text form."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from epic_search.serving.shared import Observe

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for every counter, which nothing reads
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        labels = ["method", "route", "status"]
        self._requests = Counter("epic_search_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "epic_search_request_seconds", "From head to answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self._batch = Histogram(
            "epic_search_batch_size",
            "Texts encoded, or queries asked of a store, at once.",
            ["worker"],
            buckets=SIZES,
            registry=registry,
        )
        self._tokens = Counter("epic_search_encoded_tokens", "Tokens encoded.", registry=registry)

    def request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route`: the path as the app declares it; a label of the clients' making would never end."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batches_of(self, worker: str) -> "Observe":
        """What a worker tells of its batches."""
        sizes = self._batch.labels(worker)

        def observe(items: int, tokens: int) -> None:
            sizes.observe(items)
            self._tokens.inc(tokens)

        return observe

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A number that is looked at when somebody asks."""
        Gauge(f"epic_search_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
