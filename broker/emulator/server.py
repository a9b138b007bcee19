"""A running emulator: one socket on loopback, served by uvicorn inside the caller's event loop."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from broker.emulator.app import CUT_EXTENSION, create_app
from broker.emulator.backend import Backend
from broker.emulator.settings import EmulatorSettings

_KEEP_ALIVE_SECONDS = 75
_SHUTDOWN_SECONDS = 2
# A thousand clients may knock at once, and each must get its own connection rather than a retry.
_BACKLOG = 2048


class _CuttableProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also lets the application close its connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        app = self.app

        async def with_cut(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {CUT_EXTENSION: transport.close}
            await app(scope, receive, send)

        self.app = with_cut


class EmulatorServer:
    """An emulator for as long as the `async with` block lasts.

    ```python
    async with EmulatorServer(EmulatorSettings(port=0)) as emulator:
        identity = emulator.backend.issue_identity()
        ...  # point a client at emulator.url
    ```

    Attributes:
        backend: Its state and controls, for a test in the same event loop; the same can be had over HTTP.
    """

    def __init__(
        self, settings: EmulatorSettings | None = None, *, time_source: Callable[[], float] = time.time
    ) -> None:
        """Prepare an emulator; nothing is bound yet.

        Args:
            settings: Unset, the defaults.
            time_source: Seconds since the epoch; a test may pass its own clock.
        """
        self.backend = Backend(settings or EmulatorSettings(), time_source=time_source)
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._state = ServerState()

    @property
    def url(self) -> str:
        """The root address, without a trailing slash; raises RuntimeError when not running."""
        if self._socket is None:
            raise RuntimeError("the emulator is not running")
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        """Bind and serve.

        Raises:
            OSError: When the port is in use.
        """
        settings = self.backend.settings
        version = ipaddress.ip_address(settings.host).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET  # noqa: PLR2004  the version's own number
        # The protocol is named because asyncio turns Nagle's algorithm off only where it is: without it every
        # answer waits for the client's delayed acknowledgement, 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((settings.host, settings.port))
            # Listening now, so that two emulators started at once cannot both believe they have the port.
            bound.listen(_BACKLOG)
        except BaseException:
            bound.close()
            raise
        config = uvicorn.Config(
            create_app(self.backend),
            http=_CuttableProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            # Longer than any client keeps a connection: whoever is closed on, it is not by a race with us.
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        config.load()
        # Served by uvicorn's protocol without `uvicorn.Server`: that takes over the process's signals, polls for
        # its own end (a fifth of a second for every test), and dates answers by a clock that is not the backend's.
        self._state = ServerState()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _CuttableProtocol(config=config, server_state=self._state, app_state={}),
            sock=bound,
            backlog=_BACKLOG,
        )
        self._socket = bound
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of what hangs, finish what is being answered, and close."""
        server, state = self._server, self._state
        self._socket = self._server = None
        self.backend.faults.remove()
        if server is None:
            return
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if tasks := set(state.tasks):
            await asyncio.wait(tasks, timeout=_SHUTDOWN_SECONDS)
        # What is still being answered (a long delay) ends as if its client had left.
        for connection in list(state.connections):
            connection.transport.abort()
        if tasks := set(state.tasks):
            await asyncio.wait(tasks, timeout=_SHUTDOWN_SECONDS)
        await server.wait_closed()
        # A transport is let go of by a callback of the loop's next turn.
        await asyncio.sleep(0)


async def run(settings: EmulatorSettings, on_ready: Callable[[EmulatorServer], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: What to serve.
        on_ready: Called once when requests are accepted.

    Raises:
        OSError: When the port is in use.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with EmulatorServer(settings) as emulator:
            on_ready(emulator)
            await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def ready_line(emulator: EmulatorServer) -> str:
    """One line of JSON with `url` and `pid`, for a process that waits for this one."""
    return json.dumps({"url": emulator.url, "pid": os.getpid()}) + "\n"


def write_ready_file(path: Path, emulator: EmulatorServer) -> None:
    """Write `ready_line` to a file in one atomic step: whoever sees the file can read all of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(ready_line(emulator))
    draft.replace(path)
