"""
A callers' service that does what it is told: for what a real broker cannot be made to do, or not at will.

It is a real gRPC server on loopback with a gate in front of it. Errors go through the broker's own table, so that each
reason is on the wire as the broker sends it. Everything that arrives is written down. What it is told is plain data (the
words are explained in `tests/polyglot/README.md`), so that cases in data files can tell it.
"""

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from broker import errors
from broker.errors import BrokerError
from broker.rpc import messages
from broker.rpc.server import CHANNEL_ARGUMENTS
from broker.rpc.status import DEFAULT_RETRY_SECONDS, DETAILS_KEY, ERROR_DOMAIN, code_of, status_of
from tests.support.gate import Gate

IDENTITY: Final = "scripted"
"""Whose headers it gives where a call names no identity."""

Answer = Mapping[str, Any]
Key = tuple[str, str, str]
"""Identity, scope, thread."""

_OUTCOMES: Final = {
    outcome.reason: outcome
    for outcome in vars(errors).values()
    if isinstance(outcome, type) and issubclass(outcome, BrokerError) and outcome is not BrokerError
}
_FAILURE_WORDS: Final = frozenset(
    {"error", "retry_after", "metadata", "status", "message", "reason_text", "domain", "details"}
)
_VALUE_WORDS: Final = frozenset(
    {"lifetime", "refresh", "skew", "revision", "tag", "stale", "identity", "kind", "reason"}
)
_ANSWER_WORDS: Final = _FAILURE_WORDS | _VALUE_WORDS | {"delay", "hang"}
_STREAM_WORDS: Final = _FAILURE_WORDS | {"values", "heartbeat", "end_after", "closing_after", "retry_delay"}
_NO_PINGS: Final = {"grpc.keepalive_time_ms": 2**31 - 1}
"""A broker's ping is something that is heard: it would put off the client's own, which are counted."""
_UNKNOWN_EVENT: Final = b"\x9a\x06\x03new"
"""Field 99, which no client knows."""


@dataclass(slots=True, kw_only=True)
class Received:
    """
    One unary call.

    Attributes:
        rpc: its bare name.
        request: the message.
        metadata: what came with it; the last value of each name.
        seconds: how long its deadline left when it arrived; None without one.
        time: when it arrived, on the monotonic clock.
        attempt: how many tries of the same call the client says were before it.
        code: what it ended with, the bare word; None while it goes on.
    """

    rpc: str
    request: Any
    metadata: dict[str, str]
    seconds: float | None
    time: float
    attempt: int
    code: str | None = None


@dataclass(slots=True, kw_only=True)
class Subscribed:
    """One subscription as it was asked for, and when (on the monotonic clock)."""

    id: str
    scope: str
    thread_id: str
    identity: str
    known_revision: str
    time: float

    @property
    def key(self) -> Key:
        """What it is for."""
        return self.identity or IDENTITY, self.scope, self.thread_id


@dataclass(slots=True, kw_only=True, eq=False)
class Opened:
    """
    One stream.

    Attributes:
        metadata: what came with it.
        seconds: its deadline; None without one, as it should be.
        time: when it was opened, on the monotonic clock.
        subscribed: all that was ever subscribed on it, in order.
        unsubscribed: the ids that were, in order.
        ended: when, on the monotonic clock; None while it goes on.
    """

    metadata: dict[str, str]
    seconds: float | None
    time: float
    script: Mapping[str, Any]
    subscribed: list[Subscribed] = field(default_factory=list)
    unsubscribed: list[str] = field(default_factory=list)
    ended: float | None = None
    _out: "asyncio.Queue[pb2.WatchAuthorizationsResponse | _End]" = field(default_factory=asyncio.Queue)

    @property
    def live(self) -> list[Subscribed]:
        """The subscriptions that go on."""
        return [one for one in self.subscribed if one.id not in self.unsubscribed] if self.ended is None else []

    def send(self, event: "pb2.WatchAuthorizationsResponse | _End") -> None:
        """Let something be sent, or the stream end, after what was sent before."""
        self._out.put_nowait(event)

    async def next(self) -> "pb2.WatchAuthorizationsResponse | _End":
        """Return what is to be sent next."""
        return await self._out.get()


@dataclass(frozen=True)
class _End:
    """A stream's end: with what an answer says, or well."""

    answer: Answer


class ScriptedBroker(credential_broker_pb2_grpc.CredentialBrokerServicer):
    """
    A scripted broker for as long as the `async with` block lasts.

    Told nothing it gives each key an authorization for a minute, sends it to who subscribes without it, and beats
    every half second.

    Args:
        port: where clients connect to; 0 is any that is free.

    Attributes:
        gate: where clients connect to.
        received: every unary call, in order.
        opened: every stream, in order.
    """

    def __init__(self, *, port: int = 0) -> None:
        self.received: list[Received] = []
        self.opened: list[Opened] = []
        self._answers: dict[tuple[str, str | None], list[Answer]] = {}
        self._streams: list[Mapping[str, Any]] = [{}]
        self._current: dict[Key, pb2.Authorization] = {}
        self._versions: defaultdict[Key, itertools.count[int]] = defaultdict(lambda: itertools.count(1))
        self._server: grpc.aio.Server | None = None
        self._port = port
        self.gate: Gate

    @property
    def address(self) -> str:
        """`127.0.0.1:port`, of the gate."""
        return self.gate.address

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=tuple({**CHANNEL_ARGUMENTS, **_NO_PINGS}.items()))
        credential_broker_pb2_grpc.add_CredentialBrokerServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        try:
            self.gate = await Gate("127.0.0.1", port, own_port=self._port).__aenter__()
        except BaseException:
            await self._server.stop(None)
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        await self.gate.__aexit__(*error)
        await self._server.stop(None)

    # --- what is told to it -------------------------------------------------------------------------------------------

    def script(self, answers: Iterable[Answer], *, rpc: str = "GetAuthorization", thread: str | None = None) -> None:
        """
        Answer the next calls with these, one each; the last goes on.

        Args:
            answers: in the words of the cases.
            rpc: for which calls.
            thread: for calls about this thread only, which then do not heed what is told for all.
        """
        given = [_checked(answer, _ANSWER_WORDS) for answer in answers]
        assert given, "no answers"
        self._answers[rpc, thread] = given

    def script_streams(self, streams: Iterable[Mapping[str, Any]]) -> None:
        """Let the next streams go like these, one each; the last goes on."""
        self._streams = [_checked(stream, _STREAM_WORDS) for stream in streams]
        assert self._streams, "no streams"

    def push(
        self,
        *,
        thread: str,
        scope: str = "inference",
        identity: str = IDENTITY,
        withdrawal: str | int | None = None,
        error: str | None = None,
        unknown: bool = False,
        stream: int | None = None,
        **answer: Any,
    ) -> int:
        """
        Send an event to everybody who is subscribed to a key: a value unless another kind is named.

        Args:
            stream: on which of the streams ever opened alone, counted from 0; None for all.

        Returns:
            To how many subscriptions.
        """
        key = identity, scope, thread
        _checked(answer, _ANSWER_WORDS)
        message = pb2.WatchAuthorizationsResponse()
        if withdrawal is not None:
            message.withdrawal.reason = _number(pb2.WithdrawalReason, "WITHDRAWAL_REASON_", withdrawal)
        elif error is not None:
            status = messages.error_status(_outcome({"error": error, **answer}), answer.get("retry_after"))
            message.error.status.CopyFrom(status)
        elif unknown:
            message.MergeFromString(_UNKNOWN_EVENT)
        else:
            message.authorization.CopyFrom(self._authorization(key, answer))
        sent = 0
        for each in self.opened if stream is None else [self.opened[stream]]:
            for subscription in each.live:
                if subscription.key == key:
                    addressed = pb2.WatchAuthorizationsResponse(subscription_id=subscription.id)
                    addressed.MergeFrom(message)
                    each.send(addressed)
                    sent += 1
        return sent

    def closing(self, *, retry_delay: float = 0.1, end_after: float = 0.5) -> None:
        """Say on every stream that it ends soon, and end it well after so many seconds."""
        for stream in self._going:
            stream.send(_closing(retry_delay))
            _later(end_after, stream, {})

    def end_streams(self, **answer: Any) -> None:
        """End every stream now, with what an answer says, or well."""
        _checked(answer, _STREAM_WORDS)
        for stream in self._going:
            stream.send(_End(answer))

    # --- what is seen of it -------------------------------------------------------------------------------------------

    @property
    def _going(self) -> list[Opened]:
        return [stream for stream in self.opened if stream.ended is None]

    @property
    def streams(self) -> int:
        """How many streams there are now."""
        return len(self._going)

    @property
    def subscriptions(self) -> int:
        """How many subscriptions there are on them."""
        return sum(len(stream.live) for stream in self._going)

    def calls(self, rpc: str, *, code: str | None = None) -> int:
        """Count the calls of an RPC, streams too; with a code only those that ended so."""
        if rpc == "WatchAuthorizations":
            return len(self.opened)
        return sum(1 for call in self.received if call.rpc == rpc and code in (None, call.code))

    # --- calls --------------------------------------------------------------------------------------------------------

    async def GetAuthorization(self, request: Any, context: Any) -> pb2.GetAuthorizationResponse:
        """Answer as told; else with what the key has now."""
        key = request.identity or IDENTITY, request.scope, request.thread_id
        async with self._answering("GetAuthorization", request, context, key) as answer:
            return pb2.GetAuthorizationResponse(authorization=self._authorization(key, answer))

    async def ReportRejected(self, request: Any, context: Any) -> pb2.ReportRejectedResponse:
        """Answer as told; else with the next revision."""
        key = next(
            (key for key, held in self._current.items() if held.revision == request.revision),
            (IDENTITY, request.scope, request.thread_id),
        )
        async with self._answering("ReportRejected", request, context, key) as answer:
            return pb2.ReportRejectedResponse(authorization=self._authorization(key, {"revision": None, **answer}))

    async def RegisterTask(self, request: Any, context: Any) -> pb2.RegisterTaskResponse:
        """Answer as told; else that the task lives."""
        async with self._answering("RegisterTask", request, context, ("", "", request.thread_id)):
            return pb2.RegisterTaskResponse(task=_task(request, pb2.TASK_STATE_ACTIVE))

    async def EndTask(self, request: Any, context: Any) -> pb2.EndTaskResponse:
        """Answer as told; else that the task has ended."""
        async with self._answering("EndTask", request, context, ("", "", request.thread_id)):
            return pb2.EndTaskResponse(task=_task(request, pb2.TASK_STATE_ENDED))

    @contextlib.asynccontextmanager
    async def _answering(self, rpc: str, request: Any, context: Any, key: Key) -> AsyncIterator[Answer]:
        """Write a call down, wait and fail as told; what is left to the block is to answer it."""
        arrival = _arrival(context)
        attempt = int(arrival["metadata"].get("grpc-previous-rpc-attempts", 0))
        call = Received(rpc=rpc, request=request, attempt=attempt, **arrival)
        self.received.append(call)
        answer = self._next_answer(rpc, key[2])
        try:
            await asyncio.sleep(answer.get("delay", 0))
            if answer.get("hang"):
                await asyncio.Event().wait()
            await _abort_if_told(context, answer)
            call.code = "OK"
            yield answer
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            call.code = context.code().name
            raise

    def _next_answer(self, rpc: str, thread: str) -> Answer:
        answers = self._answers.get((rpc, thread)) or self._answers.get((rpc, None)) or [{}]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _authorization(self, key: Key, answer: Answer) -> pb2.Authorization:
        """Make what is given for a key, and remember it as what the key has now."""
        identity, scope, thread = key
        held = self._current.get(key)
        if answer.get("revision"):
            revision = answer["revision"]
        elif held is not None and "revision" not in answer:
            revision = held.revision
        else:
            revision = f"{identity}:{scope}:{thread}:{next(self._versions[key])}"
        lifetime = answer.get("lifetime", 60.0)
        now = time.time() + answer.get("skew", 0)
        authorization = pb2.Authorization(
            headers=[
                pb2.Header(name="authorization", value=f"Bearer secret-of-{revision}", sensitive=True),
                pb2.Header(name="chatgpt-account-id", value=f"account-of-{identity}"),
            ],
            kind=_number(pb2.CredentialKind, "CREDENTIAL_KIND_", answer.get("kind", "BEARER")),
            reason=_number(pb2.DecisionReason, "DECISION_REASON_", answer.get("reason", "IDENTITY_IS_BEARER")),
            mint_time=messages.timestamp(now),
            server_time=messages.timestamp(now),
            refresh_time=messages.timestamp(now + answer.get("refresh", lifetime / 2)),
            expire_time=messages.timestamp(now + lifetime),
            offline_serving_until_time=messages.timestamp(now + 3600),
            stale=answer.get("stale", False),
            revision=revision,
            identity=answer.get("identity", identity),
            connection_tag=answer.get("tag", f"tag-{identity}"),
        )
        self._current[key] = authorization
        return authorization

    # --- streams ------------------------------------------------------------------------------------------------------

    async def WatchAuthorizations(
        self, request_iterator: AsyncIterator[pb2.WatchAuthorizationsRequest], context: Any
    ) -> AsyncIterator[pb2.WatchAuthorizationsResponse]:
        """Send what is told, until it is told to end or the caller goes."""
        script = self._streams.pop(0) if len(self._streams) > 1 else self._streams[0]
        stream = Opened(
            script=script, **{name: value for name, value in _arrival(context).items() if name != "attempt"}
        )
        self.opened.append(stream)
        jobs = [asyncio.create_task(self._read(stream, request_iterator)), asyncio.create_task(_beat(stream))]
        if "closing_after" in script:
            jobs.append(_later(script["closing_after"], stream, _closing(script.get("retry_delay", 0.1))))
        if "end_after" in script:
            jobs.append(_later(script["end_after"], stream, script))
        try:
            while not isinstance(event := await stream.next(), _End):
                yield event
            await _abort_if_told(context, event.answer)
        finally:
            stream.ended = time.monotonic()
            for job in jobs:
                job.cancel()

    async def _read(self, stream: Opened, requests: AsyncIterator[pb2.WatchAuthorizationsRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("action") == "unsubscribe":
                stream.unsubscribed.append(request.unsubscribe.subscription_id)
                continue
            wish = request.subscribe
            subscription = Subscribed(
                id=wish.subscription_id,
                scope=wish.scope,
                thread_id=wish.thread_id,
                identity=wish.identity,
                known_revision=wish.known_revision,
                time=time.monotonic(),
            )
            stream.subscribed.append(subscription)
            held = self._current.get(subscription.key)
            if stream.script.get("values", True) and (held is None or held.revision != wish.known_revision):
                value = self._authorization(subscription.key, {})
                stream.send(pb2.WatchAuthorizationsResponse(subscription_id=subscription.id, authorization=value))


def _arrival(context: Any) -> dict[str, Any]:
    metadata = {str(name): value for name, value in context.invocation_metadata() or ()}
    return {"metadata": metadata, "seconds": context.time_remaining(), "time": time.monotonic()}


async def _beat(stream: Opened) -> None:
    seconds = stream.script.get("heartbeat", 0.5)
    while seconds:
        await asyncio.sleep(seconds)
        stream.send(
            pb2.WatchAuthorizationsResponse(heartbeat=pb2.Heartbeat(server_time=messages.timestamp(time.time())))
        )


def _later(seconds: float, stream: Opened, what: Any) -> "asyncio.Task[None]":
    event = what if isinstance(what, pb2.WatchAuthorizationsResponse) else _End(what)

    async def send() -> None:
        await asyncio.sleep(seconds)
        stream.send(event)

    return asyncio.create_task(send())


def _closing(retry_delay: float) -> pb2.WatchAuthorizationsResponse:
    return pb2.WatchAuthorizationsResponse(closing=pb2.Closing(retry_delay=messages.duration(retry_delay)))


def _task(request: Any, state: Any) -> pb2.Task:
    identity = request.identity or IDENTITY
    return pb2.Task(id="task-1", identity=identity, kind=pb2.TASK_KIND_THREAD, thread_id=request.thread_id, state=state)


async def _abort_if_told(context: Any, answer: Answer) -> None:
    """End a call with the error that an answer names, if it names one."""
    if "error" in answer:
        outcome = _outcome(answer)
        details = status_of(outcome, "request-1").SerializeToString()
        await context.abort(code_of(outcome), outcome.text, ((DETAILS_KEY, details),))
    if "status" in answer:
        code = grpc.StatusCode[answer["status"]]
        message = answer.get("message", "made by the runtime")
        trailing: tuple[tuple[str, bytes], ...] = ()
        if "details" in answer:
            trailing = ((DETAILS_KEY, answer["details"].encode()),)
        elif "reason_text" in answer:
            packed = any_pb2.Any()
            info = error_details_pb2.ErrorInfo(
                reason=answer["reason_text"],
                domain=answer.get("domain", ERROR_DOMAIN),
                metadata=answer.get("metadata", {}),
            )
            packed.Pack(info)
            status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
            trailing = ((DETAILS_KEY, status.SerializeToString()),)
        await context.abort(code, message, trailing)


def _outcome(answer: Answer) -> BrokerError:
    made = _OUTCOMES[answer["error"]]
    return made(metadata=answer.get("metadata"), retry_after=answer.get("retry_after", DEFAULT_RETRY_SECONDS))


def _number(enum: Any, prefix: str, word: str | int) -> Any:
    return word if isinstance(word, int) else enum.Value(prefix + word)


def _checked(given: Mapping[str, Any], words: frozenset[str]) -> Mapping[str, Any]:
    unknown = given.keys() - words
    if unknown:
        raise ValueError(f"not a word of scripts: {', '.join(sorted(unknown))}")
    return given
