"""A bearer in a file that somebody else renews: a mounted secret, an agent's sink."""

import asyncio
import os
import stat
from pathlib import Path

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer
from broker.clock import Clock
from broker.errors import IssuerDownError
from broker.model import Secret

LARGEST_TOKEN_BYTES = 16 * 1024


class BearerFileError(Exception):
    """The file holds no usable token; the text says what is wrong and what to do, never what the file holds."""


def read_token(path: Path) -> tuple[Secret, os.stat_result]:
    """
    Read one token: UTF-8, trimmed, one line of printable ASCII, at most 16 KiB, in a file that others cannot write.

    Raises:
        BearerFileError: it is missing or holds something else.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(LARGEST_TOKEN_BYTES + 1)
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
    text = raw.strip().decode("ascii", errors="replace")
    if not text or len(raw) > LARGEST_TOKEN_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        message = f"{path}: must hold one token: printable ASCII without spaces, at most {LARGEST_TOKEN_BYTES} bytes"
        raise BearerFileError(message)
    return Secret(text), status


class FileSource:
    """
    The token in a file, read again when the file changes.

    While the file is missing or holds nothing usable, the last good token is kept until it expires.
    """

    def __init__(self, path: Path, clock: Clock, *, lifetime: float | None = None) -> None:
        self._path = path
        self._clock = clock
        self._lifetime = lifetime
        self._bearer: Bearer | None = None
        self._seen: tuple[int, int, int, int] | None = None

    def current(self) -> Bearer | None:
        """Return what was last read."""
        return self._bearer

    async def refresh(self) -> Bearer:
        """
        Read the file if it changed since the last time.

        Raises:
            IssuerDownError: there is no usable token in it and none that was read before lives on.
        """
        try:
            await asyncio.to_thread(self._read_if_changed)
        except BearerFileError as error:
            if self._bearer is None or not self._bearer.is_live(self._clock.now()):
                raise IssuerDownError(note=str(error)) from error
        if self._bearer is None or not self._bearer.is_live(self._clock.now()):
            raise IssuerDownError(note=f"{self._path}: the token in it has expired and was not renewed")
        return self._bearer

    def _read_if_changed(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            message = f"{self._path}: cannot be read: {error.strerror}"
            raise BearerFileError(message) from error
        # A mounted secret changes by swapping a link, a rename changes the inode, a rewrite the times or the size.
        if self._seen == _identity_of(status):
            return
        token, status = read_token(self._path)
        expiry = unverified_expire_time(token)
        if expiry is None and self._lifetime is not None:
            expiry = self._clock.now() + self._lifetime
        self._seen = _identity_of(status)
        self._bearer = Bearer(token, expiry)

    async def close(self) -> None:
        """Nothing is held."""


def _identity_of(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
