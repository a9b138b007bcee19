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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer
from broker.bearer.file import LARGEST_TOKEN_BYTES, as_token
from broker.clock import Clock
from broker.errors import IssuerDownError

_CHUNK: Final = 64 * 1024


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
        # Neither event loop runs code between fork and exec, so that threads of ours (gRPC has many) do not matter.
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout):
                output, errors = await asyncio.gather(_read(process.stdout), _count(process.stderr))
                return _Ended(await process.wait(), output, errors)
        except BaseException:
            # The group, as what it began may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise

    def _failed(self, problem: str) -> IssuerDownError:
        return IssuerDownError(note=f"{self._command[0]}: {problem}")


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """Return the beginning of what is printed, at most one byte more than a token has; the rest is not kept."""
    kept = bytearray()
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        kept += chunk[: LARGEST_TOKEN_BYTES + 1 - len(kept)]
    return bytes(kept)


async def _count(stream: asyncio.StreamReader | None) -> int:
    count = 0
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        count += len(chunk)
    return count
