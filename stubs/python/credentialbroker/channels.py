"""Connections to the broker, as every client makes them: service config, keepalive, TLS files that may change."""

import copy
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import grpc

from credentialbroker.settings import Settings

METADATA: Final = (("x-credential-broker", "1"),)
"""What every call must carry; see the service's description."""

SERVICE_CONFIG: Final = resources.files("credentialbroker").joinpath("service_config.json").read_text(encoding="utf-8")
"""As it is shipped with the client of every language."""

_LOOK_SECONDS: Final = 10.0
"""How often changes of TLS files are looked for at most."""


def _without_timeouts(service_config: str) -> str:
    # gRPC's C core ends a call up to 2 s before a timeout that stands here. Each call is given its own.
    config = json.loads(service_config)
    for method in config["methodConfig"]:
        method.pop("timeout", None)
    return json.dumps(config)


_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.service_config", _without_timeouts(SERVICE_CONFIG)),
    # A broker is reached directly: a proxy named in the environment would be handed headers.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", f"credentialbroker-python/{metadata.version('credentialbroker')}"),
    # The broker allows one ping each 30 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # the one above is of the socket only
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take
    # The default of 30 s would keep a client from a broker that moved.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Connections of another channel of the process may have been made before a fork, or with other TLS files.
    ("grpc.use_local_subchannel_pool", 1),
)


class Closeable(Protocol):
    """A channel of either runtime of gRPC."""

    def close(self) -> Any:
        """End it, with all calls on it."""


ChannelT = TypeVar("ChannelT", bound=Closeable)
MakePlain = Callable[..., ChannelT]


@dataclass(frozen=True, slots=True, repr=False)
class TlsFiles:
    """What the TLS files hold, in PEM."""

    authorities: bytes | None
    certificate: bytes | None
    private_key: bytes | None


class Channel(Generic[ChannelT]):
    """A channel, how many calls are on it, and whether it is still the one to use."""

    def __init__(self, grpc_channel: ChannelT) -> None:
        self.grpc: Final = grpc_channel
        self.calls = 0
        self.retired = False


class Channels(Generic[ChannelT]):
    """
    The channel to use now. A change of the TLS files makes another; the one before ends with its last call.

    gRPC for Python does not read files of a client's channel again, so that this is the only way.
    """

    _unused: list[ChannelT]

    def __init__(
        self,
        settings: Settings,
        insecure: Callable[..., ChannelT],
        secure: Callable[..., ChannelT],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Make the first channel. Nothing is sent, only the TLS files are read.

        Args:
            settings: where to.
            insecure: `insecure_channel` of the runtime.
            secure: `secure_channel` of the runtime.
            clock: tells seconds.

        Raises:
            OSError: a TLS file cannot be read.
            ValueError: a TLS file holds something else.
        """
        self._settings: Final = settings
        self._insecure: Final = insecure
        self._secure: Final = secure
        self._clock: Final = clock
        self._seen = self._versions()
        self._looked = clock()
        self._tls = self._read()
        self._set_out()

    @property
    def current(self) -> ChannelT:
        """The channel that the next call would be on, to look at it only."""
        return self._current.grpc

    def acquire(self) -> Channel[ChannelT]:
        """Return the channel for a call. It must be released when the call has ended."""
        self._look()
        with self._lock:
            self._current.calls += 1
            return self._current

    def release(self, channel: Channel[ChannelT]) -> list[ChannelT]:
        """Give a channel back. Returns those that are to be closed now: nobody will use them again."""
        with self._lock:
            channel.calls -= 1
            self._forget_if_unused(channel)
            unused, self._unused = self._unused, []
            return unused

    def retire(self) -> list[ChannelT]:
        """Return the channels without calls and the one that is used now, to be closed at the end of the client."""
        with self._lock:
            unused, self._unused = self._unused, []
            return [*unused, self._current.grpc]

    def in_child(self) -> Self:
        """
        Return the same for a child made by a fork: with connections of its own, and without touching those of before.

        The TLS files are taken as they were read last: an error about them would have nowhere to go.
        """
        made = copy.copy(self)
        made._set_out()  # noqa: SLF001 - of this class
        return made

    def _set_out(self) -> None:
        self._lock = threading.Lock()
        self._unused = []
        self._current = Channel(self._make(self._tls))

    def _forget_if_unused(self, channel: Channel[ChannelT]) -> None:
        if channel.retired and not channel.calls:
            self._unused.append(channel.grpc)

    def _look(self) -> None:
        now = self._clock()
        if self._settings.ca_file is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            seen = self._versions()
            if seen == self._seen:
                return
            tls = self._read()
            made = Channel(self._make(tls))
        except (OSError, ValueError):
            return  # half-written or gone: the old ones stay in use, and it is looked at again
        with self._lock:
            old, self._current, self._seen, self._tls = self._current, made, seen, tls
            old.retired = True
            self._forget_if_unused(old)

    def _files(self) -> tuple[Path, ...]:
        settings = self._settings
        files = settings.ca_file, settings.certificate_file, settings.private_key_file
        return tuple(path for path in files if path is not None)

    def _versions(self) -> tuple[tuple[int, int, int], ...]:
        states = (path.stat() for path in self._files())
        return tuple((state.st_mtime_ns, state.st_ino, state.st_size) for state in states)

    def _read(self) -> TlsFiles | None:
        return None if self._settings.ca_file is None else read_tls_files(self._settings)

    def _make(self, tls: TlsFiles | None) -> ChannelT:
        settings, options = self._settings, _OPTIONS
        if tls is None:
            return self._insecure(settings.target.name, options=options)
        if settings.server_name is not None:
            options = (
                *options,
                ("grpc.ssl_target_name_override", settings.server_name),
                ("grpc.default_authority", settings.server_name),
            )
        credentials = grpc.ssl_channel_credentials(tls.authorities, tls.private_key, tls.certificate)
        return self._secure(settings.target.name, credentials, options=options)


def read_tls_files(settings: Settings) -> TlsFiles:
    """
    Read the TLS files.

    Raises:
        OSError: one cannot be read.
        ValueError: one holds something else than it must; gRPC itself would find that only when it connects.
    """
    authorities = _read(settings.ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # A bundle may have comments, in any language.
        context.load_verify_locations(cadata=(authorities or b"").decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{settings.ca_file} does not hold certificates in PEM") from None
    certificate, key = _read(settings.certificate_file), _read(settings.private_key_file)
    if settings.certificate_file is not None:
        try:
            # The password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(settings.certificate_file, settings.private_key_file, password="")
        except (ssl.SSLError, ValueError):
            raise ValueError(
                f"{settings.certificate_file} and {settings.private_key_file} do not hold a certificate in PEM and its"
                " unencrypted private key"
            ) from None
    return TlsFiles(authorities, certificate, key)


def _read(path: os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
