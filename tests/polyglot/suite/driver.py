"""A driver's process and the protocol with it (`tests/polyglot/README.md`)."""

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.polyglot.languages import Command
from tests.polyglot.suite import processes

HELLO_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 20.0
"""Beyond the time-out that a command has itself: who takes longer hangs."""
CLOSE_SECONDS: Final = 15.0
_SHOWN_OF_LOG: Final = 3000


class DriverError(Exception):
    """A driver crashed, hangs, or does not keep to the protocol."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a driver answered.

    Attributes:
        id: of the command.
        ok: the answer; None for an error.
        error: the error; None for an answer.
        seconds: from command to answer.
        time: when it came, on the monotonic clock.
    """

    id: int
    ok: dict[str, Any] | None
    error: dict[str, Any] | None
    seconds: float
    time: float

    @property
    def is_error(self) -> bool:
        """Whether it is one."""
        return self.error is not None


class Driver:
    """
    A driver for as long as the `async with` block lasts.

    Args:
        command: how it is run.
        tree: where the command's folder is.
        folder: for its log.
        environment: variables beside the clean ones.
        hosts: a file to stand in the place of its /etc/hosts; None leaves that.
    """

    def __init__(
        self,
        command: Command,
        *,
        tree: Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        hosts: Path | None = None,
    ) -> None:
        self._words = list(command.words)
        self._folder = tree / command.folder
        self._environment = processes.clean_environment({**command.variables, **(environment or {})})
        if hosts is not None:
            mount = f"mount --bind {shlex.quote(str(hosts))} /etc/hosts && exec {shlex.join(self._words)}"
            self._words = ["unshare", "--mount", "sh", "-c", mount]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "driver.log"
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._given_up: set[int] = set()
        self._ended: str | None = None
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]
        self.adapters: Mapping[str, list[str]] = {}
        """The names that it gives its adapters, by kind."""

    async def __aenter__(self) -> Self:
        # A log of lines that come at once is what `log()` of a case reads.
        self._log.write_bytes(b"")
        self._process = await processes.start(
            self._words, log=self._log, environment=self._environment, folder=self._folder, talks=True
        )
        self._reader = asyncio.create_task(self._read(), name="driver")
        try:
            hello = await self.ask({"do": "hello"}, seconds=HELLO_SECONDS)
        except BaseException:
            await self._stop()
            raise
        self.adapters = (hello.ok or {}).get("adapters", {})
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        code = await self._stop()
        if kind is None and code != 0:
            raise DriverError(
                f"{'hung' if code is None else f'ended with {code}'} when its input ended{self._logged()}"
            )

    async def _stop(self) -> int | None:
        """Close its input and wait for its end; return the exit code, None when it had to be killed."""
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(ConnectionError):
                pipe.close()
        code = await processes.end(self._process, seconds=CLOSE_SECONDS)
        await asyncio.gather(self._reader, return_exceptions=True)
        return code

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is of no use any more."""
        return self._ended is not None

    def log_size(self) -> int:
        """Return how many bytes it has logged."""
        return self._log.stat().st_size

    def log(self, since: int = 0) -> str:
        """Return what it logged from a byte on."""
        return self._log.read_bytes()[since:].decode(errors="replace")

    def begin(self, members: Mapping[str, Any], *, seconds: float | None = None) -> "tuple[int, asyncio.Task[Answer]]":
        """
        Send a command; return its id and the task that ends with its answer.

        Args:
            members: of the command, without `id`.
            seconds: how long it may take; unset, its own time-out or wait and `COMMAND_SECONDS`.
        """
        number = next(self._ids)
        if seconds is None:
            own = [members.get(name) or 0 for name in ("timeout", "seconds", "wait")]
            seconds = COMMAND_SECONDS + max(float(one) for one in own)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        return number, asyncio.create_task(self._call(number, dict(members), waiting, seconds))

    async def ask(self, members: Mapping[str, Any], *, seconds: float | None = None) -> Answer:
        """
        Send a command and return its answer.

        Raises:
            DriverError: there was none.
        """
        return await self.begin(members, seconds=seconds)[1]

    async def _call(
        self, number: int, members: dict[str, Any], waiting: "asyncio.Future[dict[str, Any]]", seconds: float
    ) -> Answer:
        began = time.monotonic()
        try:
            if self._ended is not None:
                raise DriverError(self._ended)
            pipe = self._process.stdin
            assert pipe is not None
            pipe.write(json.dumps({"id": number, **members}).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # the reader says what became of it
                await pipe.drain()
            reply = await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            raise DriverError(f"{members['do']} was not answered within {seconds:.0f} s{self._logged()}") from None
        finally:
            del self._waiting[number]
            if not waiting.done() or waiting.cancelled():  # its time was up, or the case over that began it
                self._given_up.add(number)
        now = time.monotonic()
        return Answer(number, reply.get("ok"), reply.get("error"), now - began, now)

    async def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        problem = None
        try:
            while line := await pipe.readline():
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"said {line[:200]!r}: {error}"
            _kill(self._process)
        code = await self._process.wait()
        self._ended = f"the driver {problem or f'ended with {code}'}{self._logged()}"
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(DriverError(self._ended))

    def _take(self, reply: dict[str, Any]) -> None:
        if reply["id"] in self._given_up:
            return
        waiting = self._waiting.get(reply["id"])
        if waiting is None or waiting.done() or ("ok" in reply) == ("error" in reply):
            raise ValueError("nobody waits for it, or it is not one of ok and error")
        waiting.set_result(reply)

    def _logged(self) -> str:
        text = self.log()[-_SHOWN_OF_LOG:].strip()
        return f"; its log ends:\n{text}" if text else "; it logged nothing"


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
