"""A store that kills its process at a named write: a crash at exactly that step, with nothing flushed or given back."""

import os
import signal
from collections.abc import Callable
from typing import Any

from broker.store import Store


class DyingStore:
    """
    A store that ends its process by SIGKILL; everything else is the real store behind it.

    Args:
        store: the real store.
        before: the method that is never begun.
        after: the method whose effect is in the database, and of which nobody learns any more.
    """

    def __init__(self, store: Store, *, before: str | None, after: str | None) -> None:
        for method in (before, after):
            if method is not None and not hasattr(store, method):
                raise AttributeError(f"the store has no method {method}")
        self._store = store
        self._before = before
        self._after = after

    def __getattr__(self, method: str) -> Callable[..., Any]:
        real = getattr(self._store, method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if method == self._before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = await real(*args, **kwargs)
            if method == self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call
