"""What the service has done so far, in Prometheus' form."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import Scope

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "vlp_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "vlp_request_seconds",
            "From header to answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "vlp_batch_size",
            "Items in a forward pass.",
            ("tower",),
            buckets=SIZES,
            registry=registry,
        )
        self.remembered = Counter(
            "vlp_texts_remembered", "Texts that cost no forward pass.", registry=registry
        )
        self.at_work = Gauge("vlp_requests_at_work", "Requests at work.", registry=registry)
        self.pictures = Gauge("vlp_index_pictures", "Pictures of the index.", registry=registry)

    def finished(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; 499 is a client that hung up."""
        # Only paths that there are: a client must not make up series.
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, tower: str) -> Callable[[float], None]:
        """Return what counts the sizes of a tower's batches."""
        return self._batches.labels(tower).observe

    def response(self) -> Response:
        """Return all of it as text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
