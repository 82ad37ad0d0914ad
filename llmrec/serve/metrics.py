"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counts requests, jobs and what the model does; also the engine's `Observer`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "llmrec_requests", "Requests by endpoint and status", ("endpoint", "status"), registry=registry
        )
        self._latency = Histogram(
            "llmrec_request_seconds",
            "Time from a request's head to its last byte",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._busy = Counter("llmrec_model_seconds", "Time the model worked", ("kind",), registry=registry)
        self._jobs = Counter("llmrec_jobs", "Works done and steps of texts", ("kind",), registry=registry)
        self._batches = Histogram(
            "llmrec_batch_size", "Works run together", ("kind",), buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._dropped = Counter(
            "llmrec_jobs_dropped", "Jobs that ended without a result", ("kind", "reason"), registry=registry
        )
        self.items = Counter("llmrec_items_recommended", "Items of all lists and texts", registry=registry)
        self.tokens = Counter("llmrec_tokens_generated", "Tokens of all texts", registry=registry)
        self.swaps = Counter("llmrec_catalog_swaps", "Catalogue versions published", registry=registry)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._latency.labels(endpoint).observe(seconds)

    def ran(self, kind: str, size: int, seconds: float) -> None:
        """See `Observer.ran`."""
        self._busy.labels(kind).inc(seconds)
        self._jobs.labels(kind).inc(size)
        if kind != "step":
            self._batches.labels(kind).observe(size)

    def dropped(self, kind: str, reason: str) -> None:
        """See `Observer.dropped`."""
        self._dropped.labels(kind, reason).inc()

    def text(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self.registry)
