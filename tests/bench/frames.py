"""
The bytes of unary gRPC calls over HTTP/2, pure: requests are built once, answers are read without a full HPACK decoder.

A generator that is to load a Python server has to be cheaper than it, so this knows only what a generator needs. The
trick that makes it possible is `PREFACE`: it announces a header table of size 0 (RFC 9113 section 6.5.2), so each header
block the server sends stands for itself and the one field that matters, `grpc-status`, can be found in it as plain bytes.
"""

from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from typing import Final


class FrameType(IntEnum):
    """RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """RFC 9113 section 6; ACK and END_STREAM share a bit on different frames."""

    NONE = 0
    ACK = 1
    END_STREAM = 1
    END_HEADERS = 4


class ProtocolError(Exception):
    """The server sent something that a gRPC server never sends to this generator."""


LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65535
_HEAD_BYTES: Final = 9
_MESSAGE_HEAD_BYTES: Final = 5
_SETTING_HEADER_TABLE_SIZE: Final = 1
_SETTING_ENABLE_PUSH: Final = 2
_SETTING_MAX_CONCURRENT_STREAMS: Final = 3
_SETTING_INITIAL_WINDOW_SIZE: Final = 4
_SETTING_BYTES: Final = 6
# A header value never holds control characters (a grpc-message is percent-encoded), so this name with its own length
# before it cannot occur inside of another field.
_STATUS_FIELD: Final = b"\x0bgrpc-status"
_STATIC_POST: Final = b"\x83"  # RFC 7541 appendix A: index 3 is `:method: POST`, 6 is `:scheme: http`
_STATIC_HTTP: Final = b"\x86"

STATUS_NAMES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""The names of gRPC's codes, by number."""

ERROR_NAMES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
"""The names of HTTP/2's error codes, by number (RFC 9113 section 7)."""


# --- writing ----------------------------------------------------------------------------------------------------------


def frame(kind: FrameType, flags: Flag, stream_id: int, payload: bytes) -> bytes:
    """Build one frame."""
    return _frame_head(kind, flags, len(payload)) + stream_id.to_bytes(4, "big") + payload


def _frame_head(kind: FrameType, flags: Flag, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes((kind, flags))


def _setting(number: int, value: int) -> bytes:
    return number.to_bytes(2, "big") + value.to_bytes(4, "big")


def window_update(stream_id: int, increment: int) -> bytes:
    """Let the server send `increment` more bytes; stream 0 is the connection."""
    return frame(FrameType.WINDOW_UPDATE, Flag.NONE, stream_id, increment.to_bytes(4, "big"))


PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(
        FrameType.SETTINGS,
        Flag.NONE,
        0,
        _setting(_SETTING_HEADER_TABLE_SIZE, 0)
        + _setting(_SETTING_ENABLE_PUSH, 0)
        + _setting(_SETTING_INITIAL_WINDOW_SIZE, LARGEST_WINDOW),
    )
    + window_update(0, LARGEST_WINDOW - _FIRST_WINDOW)
)
"""What a connection begins with: no header table, no push, and windows so wide that answers are never held back."""

SETTINGS_ACK: Final = frame(FrameType.SETTINGS, Flag.ACK, 0, b"")


def ping_ack(payload: bytes) -> bytes:
    """Answer a ping."""
    return frame(FrameType.PING, Flag.ACK, 0, payload)


def _hpack_length(length: int) -> bytes:
    """Encode a length as RFC 7541 section 5.1 does, with a prefix of 7 bits."""
    if length < 0x7F:
        return bytes((length,))
    encoded, rest = bytearray((0x7F,)), length - 0x7F
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def literal(name: bytes, value: bytes) -> bytes:
    """Encode one field as RFC 7541 section 6.2.2 does: literal, without indexing, so that it depends on nothing."""
    return b"\x00" + _hpack_length(len(name)) + name + _hpack_length(len(value)) + value


class Request:
    """
    One unary call, ready to be sent any number of times.

    Args:
        path: `/package.Service/Method`.
        message: the serialized request message.
        metadata: sent with each call.
    """

    def __init__(self, path: str, message: bytes, metadata: Mapping[str, str] | None = None) -> None:
        fields = {
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            **(metadata or {}),
        }
        block = (
            _STATIC_POST
            + _STATIC_HTTP
            + b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
        )
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        # Everything of the two frames but their stream ids.
        self._before = _frame_head(FrameType.HEADERS, Flag.END_HEADERS, len(block))
        self._between = block + _frame_head(FrameType.DATA, Flag.END_STREAM, len(body))
        self._after = body

    def on(self, stream_id: int) -> bytes:
        """Return the frames of one call."""
        number = stream_id.to_bytes(4, "big")
        return b"".join((self._before, number, self._between, number, self._after))


# --- reading ----------------------------------------------------------------------------------------------------------


class FrameReader:
    """Cuts a connection's bytes into frames, however they arrive."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Take bytes and yield (type, flags, stream id, payload) of every frame that is complete; exhaust it."""
        data = self._rest + data if self._rest else data
        start, end = 0, len(data)
        while end - start >= _HEAD_BYTES:
            body = start + _HEAD_BYTES
            after = body + int.from_bytes(data[start : start + 3], "big")
            if after > end:
                break
            stream_id = int.from_bytes(data[start + 5 : body], "big")
            yield data[start + 3], data[start + 4], stream_id, data[body:after]
            start = after
        self._rest = data[start:]


def grpc_status(block: bytes) -> str | None:
    """
    Return the name of the status in a header block, None when it holds none (the headers before a message).

    Raises:
        ProtocolError: the status is not a number that gRPC knows.
    """
    at = block.find(_STATUS_FIELD)
    if at < 0:
        return None
    at += len(_STATUS_FIELD)
    value = block[at + 1 : at + 1 + block[at]]
    if not value.isdigit() or int(value) >= len(STATUS_NAMES):
        raise ProtocolError(f"a status that is no code of gRPC: {value!r}")
    return STATUS_NAMES[int(value)]


def reset_cause(payload: bytes) -> str:
    """Return the name of the error in the payload of a RST_STREAM frame."""
    number = int.from_bytes(payload, "big")
    return ERROR_NAMES[number] if number < len(ERROR_NAMES) else f"0x{number:x}"


def max_concurrent_streams(settings: bytes) -> int | None:
    """Return how many streams the payload of a SETTINGS frame allows, None when it does not say."""
    for start in range(0, len(settings), _SETTING_BYTES):
        if int.from_bytes(settings[start : start + 2], "big") == _SETTING_MAX_CONCURRENT_STREAMS:
            return int.from_bytes(settings[start + 2 : start + _SETTING_BYTES], "big")
    return None


def messages(data: bytes) -> list[bytes]:
    """
    Cut the data of a stream into gRPC messages.

    Raises:
        ProtocolError: a message is compressed or cut short.
    """
    found, start = [], 0
    while start < len(data):
        body = start + _MESSAGE_HEAD_BYTES
        after = body + int.from_bytes(data[start + 1 : body], "big")
        if data[start] != 0 or after > len(data):
            raise ProtocolError("a message that is compressed or cut short")
        found.append(data[body:after])
        start = after
    return found
