"""The bytes of HTTP/2 and gRPC, against RFC 9113 and RFC 7541."""

import pytest

from tests.bench import frames
from tests.bench.frames import Flag, FrameReader, FrameType, ProtocolError, Request


def test_a_frame_has_the_layout_of_the_rfc() -> None:
    """Length in three bytes, type, flags, stream id in four, payload (RFC 9113 section 4.1)."""
    assert frames.frame(FrameType.DATA, Flag.END_STREAM, 5, b"abc") == b"\x00\x00\x03\x00\x01\x00\x00\x00\x05abc"


def test_the_preface_asks_for_no_header_table_and_no_push() -> None:
    """The settings make every header block of the server stand for itself."""
    _, _, rest = frames.PREFACE.partition(b"SM\r\n\r\n")
    (settings, window) = list(FrameReader().feed(rest))
    assert settings[:3] == (FrameType.SETTINGS, 0, 0)
    assert settings[3] == b"\x00\x01\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff"
    assert (FrameType.WINDOW_UPDATE, 0, 0, (2**31 - 65536).to_bytes(4, "big")) == window


@pytest.mark.parametrize(
    ("length", "encoded"),
    [(0, b"\x00"), (126, b"\x7e"), (127, b"\x7f\x00"), (128, b"\x7f\x01"), (1337, b"\x7f\xba\x09")],
)
def test_a_literal_says_its_lengths_as_hpack_does(length: int, encoded: bytes) -> None:
    """Lengths from 127 on take further bytes (RFC 7541 section 5.1)."""
    assert b"\x00\x01n" + encoded + b"v" * length == frames.literal(b"n", b"v" * length)


def test_a_request_is_headers_and_a_message_that_ends_the_stream() -> None:
    """The frames of a call carry its stream id, path, metadata and length-prefixed message."""
    headers, data = FrameReader().feed(Request("/p.S/M", b"hello", {"x-guard": "1"}).on(7))
    block = (
        b"\x83\x86"
        + frames.literal(b":path", b"/p.S/M")
        + frames.literal(b":authority", b"localhost")
        + frames.literal(b"te", b"trailers")
        + frames.literal(b"content-type", b"application/grpc")
        + frames.literal(b"x-guard", b"1")
    )
    assert (FrameType.HEADERS, Flag.END_HEADERS, 7, block) == headers
    assert data == (FrameType.DATA, Flag.END_STREAM, 7, b"\x00\x00\x00\x00\x05hello")


def test_a_reader_takes_bytes_however_they_are_cut() -> None:
    """Fed byte by byte, the same frames come out as when fed at once."""
    sent = frames.frame(FrameType.DATA, Flag.NONE, 1, b"x" * 300) + frames.frame(FrameType.PING, Flag.ACK, 0, b"y" * 8)
    whole = list(FrameReader().feed(sent))
    reader = FrameReader()
    assert whole == [frame for byte in sent for frame in reader.feed(bytes((byte,)))]
    assert whole == [(0, 0, 1, b"x" * 300), (6, 1, 0, b"y" * 8)]


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (frames.literal(b"grpc-status", b"0"), "OK"),
        (frames.literal(b"grpc-message", b"no") + frames.literal(b"grpc-status", b"13"), "INTERNAL"),
        (b"\x88" + frames.literal(b"content-type", b"application/grpc"), None),
        # The field of another name that ends alike has another length before it.
        (frames.literal(b"x-grpc-status", b"0"), None),
        # A message that holds the words does not hold the length byte.
        (frames.literal(b"grpc-message", b"grpc-status0"), None),
    ],
)
def test_the_status_is_found_in_a_header_block(block: bytes, status: str | None) -> None:
    """Only a field of exactly this name is the status."""
    assert status == frames.grpc_status(block)


@pytest.mark.parametrize("value", [b"", b"17", b"x"])
def test_a_status_that_is_no_code_is_refused(value: bytes) -> None:
    """A status nobody knows must not be counted as anything."""
    with pytest.raises(ProtocolError):
        frames.grpc_status(frames.literal(b"grpc-status", value))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [(b"", None), (b"\x00\x04\x00\x00\x00\x03", None), (b"\x00\x01\x00\x00\x00\x03\x00\x03\x00\x00\x00\x64", 100)],
)
def test_the_stream_limit_is_found_among_the_settings(settings: bytes, allowed: int | None) -> None:
    """Only setting 3 is the limit, wherever it stands."""
    assert allowed == frames.max_concurrent_streams(settings)


def test_messages_are_cut_at_their_lengths() -> None:
    """A stream may carry several messages, an empty one too."""
    data = b"\x00\x00\x00\x00\x02ab\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01c"
    assert frames.messages(data) == [b"ab", b"", b"c"]


@pytest.mark.parametrize("data", [b"\x01\x00\x00\x00\x01a", b"\x00\x00\x00\x00\x02a", b"\x00\x00"])
def test_messages_that_cannot_be_read_are_refused(data: bytes) -> None:
    """A compressed or a cut message is not handed out as if it were whole."""
    with pytest.raises(ProtocolError):
        frames.messages(data)


@pytest.mark.parametrize(
    ("payload", "name"),
    [(b"\x00\x00\x00\x07", "REFUSED_STREAM"), (b"\x00\x00\x00\x08", "CANCEL"), (b"\x00\x00\x01\x00", "0x100")],
)
def test_a_reset_says_its_cause(payload: bytes, name: str) -> None:
    """A known error has its name, another one its number."""
    assert frames.reset_cause(payload) == name
