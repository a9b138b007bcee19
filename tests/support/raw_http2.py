"""An HTTP/2 connection that does exactly what a test says, also what no gRPC client would ever do."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench.frames import PREFACE, Flag, FrameReader, FrameType, frame, literal

GUARD = {"x-credential-broker": "1"}
GET_AUTHORIZATION = "/credentialbroker.v1.CredentialBroker/GetAuthorization"
WAIT_SECONDS = 10.0
"""How long anything may take before a test gives up on it; nothing is measured by it."""

_CLEARTEXT_POST = b"\x83\x86"  # RFC 7541 appendix A: `:method: POST`, `:scheme: http`
_NO_FLAGS = Flag.NONE


class RawConnection:
    """
    One connection; nothing is answered for it, not even a ping.

    Attributes:
        received: every frame so far, as (type, flags, stream id, payload).
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received: list[tuple[int, int, int, bytes]] = []
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()

    @property
    def own_port(self) -> int:
        """The port of this end."""
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    def open_stream(self, stream_id: int, path: str = GET_AUTHORIZATION) -> None:
        """Send the headers of a call and nothing after them: the server waits for a message that never comes."""
        fields = {":path": path, ":authority": "localhost", "te": "trailers", "content-type": "application/grpc"}
        block = _CLEARTEXT_POST + b"".join(literal(k.encode(), v.encode()) for k, v in (fields | GUARD).items())
        self.send(frame(FrameType.HEADERS, Flag.END_HEADERS, stream_id, block))

    def ping(self) -> None:
        """Send a ping."""
        self.send(frame(FrameType.PING, _NO_FLAGS, 0, b"12345678"))

    async def until(self, kind: FrameType, *, flags: Flag = _NO_FLAGS, count: int = 1) -> list[bytes]:
        """Return the payloads of the frames of one kind once there are `count` of them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(found := self.of(kind, flags)) < count:
                if not await self._read():
                    raise AssertionError(f"the server closed before {kind.name}: {self.received}")
        return found

    def of(self, kind: FrameType, flags: Flag = _NO_FLAGS) -> list[bytes]:
        """Return the payloads of one kind that were received so far, in order."""
        return [payload for number, bits, _, payload in self.received if number == kind and bits & flags == flags]

    async def closed(self) -> None:
        """Wait until the server has closed."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self._read():
                pass

    async def answers_pings(self) -> bool:
        """Say whether the connection lives: a ping comes back."""
        before = len(self.of(FrameType.PING, Flag.ACK))
        self.ping()
        try:
            await self.until(FrameType.PING, flags=Flag.ACK, count=before + 1)
        except (AssertionError, ConnectionError):
            return False
        return True

    async def _read(self) -> bool:
        try:
            data = await self._reader.read(65536)
        except ConnectionError:
            return False
        self.received += self._frames.feed(data)
        return bool(data)


@asynccontextmanager
async def raw_connection(address: str, *, preface: bool = True) -> AsyncIterator[RawConnection]:
    """Connect to `HOST:PORT`; with `preface`, HTTP/2 is greeted."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = RawConnection(reader, writer)
    if preface:
        connection.send(PREFACE)
    try:
        yield connection
    finally:
        writer.transport.abort()


async def negotiates(address: str, context: ssl.SSLContext) -> bool:
    """Say whether a TLS handshake with this context ends well and the server then goes on talking."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
        writer.write(PREFACE)
        async with asyncio.timeout(WAIT_SECONDS):
            spoke = bool(await reader.read(1))
    except (ssl.SSLError, ConnectionError):
        return False
    writer.transport.abort()
    return spoke
