"""A store whose calls are counted: the seam at which a test sees that a call touched no database."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

from broker.errors import BrokerError
from broker.store import Store
from broker.telemetry import Metrics


class _ObservedStore:
    """Passes every call on and counts it by method and outcome."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            outcome = "ok"
            try:
                return await method(*args, **kwargs)
            except BrokerError as error:
                outcome = error.reason
                raise
            finally:
                self._metrics.count(self._metrics.store_calls, name, outcome)

        # Looked up once: the next call finds it as an ordinary attribute.
        setattr(self, name, call)
        return call


def observed(store: Store, metrics: Metrics) -> Store:
    """Return the store with its calls counted."""
    return cast("Store", _ObservedStore(store, metrics))
