"""What a client sends to the token endpoint: its parameters, from a form or from JSON, and who it says it is."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from broker.emulator.accounts import fingerprint
from broker.emulator.refusal import OAuthRefusal, Refusal
from broker.emulator.verify import parse_json_object

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
# RFC 8693 section 2.1 alone lets a parameter come more than once.
_REPEATABLE = ("audience", "resource")
_CREDENTIALS = {
    "refresh_token": "refresh_token",
    "assertion": "subject_token",
    "subject_token": "subject_token",
    "client_secret": "client_secret",
    "token": "revoked_token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """The parameters of one request; what was sent without a value counts as not sent (RFC 6749 section 3.2).

    Attributes:
        form: Whether it came as a form, the only way the RFCs know.
        authorization: The Authorization header.
    """

    parameters: dict[str, tuple[str, ...]] = field(repr=False)
    form: bool
    authorization: str | None = field(default=None, repr=False)

    def names(self) -> set[str]:
        """The parameters that were sent."""
        return set(self.parameters)

    def get(self, name: str) -> str | None:
        """The value of a parameter; None when it was not sent."""
        values = self.parameters.get(name)
        return values[0] if values else None

    def require(self, name: str) -> str:
        """The value of a parameter that must be there.

        Raises:
            OAuthRefusal: `invalid_request`.
        """
        value = self.get(name)
        if value is None:
            raise OAuthRefusal(400, "invalid_request", f"{name} is required")
        return value

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a parameter that may be repeated."""
        return self.parameters.get(name, ())

    def basic(self) -> tuple[str, str] | None:
        """The client id and secret of a Basic Authorization header, decoded as RFC 6749 section 2.3.1 demands.

        Raises:
            OAuthRefusal: `invalid_request` for a header that is something else.
        """
        if self.authorization is None:
            return None
        scheme, _, encoded = self.authorization.partition(" ")
        try:
            client_id, colon, secret = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
        except (binascii.Error, ValueError):
            colon = client_id = secret = ""
        if scheme.lower() != "basic" or not colon:
            raise OAuthRefusal(400, "invalid_request", "the Authorization header must be Basic with id and secret")
        return unquote_plus(client_id), unquote_plus(secret)


def parse(content_type: str | None, body: bytes, authorization: str | None) -> TokenRequest:
    """Read a request.

    Raises:
        Refusal: `content_type_invalid` (415) or `body_not_json` (400).
        OAuthRefusal: `invalid_request` for a parameter that came twice or is no text.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == FORM:
        return TokenRequest(parameters=_from_form(body), form=True, authorization=authorization)
    if media_type == JSON:
        values = parse_json_object(content_type, body)
        return TokenRequest(parameters=_from_json(values), form=False, authorization=authorization)
    raise Refusal(415, "content_type_invalid", "the content type must be a form's or application/json")


@dataclass(frozen=True, slots=True)
class Presented:
    """What a body nobody has checked yet seems to hold; for the ledger and for the matching of faults."""

    grant: str | None = None
    kind: str = "none"
    fingerprint: str | None = None


def peek(content_type: str | None, body: bytes, authorization: str | None) -> Presented:
    """Say which grant is asked for and with which credential, of a request that may be anything."""
    try:
        request = parse(content_type, body, None)
    except Refusal:
        return Presented()
    grant = request.get("grant_type")
    for name, kind in _CREDENTIALS.items():
        if (value := request.get(name)) is not None:
            return Presented(grant, kind, fingerprint(value))
    if authorization is not None:
        return Presented(grant, "client_secret", fingerprint(authorization.partition(" ")[2]))
    return Presented(grant)


def _from_form(body: bytes) -> dict[str, tuple[str, ...]]:
    try:
        pairs = parse_qsl(body.decode("ascii"), strict_parsing=True, errors="strict") if body else []
    except ValueError:
        raise OAuthRefusal(400, "invalid_request", "the body is not a form") from None
    parameters: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        if name in parameters and name not in _REPEATABLE:
            raise OAuthRefusal(400, "invalid_request", f"{name} was sent more than once")
        parameters[name] = (*parameters.get(name, ()), value)
    return parameters


def _from_json(values: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise OAuthRefusal(400, "invalid_request", f"{name} must be a string")
    return {name: (value,) for name, value in values.items() if value}
