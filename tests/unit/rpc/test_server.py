"""The values that are shipped, and the files that TLS is read from."""

from pathlib import Path

import pytest

from broker.errors import StartupError
from broker.rpc.server import CHANNEL_ARGUMENTS, TlsFiles, TlsReader
from tests.support.certificates import Authority, Pair


def test_the_channel_arguments_are_those_that_were_chosen() -> None:
    """Each stands here a second time, so that none changes or goes by accident; its effect is tested elsewhere."""
    assert dict(CHANNEL_ARGUMENTS) == {
        "grpc.so_reuseport": 0,
        "grpc.max_concurrent_streams": 100,
        "grpc.max_receive_message_length": 64 * 1024,
        "grpc.max_send_message_length": 64 * 1024,
        "grpc.max_metadata_size": 8 * 1024,
        "grpc.absolute_max_metadata_size": 16 * 1024,
        "grpc.max_connection_age_ms": 300_000,
        "grpc.max_connection_age_grace_ms": 240_000,
        "grpc.max_connection_idle_ms": 300_000,
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.http2.ping_timeout_ms": 20_000,
        "grpc.http2.min_ping_interval_without_data_ms": 30_000,
        "grpc.http2.max_ping_strikes": 2,
        "grpc.server_handshake_timeout_ms": 5_000,
        "grpc.server.max_pending_requests": 65_536,
        "grpc.server.max_pending_requests_hard_limit": 131_072,
    }


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Make an authority."""
    return Authority()


def reader_of(folder: Path, pair: Pair, authority: bytes | None = None) -> TlsReader:
    """Write the files of a listener and return what reads them."""
    certificate, key = pair.write(folder)
    client_ca = None
    if authority is not None:
        client_ca = folder / "ca.crt"
        client_ca.write_bytes(authority)
    return TlsReader(TlsFiles(certificate, key, client_ca))


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path, authority: Authority) -> None:
    """None tells gRPC to go on with what it has; a touch alone changes nothing either."""
    pair = authority.issue()
    reader = reader_of(tmp_path, pair, authority.certificate)
    assert reader.current() is not None
    assert reader.changed() is None
    pair.write(tmp_path)
    assert reader.changed() is None


def test_files_that_changed_together_are_taken(tmp_path: Path, authority: Authority) -> None:
    """A new certificate with its key is handed to gRPC once."""
    reader = reader_of(tmp_path, authority.issue())
    reader.current()
    authority.issue().write(tmp_path)
    assert reader.changed() is not None
    assert reader.changed() is None


def test_a_changed_authority_is_taken(tmp_path: Path, authority: Authority) -> None:
    """Whose callers are let in can change while the certificate stays."""
    reader = reader_of(tmp_path, authority.issue(), authority.certificate)
    reader.current()
    (tmp_path / "ca.crt").write_bytes(Authority("other").certificate)
    assert reader.changed() is not None


@pytest.mark.parametrize("half", ["key later", "cut certificate", "empty certificate", "cut key", "gone", "empty ca"])
def test_files_that_are_half_written_keep_the_old_ones(
    tmp_path: Path, authority: Authority, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alert says so, and when the writing is done the new ones are taken."""
    reader = reader_of(tmp_path, authority.issue(), authority.certificate)
    reader.current()
    new = authority.issue()
    certificate, key, client_ca = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    match half:
        case "key later":
            certificate.write_bytes(new.certificate)
        case "cut certificate":
            certificate.write_bytes(new.certificate[:200])
        case "empty certificate":
            certificate.write_bytes(b"")
        case "cut key":
            certificate.write_bytes(new.certificate)
            key.write_bytes(new.key[:80])
        case "gone":
            certificate.unlink()
        case _:
            client_ca.write_bytes(b"")
    assert reader.changed() is None
    assert "tls_files_unusable" in capsys.readouterr().out
    new.write(tmp_path)
    client_ca.write_bytes(authority.certificate)
    assert reader.changed() is not None


@pytest.mark.parametrize("wrong", ["mismatch", "password", "garbage", "missing", "ca", "folder"])
def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path, authority: Authority, wrong: str) -> None:
    """Nothing listens with TLS that does not work; the problem names the file."""
    pair, named = authority.issue(), "tls.key"
    ca: bytes | None = None
    match wrong:
        case "mismatch":
            pair = Pair(pair.certificate, authority.issue().key)
        case "password":
            pair, named = authority.issue(password=b"secret"), "listen.tls"
        case "garbage":
            pair, named = Pair(b"garbage", pair.key), "listen.tls"
        case "ca":
            ca, named = b"garbage", "listen.tls"
    reader = reader_of(tmp_path, pair, ca)
    if wrong in ("missing", "folder"):
        (tmp_path / "tls.key").unlink()
    if wrong == "folder":
        (tmp_path / "tls.key").mkdir()
    with pytest.raises(StartupError, match=named) as refused:
        reader.current()
    assert refused.value.exit_code == 78
