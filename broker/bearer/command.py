"""
Tokens that a program prints: a cloud's command line, a password manager.

The program is run as it stands in the configuration, without a shell, with few environment variables, in a process
group of its own that is killed when its time is over. What it prints on standard error is counted, never shown: nobody
knows what stands in it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import IO, Final

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer
from broker.bearer.file import LARGEST_TOKEN_BYTES, as_token
from broker.clock import Clock
from broker.errors import IssuerDownError

_CHUNK: Final = 64 * 1024
_KILL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a program ended, and what it printed."""

    exit_code: int
    output: bytes
    """At most one byte more than a token may have."""
    error_bytes: int


class CommandExchange:
    """
    Obtains tokens by running a program; the first line it prints is the token.

    Args:
        command: the program, by its absolute path, and its arguments.
        environment: all environment variables it gets.
        clock: times what the token's life counts from.
        timeout: seconds that it may run.
        lifetime: seconds that a token may be used, where the token itself does not say.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        clock: Clock,
        timeout: float,
        lifetime: float | None = None,
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._clock = clock
        self._timeout = timeout
        self._lifetime = lifetime

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:  # noqa: ARG002 - each run may bring another
        """
        Run the program.

        Raises:
            IssuerDownError: it could not be run, took too long, failed, or printed no token.
        """
        begin_time = self._clock.now()
        try:
            ended = await self._run()
        except TimeoutError:
            raise self._failed(f"ran longer than {self._timeout:g} s and was killed") from None
        except OSError as error:
            raise self._failed(f"could not be run: {error.strerror}") from error
        if ended.exit_code != 0:
            raise self._failed(f"ended with {ended.exit_code}; {ended.error_bytes} bytes on its standard error")
        if len(ended.output) > LARGEST_TOKEN_BYTES:
            raise self._failed(f"printed more than {LARGEST_TOKEN_BYTES} bytes")
        first_line = ended.output.partition(b"\n")[0].strip()
        token = as_token(first_line.decode("ascii", errors="replace"))
        if token is None:
            raise self._failed("printed no token on its first line")
        expire_time = unverified_expire_time(token)
        if expire_time is None and self._lifetime is not None:
            expire_time = begin_time + self._lifetime
        return Bearer(token, expire_time, begin_time)

    async def close(self) -> None:
        """Nothing is held: a run that is cut off kills its program."""

    async def _run(self) -> _Ended:
        """
        Run the program to its end.

        Raises:
            OSError: it cannot be run.
            TimeoutError: it did not end in time.
        """
        process = self._begin()
        try:
            async with (
                asyncio.timeout(self._timeout),
                _reader(process.stdout) as output,
                _reader(process.stderr) as errors,
            ):
                kept, count = await asyncio.gather(_read(output), _count(errors))
                return _Ended(await asyncio.to_thread(process.wait), kept, count)
        except BaseException:
            # The whole group, as what the program began may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # It is gone at once, unless the kernel keeps it: then nobody waits for that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_SECONDS):
                    await asyncio.to_thread(process.wait)
            raise

    def _begin(self) -> "subprocess.Popen[bytes]":
        # Not by the event loop: uvloop forks, which wakes gRPC's handlers of forks in the midst of calls; Python's own
        # way (vfork) does not, and returns as soon as the program runs.
        return subprocess.Popen(  # noqa: S603 - the configuration names the program
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=self._environment,
            cwd="/",
            start_new_session=True,
        )

    def _failed(self, problem: str) -> IssuerDownError:
        return IssuerDownError(note=f"{self._command[0]}: {problem}")


@contextlib.asynccontextmanager
async def _reader(pipe: IO[bytes] | None) -> AsyncIterator[asyncio.StreamReader]:
    """Read from a pipe until the block ends, whoever else holds its other end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Return the beginning of what is printed, at most one byte more than a token has; the rest is not kept."""
    kept = bytearray()
    while chunk := await stream.read(_CHUNK):
        kept += chunk[: LARGEST_TOKEN_BYTES + 1 - len(kept)]
    return bytes(kept)


async def _count(stream: asyncio.StreamReader) -> int:
    count = 0
    while chunk := await stream.read(_CHUNK):
        count += len(chunk)
    return count
