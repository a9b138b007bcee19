"""Headers as metadata of gRPC calls to a backend: `grpc.metadata_call_credentials(BrokerPlugin(...))`, TLS only."""

import asyncio
from concurrent.futures import Future
from typing import Final

import grpc

from credentialbroker.aio import AsyncClient
from credentialbroker.authorization import Authorization
from credentialbroker.client import Client


class BrokerPlugin(grpc.AuthMetadataPlugin):
    """
    Gives the headers to each call of a `grpc.Channel`; gRPC refuses it on connections without TLS.

    A call for which the broker gives none fails with UNAVAILABLE, whose text has the broker's reason.
    """

    def __init__(self, client: Client, scope: str, thread: str = "", *, identity: str | None = None) -> None:
        """Make it. Args: as of `Client.authorization`."""
        self._client: Final = client
        self._asked: Final = (scope, thread)
        self._identity: Final = identity

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Give the headers to gRPC, which calls this in a thread of its own."""
        del context
        try:
            authorization = self._client.authorization(*self._asked, identity=self._identity)
        except Exception as error:  # noqa: BLE001 - gRPC must be told of any, or the call waits for ever
            callback((), error)
        else:
            callback(_metadata(authorization), None)


class AsyncBrokerPlugin(grpc.AuthMetadataPlugin):
    """Does for a `grpc.aio.Channel` what `BrokerPlugin` does for a `grpc.Channel`. Make it inside the client's loop."""

    def __init__(self, client: AsyncClient, scope: str, thread: str = "", *, identity: str | None = None) -> None:
        """Make it. Args: as of `AsyncClient.authorization`."""
        self._client: Final = client
        self._asked: Final = (scope, thread)
        self._identity: Final = identity
        self._loop: Final = asyncio.get_running_loop()

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Give the headers to gRPC, which calls this in a thread of its own, not in that of the loop."""
        del context

        def done(asked: Future[Authorization]) -> None:
            # Cancelled is what tasks of a loop are that ends; asking a cancelled one for its exception raises.
            error = RuntimeError("cancelled") if asked.cancelled() else asked.exception()
            if error is None:
                callback(_metadata(asked.result()), None)
            else:
                callback((), error if isinstance(error, Exception) else RuntimeError(str(error)))

        question = self._client.authorization(*self._asked, identity=self._identity)
        asyncio.run_coroutine_threadsafe(question, self._loop).add_done_callback(done)


def _metadata(authorization: Authorization) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(authorization.headers)
