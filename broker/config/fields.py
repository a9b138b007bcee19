"""What settings are made of: the base of every section, and the kinds of values that several sections have."""

import ipaddress
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LAST_PORT: Final = 65535
NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[ -~]*$")]
"""Something that is sent to others: printable ASCII."""
ScopeToken = Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,256}$")]
"""One scope, as RFC 6749 section 3.3 spells it."""


class Section(BaseModel):
    """A table of the settings: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _listen_address(value: str) -> str:
    """Accept `HOST:PORT` with a literal address, or `unix:PATH` with an absolute path."""
    if value.startswith("unix:"):
        path = value.removeprefix("unix://").removeprefix("unix:")
        if not path.startswith("/"):
            message = "a Unix socket is written unix:///absolute/path"
            raise ValueError(message)
        return f"unix:{path}"
    host, _, port = value.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if in_brackets else host)
        valid = (address.version == 6) is in_brackets and port.isascii() and port.isdecimal()  # noqa: PLR2004
        valid = valid and int(port) <= _LAST_PORT
    except ValueError:
        valid = False
    if not valid:
        message = "write ADDRESS:PORT with a literal address (127.0.0.1:50051, [::1]:50051), or unix:///absolute/path"
        raise ValueError(message)
    return value


ListenAddress = Annotated[str, AfterValidator(_listen_address)]


def _tcp_address(value: str | None) -> str | None:
    """Accept what `_listen_address` made, but no Unix socket: scrapers and probes do not speak to one."""
    if value is not None and value.startswith("unix:"):
        message = "write ADDRESS:PORT; a Unix socket is for callers and operators only"
        raise ValueError(message)
    return value


def _none_if_empty(value: Any) -> Any:
    """TOML and the environment have no null: an empty text says that there is none."""
    return None if value == "" else value


HttpAddress = Annotated[ListenAddress | None, BeforeValidator(_none_if_empty), AfterValidator(_tcp_address)]


def is_loopback(address: str) -> bool:
    """Say whether a listen address can be reached from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return ipaddress.ip_address(host).is_loopback
