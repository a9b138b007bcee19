"""A TCP forwarder on loopback in front of a gRPC server: it counts, and refuses, stalls, cuts or loses connections."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Literal, Self

from tests.bench.frames import Flag, FrameReader, FrameType

To = Literal["open", "refuse", "stall"]
_PIECE_BYTES: Final = 65536
_GREETING_BYTES: Final = 24
"""What a client says before its first frame (RFC 9113 section 3.4)."""


class Gate:
    """
    A forwarder for as long as the `async with` block lasts.

    Args:
        host: of the server behind it.
        port: of the server behind it.
        own_port: where to listen; 0 is any that is free.

    Attributes:
        attempts: when each connection was taken, on the monotonic clock, also those that were refused.
        pings: when each HTTP/2 PING of a client came that answers none, on the monotonic clock.
    """

    def __init__(self, host: str, port: int, *, own_port: int = 0) -> None:
        self.attempts: list[float] = []
        self.pings: list[float] = []
        self._target = host, port
        self._own_port = own_port
        self._to: To = "open"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._writers)

    def turn(self, to: To, *, cut: bool = False, lose: bool = False) -> None:
        """
        Decide what becomes of connections from now on.

        Args:
            to: `open`: forwarded. `refuse`: taken and reset at once; those that are open go on. `stall`: nothing is
                forwarded any more, of the open ones neither.
            cut: reset those that are open.
            lose: let nothing through any more on those that are open, and let nobody know, as a network does whose
                other end is gone; each goes on until the client gives it up.
        """
        self._to = to
        if to == "stall":
            self._flowing.clear()
        else:
            self._flowing.set()
        if cut:
            for writer in tuple(self._writers):
                writer.transport.abort()
        if lose:
            self._lost |= self._writers

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self._own_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts.append(time.monotonic())
        if self._to == "refuse":
            writer.transport.abort()
            return
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        inner: asyncio.StreamWriter | None = None
        try:
            inner_reader, inner = await asyncio.open_connection(*self._target)
            pumps = [
                asyncio.create_task(self._pump(reader, inner, of=writer, note=_Pings(self.pings).read)),
                asyncio.create_task(self._pump(inner_reader, writer, of=writer)),
            ]
            try:
                # When one side is gone there is nothing left to do for the other.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if writer in self._lost:
                    await pumps[0]
            finally:
                await _ended(pumps)
        finally:
            self._writers.discard(writer)
            self._lost.discard(writer)
            # Not waited for: either side may be gone.
            writer.transport.abort()
            if inner is not None:
                inner.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        of: asyncio.StreamWriter,
        note: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """Write what is read, while the connection `of` a client lets anything through."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE_BYTES):
                note(data)
                await self._flowing.wait()
                if of not in self._lost:
                    writer.write(data)
                    await writer.drain()


class _Pings:
    """
    Notes when a client pings.

    Args:
        times: takes each time, on the monotonic clock.
    """

    def __init__(self, times: list[float]) -> None:
        self._times = times
        self._frames = FrameReader()
        self._greeting_left = _GREETING_BYTES

    def read(self, data: bytes) -> None:
        """Take what a client sent."""
        greeted = min(self._greeting_left, len(data))
        self._greeting_left -= greeted
        for kind, flags, _, _ in self._frames.feed(data[greeted:]):
            if kind == FrameType.PING and not flags & Flag.ACK:
                self._times.append(time.monotonic())


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
