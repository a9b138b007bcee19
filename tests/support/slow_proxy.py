"""A TCP proxy on loopback that keeps answers back for a random moment, as a network does."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


@contextlib.asynccontextmanager
async def slow_proxy(url: str, *, slowest: float, rng: random.Random) -> AsyncIterator[str]:
    """
    Forward connections to a server, each piece of its answers late by up to `slowest` seconds.

    Args:
        url: the server's address.
        slowest: the longest delay, in seconds.
        rng: where delays come from.

    Yields:
        The proxy's own address.
    """
    target = urlsplit(url)
    connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slowest: float) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if slowest:
                    await asyncio.sleep(rng.uniform(0, slowest))
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        upstream_reader, upstream_writer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, upstream_writer, 0.0), pump(upstream_reader, writer, slowest))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
