"""The operators' HTTP listener: `/metrics`, `/livez`, `/readyz`; nothing on it acts or reveals a name."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from broker.errors import StartupError
from broker.telemetry import Metrics

_START_SECONDS: Final = 5.0


class Readiness:
    """What the probes answer."""

    def __init__(self) -> None:
        self.ready = False


class HttpListener:
    """Serves metrics and probes on one address, in plain HTTP."""

    def __init__(self, address: str, metrics: Metrics, readiness: Readiness) -> None:
        self._address = address
        self._metrics = metrics
        self._readiness = readiness
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.address = address
        """Where it listens, with the port that the system chose; set by `start`."""

    async def start(self) -> None:
        """
        Bind and begin to answer.

        Raises:
            StartupError: the address cannot be bound.
        """
        routes = [Route("/metrics", self._show_metrics), Route("/livez", self._live), Route("/readyz", self._ready)]
        host, _, port = self._address.rpartition(":")
        configuration = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=5,
            limit_concurrency=64,
        )
        literal = host.removeprefix("[").removesuffix("]")
        family = socket.AF_INET6 if ":" in literal else socket.AF_INET
        try:
            listening = socket.create_server((literal, int(port)), family=family)
        except OSError:
            raise StartupError(f"{self._address}: cannot be bound; is another program listening there?") from None
        self.address = f"{host}:{listening.getsockname()[1]}"
        self._server = _Server(configuration)
        self._serving = asyncio.create_task(self._server.serve([listening]), name="http")
        async with asyncio.timeout(_START_SECONDS):
            while not self._server.started and not self._serving.done():  # noqa: ASYNC110 - uvicorn has no event
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop answering."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await self._serving

    async def _show_metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _live(self, _request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _ready(self, _request: Request) -> Response:
        return PlainTextResponse(*(("ready\n", 200) if self._readiness.ready else ("not ready\n", 503)))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the broker."""
        yield
