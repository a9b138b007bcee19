"""A bearer in a file that somebody else renews: a mounted secret, an agent's sink."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer, BearerSource, Phase, Standing
from broker.clock import Clock
from broker.errors import IssuerDownError
from broker.model import Secret
from broker.telemetry import logger

_LOG: Final = logger(__name__)

LARGEST_TOKEN_BYTES: Final = 16 * 1024
LOOK_SECONDS: Final = 1.0
"""How long what was read is good for before somebody looks again."""


class BearerFileError(Exception):
    """The file holds no usable token; the text says what is wrong and what to do, never what the file holds."""


def read_token(path: Path) -> Secret:
    """
    Read one token: one line of printable ASCII, trimmed, at most 16 KiB, in a file that others cannot write.

    Raises:
        BearerFileError: it is missing or holds something else.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            raw = file.read(LARGEST_TOKEN_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise BearerFileError(message) from error
    if not stat.S_ISREG(status.st_mode):
        message = f"{path}: is not a regular file"
        raise BearerFileError(message)
    # Mounted secrets are readable by everybody inside their container, so reading is not refused; writing is.
    if status.st_mode & stat.S_IWOTH:
        message = f"{path}: can be written by everybody; chmod o-w {path}"
        raise BearerFileError(message)
    token = as_token(raw.strip().decode("ascii", errors="replace"))
    if token is None or len(raw) > LARGEST_TOKEN_BYTES:
        message = f"{path}: must hold one token: printable ASCII without spaces, at most {LARGEST_TOKEN_BYTES} bytes"
        raise BearerFileError(message)
    return token


def as_token(text: str) -> Secret | None:
    """Return a text as a token; None for one that is none: not printable ASCII, with spaces, longer than 16 KiB."""
    is_one = 0 < len(text) <= LARGEST_TOKEN_BYTES and text.isascii() and text.isprintable() and " " not in text
    return Secret(text) if is_one else None


def _without_waiting(path: str, flags: int) -> int:
    # A pipe would make the open wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK)


class FileSource(BearerSource):
    """
    The token in a file, read again at each refresh: no time or size of a file tells surely that it did not change.

    While the file is missing or holds nothing usable, the last good token is kept until it expires.

    Args:
        path: the file.
        clock: times what is read.
        lifetime: seconds that a token may be used, where it does not say itself when it ends.
        on_change: told after another token was read than before.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        lifetime: float | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._lifetime = lifetime
        self._on_change = on_change
        self._bearer: Bearer | None = None
        self._problem = ""
        self._look_time: float | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """A token may be in it at any time."""
        return False

    def current(self) -> Bearer | None:
        """Return what was last read."""
        return self._bearer

    def phase(self, now: float) -> Phase:
        """Say ADVISORY for a live token when it is time to look into the file again."""
        if self._bearer is None or not self._bearer.is_live(now):
            return Phase.ABSENT
        return Phase.FRESH if self._look_time is not None and now < self._look_time else Phase.ADVISORY

    @property
    def standing(self) -> Standing:
        """In trouble while the file holds nothing usable; when somebody else renews it nobody here knows."""
        if not self._problem:
            return Standing()
        return Standing(trouble=IssuerDownError, retry_time=self._look_time)

    def refresh_soon(self) -> None:
        """Begin to read the file, unless it is being read."""
        self._read()

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:  # noqa: ARG002 - the file has what it has
        """
        Read the file.

        Raises:
            IssuerDownError: there is no usable token in it and none that was read before lives on.
        """
        # A read that is under way may have begun before the change that this caller knows of.
        if self._reading is not None:
            await asyncio.wait({self._reading})
        reading = self._read()
        await asyncio.wait({reading})
        reading.result()
        if self._bearer is None or not self._bearer.is_live(self._clock.now()):
            problem = self._problem or f"{self._path}: the token in it has expired and was not renewed"
            raise IssuerDownError(note=problem)
        return self._bearer

    async def close(self) -> None:
        """Wait for a read that is under way."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    def _read(self) -> asyncio.Task[None]:
        # One at a time, so that what was read later is never replaced by what was read before.
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_once(), name="read-bearer-file")
            self._reading.add_done_callback(self._done)
        return self._reading

    def _done(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read_once(self) -> None:
        problem = ""
        try:
            self._take(await asyncio.to_thread(read_token, self._path))
        except BearerFileError as error:
            problem = str(error)
        if problem and problem != self._problem:
            _LOG.warning("bearer_file_unusable", problem=problem)
        self._problem = problem
        self._look_time = self._clock.now() + LOOK_SECONDS

    def _take(self, token: Secret) -> None:
        if self._bearer is not None and self._bearer.token == token:
            return
        now = self._clock.now()
        expire_time = unverified_expire_time(token)
        if expire_time is None and self._lifetime is not None:
            expire_time = now + self._lifetime
        self._bearer = Bearer(token, expire_time, now)
        _LOG.info("bearer_file_changed", path=str(self._path))
        self._on_change()
