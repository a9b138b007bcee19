"""
What the broker tells of itself: structured events on standard error, and Prometheus metrics.

Events are redacted by construction: only plain values pass, everything else is shown as its type, and texts that look
like a credential are cut out as a second net. No label of a metric ever holds an identity, a thread or a principal.
"""

import bisect
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Final, TextIO

import structlog
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker import __version__
from broker.model import CredentialKind, DecisionReason

Logger = structlog.typing.FilteringBoundLogger
EventDict = MutableMapping[str, Any]

_CREDENTIAL: Final = re.compile(
    r"(?:Bearer|AgentAssertion)\s+\S+"
    r"|eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"
    r"|MFECAQEw\S*|MC4CAQAw\S*"
    r"|\b(?:sk|at|rt)-[A-Za-z0-9_-]{8,}"
    r"|-----BEGIN [A-Z ]+-----.*",
    re.DOTALL,
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONGEST_TEXT: Final = 2000


def redact(text: str) -> str:
    """Cut out whatever looks like a credential, and bound the length."""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}...({len(text)} characters)"
    return _CREDENTIAL.sub("[redacted]", text)


def _redacted(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
        case dict():
            return {redact(str(key)): _redacted(item) for key, item in value.items()}
        case _:
            return f"<{type(value).__name__}>"


def redact_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Let only plain values through: the processor that every event passes last but for the renderer."""
    for key, value in event.items():
        event[key] = _redacted(value)
    return event


def _exception_without_locals(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Show an exception as its type and where it arose; its text may quote what it was given, so that is left out."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):  # how the standard library hands it on
        error = error[1]
    if isinstance(error, BaseException):
        causes = []
        while error is not None:
            frames = error.__traceback__
            place = ""
            while frames is not None:
                place = f"{frames.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frames.tb_lineno}"
                frames = frames.tb_next
            causes.append(f"{type(error).__name__} at {place}")
            error = error.__cause__ or error.__context__
        event["error"] = "; caused by ".join(causes)
    return event


def _on_one_line(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape what would break a line or steer a terminal; the renderer quotes every other text by itself."""
    event["event"] = _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(event.get("event", "")))
    return event


def configure_logging(level: str, style: str, stream: TextIO | None = None) -> None:
    """
    Send every event, of ours and of libraries, to `stream` (standard error), one a line.

    `style` is `json`, `console`, or `auto`: console where the stream is a terminal.
    """
    stream = stream or sys.stderr
    console = style == "console" or (style == "auto" and stream.isatty())
    renderer: Callable[..., Any] = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _exception_without_locals,
        redact_event,
        *([_on_one_line] if console else []),
    ]
    number = logging.getLevelName(level.upper())
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries may put URLs, headers and statements into their informational events, so only warnings pass.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def logger(name: str) -> Logger:
    """Return the event logger of a module."""
    log: Logger = structlog.get_logger(module=name)
    return log


class Tally:
    """A number that only grows. Everything is counted on the broker's one event loop, so adding needs no lock."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CounterFamily(Collector):
    """
    A Prometheus counter whose children are plain numbers.

    A counter of prometheus-client takes a lock for each increment, which on the warm path costs more than deciding.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self.label_names: Final = tuple(labels)
        self._tallies: dict[tuple[str, ...], Tally] = {} if labels else {(): Tally()}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """Return the number with these values of the labels, in their order."""
        tally = self._tallies.get(values)
        if tally is None:
            if len(values) != len(self.label_names):
                message = f"{self._name} has the labels {self.label_names}"
                raise ValueError(message)
            tally = self._tallies[values] = Tally()
        return tally

    @property
    def total(self) -> int:
        """The sum over all labels."""
        return sum(tally.value for tally in self._tallies.values())

    def describe(self) -> Iterable[Metric]:
        """Name the metric without its values."""
        yield CounterMetricFamily(self._name, self._text, labels=self.label_names)

    def collect(self) -> Iterable[Metric]:
        """Return the values as they are now."""
        family = CounterMetricFamily(self._name, self._text, labels=self.label_names)
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, tally.value)
        yield family


class Durations:
    """How long things took: counts by upper bound, and their sum in seconds."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds


class HistogramFamily(Collector):
    """A Prometheus histogram made like `CounterFamily`."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self.label_names: Final = tuple(labels)
        self._bounds = tuple(bounds)
        self._durations: dict[tuple[str, ...], Durations] = {}
        registry.register(self)

    def labels(self, *values: str) -> Durations:
        """Return what is observed with these values of the labels, in their order."""
        return self._durations.setdefault(values, Durations(self._bounds))

    def describe(self) -> Iterable[Metric]:
        """Name the metric without its values."""
        yield HistogramMetricFamily(self._name, self._text, labels=self.label_names)

    def collect(self) -> Iterable[Metric]:
        """Return the values as they are now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self.label_names)
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        for values, durations in list(self._durations.items()):
            cumulative = itertools.accumulate(durations.counts)
            family.add_metric(values, list(zip(bounds, cumulative, strict=True)), durations.sum)
        yield family


class Metrics:
    """The broker's metrics, in a registry of their own so that several brokers can live in one process."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        rpc_labels = ("grpc_type", "grpc_service", "grpc_method")
        # The names that stock dashboards of gRPC servers know.
        self.rpc_started = self._counter("grpc_server_started", "RPCs begun", *rpc_labels)
        self.rpc_handled = self._counter("grpc_server_handled", "RPCs ended, by code", *rpc_labels, "grpc_code")
        self.rpc_seconds = HistogramFamily(
            "grpc_server_handling_seconds",
            "Seconds from the request to the answer",
            rpc_labels,
            (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            self.registry,
        )
        self._decisions = self._counter(
            "credential_broker_decisions", "Authorizations handed out", "scope", "kind", "reason"
        )
        self._fallbacks = self._counter(
            "credential_broker_fallbacks", "Authorizations of a weaker kind than the scope prefers", "scope", "reason"
        )
        self.refusals = self._counter("credential_broker_refusals", "Calls refused, by error reason", "reason")
        self.signatures = self._counter("credential_broker_signatures", "Assertions signed")
        self.registrations = self._counter(
            "credential_broker_registrations", "Registrations asked of backends", "backend", "operation", "outcome"
        )
        self.backend_requests = self._counter(
            "credential_broker_backend_requests", "HTTP requests sent", "backend", "operation", "outcome"
        )
        self.store_calls = self._counter("credential_broker_store_calls", "Calls of the store", "method", "outcome")
        self.rejections = self._counter(
            "credential_broker_rejections", "Credentials reported as rejected, and steps taken on them", "kind", "step"
        )
        self.audit_lines = self._counter("credential_broker_audit_lines", "Lines written to the audit log", "outcome")
        self.orphans = self._counter(
            "credential_broker_orphaned_upstream_tasks", "Upstream tasks whose answer was lost", "backend"
        )
        self.bearer_refreshes = self._counter(
            "credential_broker_bearer_refreshes", "Tries to obtain a bearer", "source", "outcome"
        )
        self.refresh_probes = self._counter(
            "credential_broker_refresh_probes", "Refresh tokens sent again as their answer was lost", "outcome"
        )
        self.lost_pairs = self._counter(
            "credential_broker_lost_refreshed_tokens", "Refreshed tokens that could not be written down"
        )
        self.revocation_propagation = HistogramFamily(
            "credential_broker_revocation_propagation_seconds",
            "Seconds from a revocation's write by another process until this one heeds it",
            ("what",),
            (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
            self.registry,
        )
        self.watch_values = self._counter("credential_broker_watch_values", "Values sent to watchers", "kind")
        self.watch_withdrawals = self._counter(
            "credential_broker_watch_withdrawals", "Values withdrawn from watchers", "reason"
        )
        self.watch_dropped = self._counter(
            "credential_broker_watch_dropped", "Watch streams that the broker ended with an error", "reason"
        )
        self.watch_streams = Gauge("credential_broker_watch_streams", "Watch streams", registry=self.registry)
        self.watch_subscriptions = Gauge(
            "credential_broker_watch_subscriptions", "Subscriptions of all watch streams", registry=self.registry
        )
        self.identities = Gauge(
            "credential_broker_identities", "Identities in memory", ("state",), registry=self.registry
        )
        self.store_confirmed = Gauge(
            "credential_broker_store_confirmed_timestamp_seconds",
            "When the store was last reached",
            registry=self.registry,
        )
        self.ready = Gauge("credential_broker_ready", "1 while calls are accepted", registry=self.registry)
        Gauge(
            "credential_broker_build_info", "Always 1; the version is a label", ("version",), registry=self.registry
        ).labels(__version__).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> CounterFamily:
        return CounterFamily(name, text, labels, self.registry)

    def count(self, counter: CounterFamily, *labels: str) -> None:
        """Add one."""
        counter.labels(*labels).value += 1

    def decision_tallies(
        self, scope: str, kind: CredentialKind, reason: DecisionReason, fallback_from: CredentialKind | None
    ) -> tuple[Tally, ...]:
        """Return what grows by one with each such authorization: the decision, and the fallback if it is one."""
        decisions = self._decisions.labels(scope, kind.value, reason.value)
        return (decisions,) if fallback_from is None else (decisions, self._fallbacks.labels(scope, reason.value))
