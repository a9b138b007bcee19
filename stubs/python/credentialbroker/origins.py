"""The one thing of a URL that decides where headers go: its origin. Pure."""

import re
from typing import Final, NamedTuple

from credentialbroker.errors import OriginError

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_MAX_PORT: Final = 65_535
# The part of RFC 3986 that every parser reads the same way. What two could read differently (user info, backslashes,
# white space, percent-encoded or non-ASCII hosts) has no origin and is refused, never normalised.
_URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?:[/?][\x21-\x5b\x5d-\x7e]*)?",
    re.IGNORECASE | re.ASCII,
)


class Origin(NamedTuple):
    """Scheme, host and port, in lower case; two origins are the same only when all three are."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


def parse_origin(url: str) -> Origin | None:
    """Return the origin of an absolute http or https URL; None where two parsers could read it differently."""
    parts = _URL.fullmatch(url)
    if parts is None:
        return None
    scheme = parts["scheme"].lower()
    port = int(parts["port"]) if parts["port"] else _DEFAULT_PORTS[scheme]
    return Origin(scheme, parts["host"].lower(), port) if port <= _MAX_PORT else None


def origin_of_adapter(url: str) -> Origin:
    """
    Return the origin that an adapter is made for.

    Raises:
        ValueError: the URL has none.
    """
    origin = parse_origin(url)
    if origin is None:
        raise ValueError("an adapter is made for an origin: https://host[:port]")
    return origin


def check_origin(url: str, origin: Origin) -> None:
    """
    See to it that a request goes to the adapter's origin.

    Raises:
        OriginError: it goes elsewhere.
    """
    found = parse_origin(url)
    if found != origin:
        raise OriginError(f"these headers are for {origin} only, and the request goes to {found or 'another place'}")
