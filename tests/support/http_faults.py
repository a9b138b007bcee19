"""
A loopback HTTP server that answers exactly the bytes it is told to, well-formed or not.

The emulator plays a backend that works; this plays everything else: a server that lies about lengths, never ends,
redirects, or is no HTTP server at all.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self

from broker.clock import Clock


class RecordingClock(Clock):
    """The machine's monotonic time, a wall clock that can be set apart from it, and waits that take no time."""

    def __init__(self, wall_offset: float = 0.0) -> None:
        self.wall_offset = wall_offset
        self.slept: list[float] = []

    def now(self) -> float:
        """Return the machine's wall clock plus the offset."""
        return time.time() + self.wall_offset

    def monotonic(self) -> float:
        """Return the machine's monotonic clock plus what was slept."""
        return time.monotonic() + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        """Remember the wait; others get their turn."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """What arrived; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Behaviour = Callable[[ReceivedRequest, asyncio.StreamWriter], Awaitable[None]]


def raw(data: bytes, *, close: bool = True) -> Behaviour:
    """Answer these bytes, then close the connection or leave it open and silent."""

    async def answer(_: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if not close:
            await asyncio.Event().wait()
        writer.close()

    return answer


def respond(
    status: int = 200,
    body: bytes = b"{}",
    *,
    content_type: str | None = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
) -> Behaviour:
    """Answer a well-formed response and keep the connection."""

    async def answer(_: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}"]
        if content_type is not None:
            lines.append(f"content-type: {content_type}")
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await writer.drain()

    return answer


def drip(head: bytes, piece: bytes) -> Behaviour:
    """Answer a head and then pieces of a body without end, as fast as they are taken."""

    async def answer(_: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    return answer


class FaultServer:
    """
    A server for as long as the `async with` block lasts.

    Each request takes the next of `script`; when that is used up, the last one goes on.

    Attributes:
        script: behaviours, one a request.
        requests: all that arrived.
        asked: set once a request arrived.
        connections: how many connections were opened.
    """

    def __init__(self, *script: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script) or [respond()]
        self.requests: list[ReceivedRequest] = []
        self.asked = asyncio.Event()
        self.connections = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The root address, without a trailing slash."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                request = await _read_request(reader)
                index = min(len(self.requests), len(self.script) - 1)
                self.requests.append(request)
                self.asked.set()
                await self.script[index](request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            # Not waited for: the other side may be gone, or in the middle of its own closing.
            writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> ReceivedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, target, _ = request_line.split(" ")
    return ReceivedRequest(method, target, headers, body)
