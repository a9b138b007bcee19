"""
What every call passes before and after its handler: one chain, composed once a method, not once a call.

Outermost, errors are mapped, so that nothing leaves unmapped; within that calls are counted, so that refused ones are
counted too. Then a call is admitted: the gate and the guard header cost nothing and are first, then who calls is
proven, before anything that depends on it. An answer that is at hand leaves now; for any other the time is bounded,
when it is known whose call it is.
"""

import asyncio
import inspect
import itertools
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from broker.clock import Clock
from broker.errors import (
    BrokerError,
    DeadlineTooShortError,
    DrainingError,
    FieldInvalidError,
    GuardHeaderMissingError,
    InternalError,
    WarmingUpError,
)
from broker.model import Caller
from broker.rpc.status import DETAILS_KEY, code_of, is_our_fault, status_of
from broker.telemetry import Metrics, logger

GUARD_HEADER: Final = "x-credential-broker"
GUARD_VALUE: Final = "1"
REQUEST_ID_HEADER: Final = "x-request-id"
SHORTEST_DEADLINE_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.05
"""How often it is looked for calls whose time is over: by so much a call may outlive its deadline."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG: Final = logger(__name__)

_OK: Final = grpc.StatusCode.OK

Context = aio.ServicerContext[Any, Any]
Metadata = Iterable[tuple[str, str | bytes]] | None


class Call:
    """One call on its way through the chain."""

    __slots__ = ("_request_id", "_request_ids", "caller", "deadline", "guarded")

    def __init__(self, request_ids: Iterator[str]) -> None:
        self._request_ids = request_ids
        self._request_id = ""
        self.guarded = False
        """Whether it carries the guard header."""
        self.caller: Caller
        """Who calls; set when it is admitted."""
        self.deadline = math.inf
        """When the answer must be out, on the chain's clock; set before it may wait."""

    @property
    def request_id(self) -> str:
        """What names the call in records and the log: the caller's own word for it, else one that is made now."""
        if not self._request_id:
            self._request_id = next(self._request_ids)
        return self._request_id

    def name(self, request_id: str) -> None:
        """Take the caller's own word for the call, if it has the form of one."""
        if _REQUEST_ID.fullmatch(request_id):
            self._request_id = request_id


_CURRENT: Final[ContextVar[Call]] = ContextVar("call")


def current_call() -> Call:
    """Return the call that is being handled."""
    return _CURRENT.get()


QuickAnswer = Callable[[Any, Call], Any]
"""Answers a request without waiting, or returns None."""


class Gate:
    """Whether calls are taken: opened when warm, closed when draining."""

    __slots__ = ("refusal",)

    def __init__(self) -> None:
        self.refusal: type[BrokerError] | None = WarmingUpError

    def open(self) -> None:
        """Take calls."""
        self.refusal = None

    def close(self) -> None:
        """Refuse new calls: another replica answers them."""
        self.refusal = DrainingError


# --- the chain --------------------------------------------------------------------------------------------------------


class Chain:
    """
    The chain of one listener.

    It wraps the handlers when a service is added, not each call: an interceptor of gRPC costs every call a coroutine
    and a description of the call, and methods that are registered one by one cost every call a look at all of them.

    Args:
        caller: who everybody is that reaches this listener.
        deadline_seconds: how long a call may take, whatever its caller says.
        gate: whether calls are taken.
        clock: what deadlines are measured on.
        metrics: where they are counted.
    """

    def __init__(self, *, caller: Caller, deadline_seconds: float, gate: Gate, clock: Clock, metrics: Metrics) -> None:
        self.caller = caller
        self.deadline_seconds = deadline_seconds
        self.gate = gate
        self.clock = clock
        self._metrics = metrics
        self._request_ids = _request_ids()
        self._running = _Running(clock)

    def add_service(
        self,
        add_to_server: Callable[[Any, aio.Server], None],
        servicer: object,
        server: aio.Server,
        quick_answers: Mapping[str, QuickAnswer],
    ) -> None:
        """
        Add a service with each of its handlers inside the chain.

        Args:
            add_to_server: the generated function.
            servicer: the service.
            server: what serves it.
            quick_answers: by method, what is asked before the handler: it never waits, and returns None to let the
                handler answer.
        """

        def add(service: str, handlers: Mapping[str, Any]) -> None:
            composed = {
                f"/{service}/{name}": self._compose(f"/{service}/{name}", handler, quick_answers.get(name))
                for name, handler in handlers.items()
            }
            server.add_generic_rpc_handlers((_Handlers(composed, self._enter),))

        add_to_server(servicer, cast("aio.Server", _Adding(add)))

    @staticmethod
    def add_outside(add_to_server: Callable[[Any, aio.Server], None], servicer: object, server: aio.Server) -> None:
        """Add a service whose calls do not pass the chain."""

        def add(service: str, handlers: Mapping[str, Any]) -> None:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))

        add_to_server(servicer, cast("aio.Server", _Adding(add)))

    def _compose(
        self, path: str, handler: "grpc.RpcMethodHandler[Any, Any]", quick: QuickAnswer | None
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        coders = {
            "request_deserializer": _or_unreadable(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(path, handler.unary_unary, quick), **coders)
        if handler.unary_stream is not None:
            stream = self._stream(path, "server_stream", handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, **coders)
        if handler.stream_stream is not None and inspect.iscoroutinefunction(handler.stream_stream):
            # It reads and writes by itself, and what it writes is packed already.
            conversation = self._conversation(path, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(
                conversation, request_deserializer=coders["request_deserializer"], response_serializer=None
            )
        if handler.stream_stream is not None:
            stream = self._stream(path, "bidi_stream", _readable(handler.stream_stream))
            return grpc.stream_stream_rpc_method_handler(stream, **coders)
        message = f"{path}: no RPC of this API streams requests alone"
        raise AssertionError(message)

    def _unary(self, path: str, behaviour: Callable[..., Any], quick: QuickAnswer | None) -> Callable[..., Any]:
        counts = _Counts(self._metrics, path, "unary")
        running = self._running

        async def handle(request: Any, context: Context) -> Any:
            started = counts.begin()
            call = current_call()
            code = grpc.StatusCode.CANCELLED
            waits = False
            try:
                self._admit(call)
                require_readable(request)
                response = None if quick is None else quick(request, call)
                if response is None:
                    self._bound_time(call, context)
                    waits = True
                    running.begin(call)
                    response = await behaviour(request, context)
                code = _OK
                return response  # noqa: TRY300 - the last thing that can go wrong stands above
            except (Exception, asyncio.CancelledError) as error:  # nothing may leave unmapped
                outcome = _outcome(error, time_is_over=running.has_ended(call))
                if outcome is None:
                    raise  # the caller gave up
                code = code_of(outcome)
                await self._abort(path, call, context, outcome, error)
            finally:
                if waits:
                    running.end(call)
                counts.end(code, started)

        return handle

    async def quiet(self) -> None:
        """Wait until no unary call is in flight."""
        await self._running.quiet()

    def _stream(self, path: str, kind: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        counts = _Counts(self._metrics, path, kind)

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            started = counts.begin()
            call = current_call()
            code = grpc.StatusCode.CANCELLED
            try:
                self._admit(call)
                require_readable(request)
                # Its time is not bounded here: a stream lives as long as its connection may.
                async for response in behaviour(request, context):
                    yield response
                code = grpc.StatusCode.OK
            except (Exception, asyncio.CancelledError) as error:  # nothing may leave unmapped
                outcome = _outcome(error, time_is_over=False)
                if outcome is None:
                    raise  # the caller gave up
                code = code_of(outcome)
                await self._abort(path, call, context, outcome, error)
            finally:
                counts.end(code, started)

        return handle

    def _conversation(self, path: str, behaviour: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
        counts = _Counts(self._metrics, path, "bidi_stream")

        async def handle(requests: Any, context: Context) -> None:
            started = counts.begin()
            call = current_call()
            code = grpc.StatusCode.CANCELLED
            try:
                self._admit(call)
                await behaviour(requests, context)
                code = _OK
            except (Exception, asyncio.CancelledError) as error:  # nothing may leave unmapped
                outcome = _outcome(error, time_is_over=False)
                if outcome is None:
                    raise  # the caller gave up
                code = code_of(outcome)
                await self._abort(path, call, context, outcome, error)
            finally:
                counts.end(code, started)

        return handle

    def _enter(self, metadata: Metadata) -> Call:
        call = Call(self._request_ids)
        for key, value in metadata or ():
            if key == GUARD_HEADER:
                call.guarded = value == GUARD_VALUE
            elif key == REQUEST_ID_HEADER and isinstance(value, str):
                call.name(value)
        return call

    def _admit(self, call: Call) -> None:
        # 1. While warming up or draining nothing is answered.
        refusal = self.gate.refusal
        if refusal is not None:
            raise refusal(retry_after=1.0)
        # 2. A forged request, or one that a confused proxy passes on, cannot add this header.
        if not call.guarded:
            raise GuardHeaderMissingError(violations={GUARD_HEADER: f"is required: {GUARD_HEADER}: {GUARD_VALUE}"})
        # 3. Whoever reaches this listener is this caller.
        call.caller = self.caller

    def _bound_time(self, call: Call, context: Context) -> None:
        """Cap the time of a call that may have to wait, and refuse one whose deadline leaves none."""
        remaining: float | None = context.time_remaining()
        if remaining is None or remaining > self.deadline_seconds:
            remaining = self.deadline_seconds
        elif remaining < SHORTEST_DEADLINE_SECONDS:
            raise DeadlineTooShortError
        call.deadline = self.clock.monotonic() + remaining

    async def _abort(
        self, path: str, call: Call, context: Context, outcome: BrokerError, cause: BaseException
    ) -> NoReturn:
        """Tell the caller the outcome and the log its cause; the level follows whose fault it is."""
        code = code_of(outcome)
        self._metrics.count(self._metrics.refusals, outcome.reason)
        event: dict[str, Any] = {"method": path, "request_id": call.request_id, "reason": outcome.reason}
        if outcome.note:
            event["note"] = outcome.note
        if isinstance(outcome, InternalError):
            _LOG.error("call_failed", **event, exc_info=cause)
        elif is_our_fault(code):
            _LOG.warning("call_failed", **event, exc_info=cause.__cause__)
        else:
            _LOG.info("call_refused", **event)
        status = status_of(outcome, call.request_id)
        await context.abort(code, outcome.text, ((DETAILS_KEY, status.SerializeToString()),))


# --- requests that are no message of their method ---------------------------------------------------------------------
#
# gRPC reads a request before the handler is asked, and tells the caller the text of whatever is raised there. So
# reading never raises: what cannot be read becomes this mark, which the chain refuses as it refuses everything else.

_UNREADABLE: Final = object()


def _or_unreadable(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if read is None:
        return None

    def read_or_mark(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _UNREADABLE

    return read_or_mark


def require_readable(request: Any) -> None:
    """
    Refuse what could not be read as a message of its method.

    Raises:
        FieldInvalidError: it could not be.
    """
    if request is _UNREADABLE:
        raise FieldInvalidError(violations={"request": "is not a message of this method, or its text is not UTF-8"})


def _readable(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """Let a behaviour that reads a stream of requests see only those that can be read."""

    async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            require_readable(request)
            yield request

    return lambda requests, context: behaviour(checked(requests), context)


def _outcome(error: BaseException, *, time_is_over: bool) -> BrokerError | None:
    """Return what a caller is told; None when it is not there any more to be told."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return DeadlineTooShortError() if time_is_over else None
    return InternalError()


class _Running:
    """
    The unary calls in flight, and the end of those whose time is over.

    One look at all of them now and then instead of a timer for each: nearly all are over before the first look.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[Call, asyncio.Task[Any] | None] = {}
        self._ended: set[Call] = set()
        self._looking = False
        self._quiet = asyncio.Event()

    def begin(self, call: Call) -> None:
        """Count in the call that this task handles."""
        self._tasks[call] = asyncio.current_task()
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def end(self, call: Call) -> None:
        """Count out a call that is over, if it was counted in."""
        if self._tasks.pop(call, None) is not None:
            self._ended.discard(call)
            if not self._tasks:
                self._quiet.set()

    def has_ended(self, call: Call) -> bool:
        """Say whether it was its time that ended a call, and let its task go on to say so."""
        if call not in self._ended:
            return False
        task = self._tasks[call]
        return task is not None and task.uncancel() == 0

    async def quiet(self) -> None:
        """Wait until no call is in flight."""
        while self._tasks:
            self._quiet.clear()
            await self._quiet.wait()

    def _look(self) -> None:
        now = self._clock.monotonic()
        for call, task in self._tasks.items():
            if call.deadline <= now and task is not None and call not in self._ended:
                self._ended.add(call)
                task.cancel()
        self._looking = bool(self._tasks)
        if self._looking:
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)


class _Adding:
    """Stands for a server while a service is added: takes its handlers by name and hands them to `add`."""

    def __init__(self, add: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._add = add

    def add_generic_rpc_handlers(self, generic_handlers: object) -> None:
        """Ignored: the generated code hands the same handlers over by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Hand on the handlers of a service."""
        self._add(service, handlers)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a call, and reads the call's metadata where gRPC has unpacked it already."""

    def __init__(self, handlers: Mapping[str, Any], enter: Callable[[Metadata], Call]) -> None:
        self._handlers = handlers
        self._enter = enter

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None for a method that is none of these."""
        handler = self._handlers.get(handler_call_details.method)
        if handler is not None:
            # The handler runs in the same task and finds the call there.
            _CURRENT.set(self._enter(handler_call_details.invocation_metadata))
        return handler


def _request_ids() -> Iterator[str]:
    """Give ids that no other process and no other start gives, without asking the system for each."""
    prefix = secrets.token_hex(6)
    return (f"{prefix}-{number:x}" for number in itertools.count(1))


class _Counts:
    """The metrics of one method, looked up once."""

    def __init__(self, metrics: Metrics, path: str, kind: str) -> None:
        _, service, name = path.split("/")
        labels = (kind, service, name)
        self._started = metrics.rpc_started.labels(*labels)
        self._seconds = metrics.rpc_seconds.labels(*labels)
        self._handled = {code: metrics.rpc_handled.labels(*labels, code.name) for code in grpc.StatusCode}
        self._ok = self._handled[_OK]

    def begin(self) -> float:
        """Count a call in and return when it began."""
        self._started.value += 1
        return time.perf_counter()

    def end(self, code: grpc.StatusCode, started: float) -> None:
        """Count a call out."""
        tally = self._ok if code is _OK else self._handled[code]
        tally.value += 1
        self._seconds.observe(time.perf_counter() - started)
