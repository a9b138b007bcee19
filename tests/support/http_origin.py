"""
An HTTP server on loopback that stands for a backend, and for the place where headers must never arrive.

| path | answers |
|---|---|
| `/verify` | what the emulator says of the same headers: its status and body |
| `/reject-once?key=K` | 401 to the first request of a key, then as `/verify` |
| `/reject-always?bytes=0` | 401, with so much more in its body |
| `/reject-then-cut?key=K` | 401 to the first request of a key, then nothing: the connection is ended |
| `/redirect?to=URL&status=302` | a redirect |
| any other, `?status=200` | that status, and what was received: `{"method", "path", "body"}` |
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The emulator speaks plaintext; loading the machine's authorities would take a tenth of a second."""
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_OF_THE_CONNECTION: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "upgrade", "http2-settings", "te"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """
    One request.

    Attributes:
        method: as sent.
        path: without the query.
        query: the first value of each name.
        headers: all, names in lower case, in order.
        body: as text.
        status: what it was answered; 0 where it was not.
        connection: the port that it came from, another one for each connection.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: list[tuple[str, str]]
    body: str
    status: int
    connection: int

    def values(self, name: str) -> list[str]:
        """Return every value of a header: a header that was added and not replaced has two."""
        return [value for one, value in self.headers if one == name]


class HttpOrigin:
    """
    An origin for as long as the `async with` block lasts.

    Args:
        emulator_url: who verifies for `/verify`; empty where nothing is to be verified.
        port: where to listen, 0 for a free one.

    Attributes:
        requests: all that arrived, in order.
    """

    def __init__(self, emulator_url: str = "", *, port: int = 0) -> None:
        self.requests: list[ReceivedRequest] = []
        self._emulator_url = emulator_url
        self._port = port
        self._rejected: set[str] = set()
        self._stack = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """The origin, without a trailing slash."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(
            httpx.AsyncClient(trust_env=False, timeout=10, verify=_NO_TLS)
        )
        listening = socket.socket()
        self._stack.callback(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        app = Starlette(routes=[Route("/{path:path}", self._take, methods=_METHODS)])
        config = uvicorn.Config(app, log_level="error", lifespan="off", access_log=False, timeout_graceful_shutdown=1)
        server = self._server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        self._stack.push_async_callback(_stop, server, serving)
        while not server.started:
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _take(self, request: Request) -> Response:
        body = (await request.body()).decode("utf-8", "replace")
        assert request.client is not None
        answer = await self._answer(request, body)
        received = ReceivedRequest(
            method=request.method,
            path=request.url.path,
            query=dict(request.query_params),
            headers=list(request.headers.items()),
            body=body,
            status=0 if answer is None else answer.status_code,
            connection=request.client.port,
        )
        self.requests.append(received)
        return await self._cut(request) if answer is None else answer

    async def _cut(self, request: Request) -> Response:
        """End the connection that a request came by; what is returned then goes nowhere."""
        for connection in self._server.server_state.connections:
            if connection.client == request.client:
                connection.transport.abort()
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)
        return Response()

    async def _answer(self, request: Request, body: str) -> Response | None:
        """Return the answer; None: the connection is to be cut."""
        query = request.query_params
        match request.url.path:
            case "/reject-always":
                return _rejection(int(query.get("bytes", "0")))
            case "/reject-once" | "/reject-then-cut" if (key := query.get("key", "")) not in self._rejected:
                self._rejected.add(key)
                return _rejection()
            case "/reject-then-cut":
                return None
            case "/verify" | "/reject-once":
                return await self._verdict(request)
            case "/redirect":
                return RedirectResponse(query["to"], status_code=int(query.get("status", "302")))
            case path:
                shown = {"method": request.method, "path": path, "body": body}
                return JSONResponse(shown, status_code=int(query.get("status", "200")))

    async def _verdict(self, request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name not in _OF_THE_CONNECTION]
        answer = await self._client.get(f"{self._emulator_url}/backend-api/codex/models", headers=headers)
        return Response(answer.content, status_code=answer.status_code, media_type="application/json")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process that this runs in."""
        yield


async def _stop(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await serving


def _rejection(more: int = 0) -> Response:
    said = {"error": {"code": "rejected", "more": "x" * more}}
    return JSONResponse(said, status_code=401, headers={"www-authenticate": "Bearer"})
