"""
URLs of backends, reduced to the one thing that decides where a credential goes: their origin.

Pure. There is one parser, and it is a full match against a narrow grammar (the part of RFC 3986 that every URL parser
reads the same way) instead of a general parser followed by checks: what two programs could read differently (user info,
backslashes, control characters, percent-encoded or non-ASCII hosts, `127.1`, trailing dots) is refused, never
normalised. A property test proves that the host httpx would connect to is the host compared here.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

MAX_URL_LENGTH: Final = 2048
MAX_HOST_LENGTH: Final = 253
DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_MAX_PORT: Final = 65_535

# Parts of RFC 3986 appendix A, without user info and fragment, which no URL here has any use for.
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[0-9A-Fa-f:.]*\]|[A-Za-z0-9.-]*)"
    r"(?::(?P<port>[0-9]*))?"
    r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_AUTHORITY: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?P<authority>[^/?#]*)")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# A host whose last label is a number is an IPv4 address to browsers and to inet_aton: `127.1`, `0x7f000001`, `0177.1`.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


class OriginProblem(StrEnum):
    """Why a URL was refused; constant texts that are safe to show and to log."""

    TOO_LONG = "the URL is longer than 2048 characters"
    CHARACTERS = "the URL holds white space, control characters, a backslash or characters outside of ASCII"
    SCHEME = "the scheme is not https; http is for a loopback address (127.x.x.x or [::1]) in development only"
    USER_INFO = "the URL holds a user name or password"
    FRAGMENT = "the URL holds a fragment (#)"
    HOST = "the host is not a plain host name, IPv4 address or IPv6 address in its usual form"
    PORT = "the port is not a number from 1 to 65535 without leading zeros"
    SYNTAX = "this is not a URL of the form https://host[:port][/path][?query]"


class OriginError(ValueError):
    """A URL that must not be used; the text never repeats the URL."""

    def __init__(self, problem: OriginProblem) -> None:
        super().__init__(problem.value)
        self.problem: Final = problem


@dataclass(frozen=True, slots=True)
class Origin:
    """
    Scheme, host and port of a URL (RFC 6454); two are the same only when all three are.

    The host is in lower case, an IPv6 address without its brackets.
    """

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether the host is a loopback address itself, not a name that may resolve to one."""
        return _is_loopback_literal(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")


def parse_origin(url: str, *, allow_loopback_http: bool = False) -> Origin:
    """
    Return the origin of an absolute URL.

    Args:
        url: `https://host[:port][/path][?query]`; path and query are checked for their characters only.
        allow_loopback_http: take plain http too when the host is a loopback address literal (not `localhost`, which is
            whatever the resolver says).

    Raises:
        OriginError: the URL is of any other form, or one that two parsers could read differently.
    """
    if len(url) > MAX_URL_LENGTH:
        raise OriginError(OriginProblem.TOO_LONG)
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise OriginError(OriginProblem.CHARACTERS)
    parts = _URL.fullmatch(url)
    if parts is None:
        raise OriginError(_explain_mismatch(url))
    scheme = parts["scheme"].lower()
    host = _parse_host(parts["host"].lower())
    if scheme != "https" and not (scheme == "http" and allow_loopback_http and _is_loopback_literal(host)):
        raise OriginError(OriginProblem.SCHEME)
    return Origin(scheme, host, _parse_port(parts["port"], scheme))


def same_origin(url: str, allowed: Container[Origin], *, allow_loopback_http: bool = False) -> bool:
    """Return whether the URL's origin is exactly one of those; False also for a URL that `parse_origin` refuses."""
    try:
        return parse_origin(url, allow_loopback_http=allow_loopback_http) in allowed
    except OriginError:
        return False


def _explain_mismatch(url: str) -> OriginProblem:
    # Only chooses the words for a URL that is refused already.
    if "#" in url:
        return OriginProblem.FRAGMENT
    parts = _AUTHORITY.match(url)
    if parts is None:
        return OriginProblem.SYNTAX
    if "@" in parts["authority"]:
        return OriginProblem.USER_INFO
    return OriginProblem.HOST if _URL.fullmatch(url[: parts.end()]) is None else OriginProblem.SYNTAX


def _parse_host(host: str) -> str:
    if host.startswith("["):
        return _parse_ipv6(host[1:-1])
    labels = host.split(".")
    if len(host) > MAX_HOST_LENGTH or any(_LABEL.fullmatch(label) is None for label in labels):
        raise OriginError(OriginProblem.HOST)
    if _NUMBER.fullmatch(labels[-1]):
        return _parse_ipv4(host)
    return host


def _parse_ipv4(host: str) -> str:
    try:
        return str(IPv4Address(host))  # strict: four decimal numbers without leading zeros
    except AddressValueError:
        raise OriginError(OriginProblem.HOST) from None


def _parse_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise OriginError(OriginProblem.HOST) from None
    # One address, one spelling; and an IPv4 address has its own form.
    if address.compressed != text or address.ipv4_mapped is not None:
        raise OriginError(OriginProblem.HOST)
    return text


def _is_loopback_literal(host: str) -> bool:
    try:
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return host == "::1"


def _parse_port(port: str | None, scheme: str) -> int:
    if port is None:
        return DEFAULT_PORTS[scheme]
    if _PORT.fullmatch(port) is None or int(port) > _MAX_PORT:
        raise OriginError(OriginProblem.PORT)
    return int(port)
