"""Where the broker is and how it is reached, from arguments and the environment. Reads no file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

DEFAULT_ADDRESS: Final = "dns:///127.0.0.1:50051"
_FORMS: Final = "unix:///absolute/path, dns:///host:port or host:port"
_HOST_PORT: Final = re.compile(r"(?:dns:///)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[1-9][0-9]{0,4})")
_UNIX: Final = re.compile(r"unix:///[^\x00]+")
_MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Target:
    """
    An address, understood.

    Attributes:
        name: as gRPC names it.
        local: whether it is this machine: a Unix socket, `localhost`, 127.0.0.0/8 or `::1`.
    """

    name: str
    local: bool


def parse_address(address: str) -> Target:
    """
    Understand an address.

    Raises:
        ValueError: it is of no form that is known.
    """
    if _UNIX.fullmatch(address):
        return Target(address, local=True)
    parts = _HOST_PORT.fullmatch(address)
    if parts is None or int(parts["port"]) > _MAX_PORT:
        raise ValueError(f"{address!r} is no address of a broker: it must be {_FORMS}")
    return Target(f"dns:///{parts['host']}:{parts['port']}", local=_is_local(parts["host"]))


def _is_local(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    How the broker is reached.

    Attributes:
        target: where it is.
        ca_file: PEM of the authorities that sign its certificate; None: no TLS.
        certificate_file: PEM of the certificate to show.
        private_key_file: PEM of its key.
        server_name: the name in the broker's certificate, where it is not the host.
    """

    target: Target
    ca_file: Path | None
    certificate_file: Path | None
    private_key_file: Path | None
    server_name: str | None

    @classmethod
    def find(
        cls,
        *,
        address: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        private_key_file: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        plaintext: bool | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """
        Take each setting from its argument, else from its variable `CREDENTIAL_BROKER_...`, else the default.

        An empty text is as if it were not given.

        Raises:
            ValueError: a setting is malformed, or they do not go together.
        """

        def setting(value: str | os.PathLike[str] | None, name: str) -> str | None:
            return (os.fspath(value) if value else None) or environment.get(f"CREDENTIAL_BROKER_{name}") or None

        def file(value: str | os.PathLike[str] | None, name: str) -> Path | None:
            found = setting(value, name)
            return None if found is None else Path(found)

        found = cls(
            target=parse_address(setting(address, "ADDRESS") or DEFAULT_ADDRESS),
            ca_file=file(ca_file, "CA_FILE"),
            certificate_file=file(certificate_file, "CERTIFICATE_FILE"),
            private_key_file=file(private_key_file, "PRIVATE_KEY_FILE"),
            server_name=setting(server_name, "SERVER_NAME"),
        )
        if plaintext is None:
            plaintext = environment.get("CREDENTIAL_BROKER_PLAINTEXT") == "1"
        found._check(plaintext=plaintext)
        return found

    def _check(self, *, plaintext: bool) -> None:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("a certificate and its private key are given together or not at all")
        if self.ca_file is not None:
            return
        if self.certificate_file is not None:
            raise ValueError("a certificate is shown only to a broker that is verified: name its authorities (ca_file)")
        if not (self.target.local or plaintext):
            raise ValueError(
                f"{self.target.name} is another host, and headers are secrets: name the authorities that sign its"
                " certificate (ca_file), or allow plaintext in so many words (plaintext=True)"
            )
