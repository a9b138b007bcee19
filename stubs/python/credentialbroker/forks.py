"""What must go on in a child made by `os.fork()`."""

import logging
import os
import threading
import weakref
from typing import Final, Protocol

_LOG: Final = logging.getLogger("credentialbroker")


class Forkable(Protocol):
    """Something with a lock and threads, neither of which a child can use."""

    def _before_fork(self) -> None:
        """Take the lock: nobody is half-way through a change then."""

    def _after_fork_in_parent(self) -> None:
        """Let the lock go."""

    def _after_fork_in_child(self) -> None:
        """Go on with a lock of its own."""


_all: Final["weakref.WeakSet[Forkable]"] = weakref.WeakSet()
_lock: Final = threading.Lock()
"""Held during a fork: of two at once each would wait for what the other has."""
_forking: Final[list[Forkable]] = []


def take_over_forks(one: Forkable) -> None:
    """Let something go on in the children of this process, for as long as it is referred to."""
    with _lock:
        _all.add(one)


def _before() -> None:
    _lock.acquire()
    _forking.extend(_all)
    for one in _forking:
        one._before_fork()  # noqa: SLF001 - private to the package


def _after_in_parent() -> None:
    while _forking:
        _forking.pop()._after_fork_in_parent()  # noqa: SLF001
    _lock.release()


def _after_in_child() -> None:
    while _forking:
        try:
            _forking.pop()._after_fork_in_child()  # noqa: SLF001
        except Exception:  # noqa: BLE001 - logged with its traceback
            # That one is closed in the child; the others go on.
            _LOG.exception("a client could not be taken over a fork")
    _lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
