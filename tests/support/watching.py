"""A watcher: one WatchAuthorizations stream as a caller holds it, and what it has been sent."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

WAIT_SECONDS = 10.0
"""How long anything may take before a test gives up on it; nothing is measured by it."""


class Watcher:
    """
    One stream.

    Attributes:
        call: the call itself.
        received: every event so far, with when it came (Unix seconds).
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.received: list[tuple[float, pb2.WatchAuthorizationsResponse]] = []

    async def subscribe(
        self, subscription_id: str, scope: str = "inference", thread_id: str = "t1", **more: str
    ) -> None:
        """Ask for a subscription."""
        wish = pb2.Subscribe(subscription_id=subscription_id, scope=scope, thread_id=thread_id, **more)
        await self.call.write(pb2.WatchAuthorizationsRequest(subscribe=wish))

    async def unsubscribe(self, subscription_id: str) -> None:
        """End a subscription."""
        wish = pb2.Unsubscribe(subscription_id=subscription_id)
        await self.call.write(pb2.WatchAuthorizationsRequest(unsubscribe=wish))

    async def event(self) -> pb2.WatchAuthorizationsResponse:
        """Return the next event; the stream must not have ended."""
        async with asyncio.timeout(WAIT_SECONDS):
            message = await self.call.read()
        assert isinstance(message, pb2.WatchAuthorizationsResponse), "the stream ended"
        self.received.append((time.time(), message))
        return message

    async def value(self, subscription_id: str | None = None) -> pb2.Authorization:
        """Return the next event, which must be a value."""
        message = await self.event()
        assert message.WhichOneof("event") == "authorization", message
        assert subscription_id is None or message.subscription_id == subscription_id
        return message.authorization

    async def withdrawal(self) -> str:
        """Return the bare reason of the next event, which must be a withdrawal."""
        message = await self.event()
        assert message.WhichOneof("event") == "withdrawal", message
        return pb2.WithdrawalReason.Name(message.withdrawal.reason).removeprefix("WITHDRAWAL_REASON_")

    async def error(self) -> pb2.ErrorStatus:
        """Return the status of the next event, which must be an error."""
        message = await self.event()
        assert message.WhichOneof("event") == "error", message
        return message.error.status

    async def silent_for(self, seconds: float) -> bool:
        """Say whether nothing came for so long; the last thing to ask, since a read that is given up ends the call."""
        reading = asyncio.ensure_future(self.event())
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return not done

    async def rest(self) -> list[pb2.WatchAuthorizationsResponse]:
        """Return everything up to the end of the stream, which must end well."""
        rest = []
        async with asyncio.timeout(WAIT_SECONDS):
            async for message in self.call:
                self.received.append((time.time(), message))
                rest.append(message)
        return rest


@contextlib.asynccontextmanager
async def watching(callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub") -> AsyncIterator[Watcher]:
    """Open a stream until the end of the block."""
    call = callers.WatchAuthorizations()
    try:
        yield Watcher(call)
    finally:
        call.cancel()


def usable_until(authorization: pb2.Authorization) -> float:
    """Return when a value ends, in Unix seconds."""
    return authorization.expire_time.ToNanoseconds() / 1e9


def due_at(authorization: pb2.Authorization) -> float:
    """Return when the next value should be here at the latest, in Unix seconds."""
    return authorization.refresh_time.ToNanoseconds() / 1e9
