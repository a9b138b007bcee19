"""What people type: durations, times, addresses, and secrets that never are arguments."""

import io
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from broker.cli.parameters import Address, Duration, Moment, Secret, SecretFile


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("1.5s", 1.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """Seconds with and without their unit, milliseconds, minutes, hours."""
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "nan", "1e9", "\u0663s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Anything else is a usage error that shows how to write one."""
    with pytest.raises(click.BadParameter, match="write 30s"):
        Duration().convert(text, None, None)


def test_times_need_their_zone() -> None:
    """A time is what RFC 3339 writes; without a zone it could mean anything."""
    assert Moment().convert("2027-01-31T12:00:00Z", None, None) == datetime(2027, 1, 31, 12, tzinfo=UTC)
    for text in ("2027-01-31T12:00:00", "tomorrow", "2027-01-31"):
        with pytest.raises(click.BadParameter, match="with its zone"):
            Moment().convert(text, None, None)


@pytest.mark.parametrize("text", ["dns:///broker:50051", "127.0.0.1:1", "[::1]:50051", "unix:///run/b.sock", "unix:/b"])
def test_addresses_are_grpcs(text: str) -> None:
    """What gRPC takes is taken as it is."""
    assert Address().convert(text, None, None) == text


@pytest.mark.parametrize("text", ["http://127.0.0.1:50051", "https://broker", "localhost", "dns:///broker", ""])
def test_addresses_that_grpc_would_wait_for_in_vain_are_refused(text: str) -> None:
    """A web address or one without a port is told apart at once, not after a time-out."""
    with pytest.raises(click.BadParameter, match="write dns:///HOST:PORT"):
        Address().convert(text, None, None)


def test_a_secret_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """A token file written by `echo` holds the token."""
    file = tmp_path / "token"
    file.write_bytes(b"sk-secret\n")
    assert SecretFile().convert(str(file), None, None).text == "sk-secret"


def test_a_secret_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard input."""
    stdin = io.TextIOWrapper(io.BytesIO(b"sk-secret\r\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert SecretFile().convert("-", None, None).text == "sk-secret"


def test_a_secret_never_shows_itself() -> None:
    """Neither repr nor str of a secret holds it."""
    assert "sk-secret" not in repr(Secret(b"sk-secret")) + str(Secret(b"sk-secret"))


@pytest.mark.parametrize("typed", ["sk-secret-value", "eyJhbGciOi", '{"tokens": "secret-value"}', "s" * 5000])
def test_a_secret_typed_as_an_argument_is_refused_and_not_repeated(typed: str) -> None:
    """Whoever types the secret in place of its file is told so, without the secret being printed again."""
    with pytest.raises(click.BadParameter, match="never the secret itself") as refused:
        SecretFile().convert(typed, None, None)
    assert typed not in str(refused.value)
    assert typed not in refused.value.format_message()


def test_an_empty_secret_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    """A wrong file is found out here rather than sent to the broker."""
    file = tmp_path / "token"
    file.write_bytes(b"\n")
    with pytest.raises(click.BadParameter, match="is empty"):
        SecretFile().convert(str(file), None, None)
    file.write_bytes(b"x" * 65_537)
    with pytest.raises(click.BadParameter, match="more than 65536 bytes"):
        SecretFile().convert(str(file), None, None)


def test_a_secret_that_is_not_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    """A binary file given as a token names the mistake and none of its bytes."""
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfesecret")
    with pytest.raises(click.UsageError, match="not ASCII") as refused:
        _ = SecretFile().convert(str(file), None, None).text
    assert "secret\\" not in refused.value.format_message()
    assert refused.value.__cause__ is None
