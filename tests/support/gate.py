"""A TCP forwarder on loopback in front of a server: it counts connections, and refuses, stalls or cuts them when told."""

import asyncio
import contextlib
import time
from typing import Final, Literal, Self

To = Literal["open", "refuse", "stall"]
_PIECE_BYTES: Final = 65536


class Gate:
    """
    A forwarder for as long as the `async with` block lasts.

    Args:
        host: of the server behind it.
        port: of the server behind it.

    Attributes:
        attempts: when each connection was taken, on the monotonic clock, also those that were refused.
    """

    def __init__(self, host: str, port: int) -> None:
        self.attempts: list[float] = []
        self._target = host, port
        self._to: To = "open"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
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

    def turn(self, to: To, *, cut: bool = False) -> None:
        """
        Decide what becomes of connections from now on.

        Args:
            to: `open`: forwarded. `refuse`: taken and reset at once; those that are open go on. `stall`: nothing is
                forwarded any more, of the open ones neither.
            cut: reset those that are open.
        """
        self._to = to
        if to == "stall":
            self._flowing.clear()
        else:
            self._flowing.set()
        if cut:
            for writer in tuple(self._writers):
                writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
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
                asyncio.create_task(self._pump(reader, inner)),
                asyncio.create_task(self._pump(inner_reader, writer)),
            ]
            try:
                # When one side is gone there is nothing left to do for the other.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _ended(pumps)
        finally:
            self._writers.discard(writer)
            # Not waited for: either side may be gone.
            writer.transport.abort()
            if inner is not None:
                inner.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE_BYTES):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
