"""
The stream of WatchAuthorizations: changes in, events out.

A value is packed once however many subscribers it has: a message is the bytes of its subscription's name followed by
the bytes of its event, which is how protobuf writes two fields of one message.
"""

import asyncio
import re
from typing import Any, Final, NamedTuple, assert_never

from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from broker import errors
from broker.authorization import Answer, AuthorizationRequest
from broker.clock import Clock
from broker.errors import BrokerError
from broker.rpc import fields, messages
from broker.rpc.interceptors import Call, Context, require_readable
from broker.telemetry import Metrics, logger
from broker.watch import Closing, Event, Failed, Heartbeat, Value, WatchHub, WatchStream, WithdrawalReason, Withdrawn

_LOG: Final = logger(__name__)

OLDEST_SERVER_TIME_SECONDS: Final = 0.5
"""How far behind now the `server_time` of a value may be when it is sent: callers subtract it."""
_SUBSCRIPTION_ID: Final = re.compile(r"[ -~]{1,64}")
_LONGEST_REVISION: Final = 128

REASONS: Final = {reason: pb2.WithdrawalReason.Value(f"WITHDRAWAL_REASON_{reason}") for reason in WithdrawalReason}


class WatchConversations:
    """Serves the streams of one hub."""

    def __init__(self, *, hub: WatchHub, clock: Clock, metrics: Metrics) -> None:
        self._hub = hub
        self._clock = clock
        self._metrics = metrics

    async def serve(self, call: Call, context: Context) -> None:
        """
        Talk with one caller until it goes, or until the stream is to end well.

        Raises:
            BrokerError: the stream ends with this.
        """
        try:
            stream = self._hub.open(call)
            reader = asyncio.create_task(self._read(stream, context), name="watch-read")
            try:
                # A caller that holds all revisions would otherwise see nothing of the stream until the first heartbeat.
                await context.send_initial_metadata((("x-credential-broker", "1"),))
                await self._send(stream, context)
            finally:
                stream.close()
                reader.cancel()
        except BrokerError as error:
            self._metrics.count(self._metrics.watch_dropped, error.reason)
            raise

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _send(self, stream: WatchStream, context: Context) -> None:
        while True:
            event = stream.take()
            if event is None:
                await stream.ready()
                continue
            stream.begin_write()
            await context.write(self._bytes_of(event))
            stream.end_write()
            if isinstance(event, Closing):
                return

    def _bytes_of(self, event: Event) -> bytes:
        match event:
            case Value(subscription, answer):
                return subscription.name_bytes + self._pushed(answer)
            case Withdrawn(subscription, reason):
                withdrawal = pb2.Withdrawal(reason=REASONS[reason])
                message = pb2.WatchAuthorizationsResponse(subscription_id=subscription.id, withdrawal=withdrawal)
            case Failed(subscription_id, error, retry_delay):
                failure = pb2.SubscriptionError(status=messages.error_status(error, retry_delay))
                message = pb2.WatchAuthorizationsResponse(subscription_id=subscription_id, error=failure)
            case Heartbeat():
                now = messages.timestamp(self._clock.now())
                message = pb2.WatchAuthorizationsResponse(heartbeat=pb2.Heartbeat(server_time=now))
            case Closing(retry_delay):
                closing = pb2.Closing(retry_delay=messages.duration(retry_delay))
                message = pb2.WatchAuthorizationsResponse(closing=closing)
            case _:
                assert_never(event)
        return message.SerializeToString()

    def _pushed(self, answer: Answer) -> bytes:
        """Return the bytes of a value, packed anew when the time in them is no longer about now."""
        now = self._clock.now()
        pushed: _Pushed | None = answer.pushed
        if pushed is not None and 0 <= now - pushed.time < OLDEST_SERVER_TIME_SECONDS:
            return pushed.data
        if pushed is None:
            message = pb2.WatchAuthorizationsResponse(authorization=messages.authorization(answer.authorization))
            server_time = message.authorization.server_time
        else:
            message, server_time = pushed.message, pushed.server_time
        server_time.seconds = int(now)
        server_time.nanos = int(now % 1 * 1e9)
        data = message.SerializeToString()
        answer.pushed = _Pushed(now, data, message, server_time)
        return data

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _read(self, stream: WatchStream, context: Context) -> None:
        """Take changes until there are no more of them; that a caller says so ends no subscription."""
        is_first = True
        while True:
            request = await context.read()
            if request is aio.EOF:
                return
            try:
                _change(stream, request)
            except BrokerError as error:
                if is_first and isinstance(error, errors.FieldInvalidError):
                    stream.fail(error)
                    return
                await stream.refuse(_name_in(request), error)
            except Exception as error:  # noqa: BLE001 - the sender must learn that nobody reads any more
                _LOG.error("watch_crashed", request_id=stream.call.request_id, exc_info=error)
                stream.fail(errors.InternalError())
                return
            is_first = False


class _Pushed(NamedTuple):
    """A value as it was last sent."""

    time: float
    data: bytes
    message: pb2.WatchAuthorizationsResponse
    server_time: Timestamp


def _change(stream: WatchStream, request: Any) -> None:
    require_readable(request)
    action = request.WhichOneof("action")
    if action == "unsubscribe":
        stream.unsubscribe(_checked_name(request.unsubscribe.subscription_id))
    elif action == "subscribe":
        wanted = request.subscribe
        name = _checked_name(wanted.subscription_id)
        fields.scope(wanted.scope)
        fields.thread_id(wanted.thread_id)
        fields.identity(wanted.identity)
        if len(wanted.known_revision) > _LONGEST_REVISION:
            raise errors.FieldInvalidError(
                violations={"known_revision": f"has at most {_LONGEST_REVISION} characters, as it was given"}
            )
        asked = AuthorizationRequest(wanted.scope, wanted.thread_id, wanted.identity)
        name_bytes = pb2.WatchAuthorizationsResponse(subscription_id=name).SerializeToString()
        stream.subscribe(name, name_bytes, asked, wanted.known_revision)
    else:
        raise errors.FieldInvalidError(violations={"action": "is required: subscribe or unsubscribe"})


def _checked_name(value: str) -> str:
    if not _SUBSCRIPTION_ID.fullmatch(value):
        raise errors.FieldInvalidError(
            violations={"subscription_id": "is required: 1 to 64 printable ASCII characters, your own name for it"}
        )
    return value


def _name_in(request: Any) -> str:
    """Return the subscription that a change that was refused is about; empty when it names none that can be told."""
    action = request.WhichOneof("action") if isinstance(request, pb2.WatchAuthorizationsRequest) else None
    name: str = getattr(request, action).subscription_id if action else ""
    return name if _SUBSCRIPTION_ID.fullmatch(name) else ""
