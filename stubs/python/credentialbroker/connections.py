"""What the connections of both clients have in common."""

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from credentialbroker.authorization import Authorization, Headers, Key
from credentialbroker.core import Core
from credentialbroker.entries import Use

EventT = TypeVar("EventT", threading.Event, asyncio.Event)


class BaseConnection(Generic[EventT]):
    """See `credentialbroker.client.Connection` and `credentialbroker.aio.AsyncConnection`."""

    def __init__(
        self, core: Core[Any, Any], authorization: Authorization, changed: EventT, touch: Callable[[Key], None]
    ) -> None:
        """
        Begin a connection; the client does that.

        Args:
            core: of the client.
            authorization: what it is dialled with.
            changed: set when it is over.
            touch: begins a refresh, if that is due.
        """
        self.authorization: Final = authorization
        self._core: Final = core
        self._changed: Final[EventT] = changed
        self._touch: Final = touch
        self._use: Final = Use(authorization.connection_tag, changed.set)
        with core.lock:
            core.entries.connect(authorization, self._use)

    @property
    def headers(self) -> Headers:
        """All headers to dial with."""
        return self.authorization.headers

    @property
    def connection_tag(self) -> str:
        """The tag that the connection is authenticated under."""
        return self.authorization.connection_tag

    def changed(self) -> bool:
        """Return whether the connection must be closed: its headers were withdrawn, or are of another tag by now."""
        if not self._changed.is_set():
            self._touch(self.authorization.key)
        return self._changed.is_set()

    def close(self) -> None:
        """Forget the connection, which is closed. Closing twice is fine."""
        with self._core.lock:
            self._core.entries.disconnect(self.authorization.key, self._use, time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self.authorization!r}>"
