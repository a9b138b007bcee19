"""The HTTP side: reads a request, lets faults act on the connection, writes the backend's answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.emulator.backend import Backend
from broker.emulator.calls import Answer, Call, note_credential, refuse
from broker.emulator.controls import controls
from broker.emulator.faults import Action, FaultRule, Phase
from broker.emulator.refusal import Refusal
from broker.emulator.routing import route

CUT_EXTENSION = "emulator.cut"
MAX_BODY_BYTES = 64 * 1024 * 1024


def create_app(backend: Backend) -> ASGIApp:
    """Build the ASGI application: controls under `/_emulator`, the backend everywhere else.

    The server has to offer a callable as scope extension `emulator.cut` that closes the connection; the faults
    that lose an answer need it.
    """
    return Starlette(routes=[Mount("/_emulator", app=controls(backend)), Mount("/", app=_BackendApp(backend))])


class _BackendApp:
    """Every path that is not a control."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = _Connection(Request(scope, receive), scope, receive, send)
        call = await self._read(connection)
        if call is None:
            return
        answer = await self._answer(call, connection)
        if answer is None:
            return
        after = self._backend.claim(Phase.AFTER, call)
        if after is None:
            await connection.send(answer, call.now)
            call.entry.outcome = "answered"
            call.entry.status = answer.status
        elif after.action is Action.TRUNCATE:
            call.entry.outcome = "cut"
            call.entry.status = answer.status
            await connection.send_half(answer, call.now)
        else:
            call.entry.outcome = "cut"
            await connection.cut()

    async def _read(self, connection: _Connection) -> Call | None:
        """Read the request; None when the client went away or sent too much (which is answered here)."""
        request = connection.request
        backend = self._backend
        path = request.scope["raw_path"].decode("ascii")
        found = route(path)
        headers = tuple((key.decode("latin-1"), value.decode("latin-1")) for key, value in request.headers.raw)
        entry = backend.ledger.open(
            time=backend.now().isoformat(),
            method=request.method,
            path=path,
            operation=found.operation,
            base=found.base,
            header_names=sorted(key for key, _ in headers),
        )
        try:
            body = await _read_body(request)
        except ClientDisconnect:
            entry.outcome = "client_gone"
            return None
        except Refusal as refusal:
            entry.verdict, entry.refusal = "refused", refusal.code
            entry.outcome, entry.status = "answered", refusal.status
            await connection.send(refuse(refusal), backend.now())
            return None
        entry.body_size = len(body)
        entry.body_sha256 = hashlib.sha256(body).hexdigest()
        call = Call(
            method=request.method,
            path=path,
            url=f"{request.url.scheme}://{request.headers.get('host', '')}{path}",
            route=found,
            headers=headers,
            body=body,
            now=backend.now(),
            entry=entry,
        )
        call = note_credential(call)
        return _shift_clock(call, backend.claim(Phase.CLOCK, call))

    async def _answer(self, call: Call, connection: _Connection) -> Answer | None:
        """Apply the fault that comes before processing, then process; None when nobody is left to answer."""
        rule = self._backend.claim(Phase.BEFORE, call)
        if rule is not None and rule.action not in (Action.DELAY, Action.HANG):
            call.entry.verdict = "unprocessed"
            return _misbehave(rule)
        if rule is not None:
            pause = asyncio.sleep(rule.seconds) if rule.action is Action.DELAY else rule.released.wait()
            if not await connection.outlasts(pause):
                call.entry.verdict, call.entry.outcome = "unprocessed", "client_gone"
                return None
        return self._backend.answer(call)


class _Connection:
    """The wire below one request."""

    def __init__(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        self.request = request
        self._scope = scope
        self._receive = receive
        self._send = send

    async def send(self, answer: Answer, now: datetime) -> None:
        """Send a whole answer."""
        response = Response(answer.body, answer.status, media_type=answer.content_type)
        for name, value in (*answer.headers, ("date", format_datetime(now, usegmt=True))):
            response.headers[name] = value
        await response(self._scope, self._receive, self._send)

    async def send_half(self, answer: Answer, now: datetime) -> None:
        """Announce a whole body, send half of it, and close the connection."""
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"date", format_datetime(now, usegmt=True).encode()),
            *((name.encode(), value.encode()) for name, value in answer.headers),
        ]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        half = answer.body[: len(answer.body) // 2]
        await self._send({"type": "http.response.body", "body": half, "more_body": True})
        await self.cut()

    async def cut(self) -> None:
        """Close the connection and wait until it is closed, so that the server adds nothing of its own."""
        self._scope["extensions"][CUT_EXTENSION]()
        await self._client_gone()

    async def outlasts(self, event: Coroutine[Any, Any, Any]) -> bool:
        """Wait for `event` and return True, or return False as soon as the client has gone away."""
        waiting = asyncio.ensure_future(event)
        leaving = asyncio.ensure_future(self._client_gone())
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.done()
        finally:
            for task in (waiting, leaving):
                task.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def _client_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _shift_clock(call: Call, rule: FaultRule | None) -> Call:
    if rule is None:
        return call
    return replace(call, now=call.now + timedelta(seconds=rule.seconds))


def _misbehave(rule: FaultRule) -> Answer:
    """The answer of a fault that takes the place of processing."""
    match rule.action:
        case Action.REDIRECT:
            return Answer(status=rule.status, headers=(("location", rule.location or "/"),))
        case Action.GARBAGE:
            return Answer(body=b'<!doctype html>{"agent_runtime_id": \x00\xff', content_type="application/json")
        case Action.OVERSIZE:
            filler = b" " * (rule.size - 2)
            return Answer(body=b"{" + filler + b"}")
        case _:
            extra = tuple(rule.headers.items())
            if rule.retry_after is not None:
                extra = (*extra, ("retry-after", rule.retry_after))
            if rule.body is not None:
                return Answer(status=rule.status, body=rule.body.encode(), headers=extra)
            return refuse(Refusal(rule.status, "fault", "a fault rule answers this"), headers=extra)


async def _read_body(request: Request) -> bytes:
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            raise Refusal(413, "body_too_large", "the body is larger than the emulator reads")
    return bytes(chunks)
