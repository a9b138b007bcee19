"""Registered OAuth clients: who may ask for tokens in a name of its own, and with which secret."""

from __future__ import annotations

import enum
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Any

from broker.emulator.accounts import Account, fingerprint
from broker.emulator.refusal import OAuthRefusal
from broker.emulator.token_request import TokenRequest

DEFAULT_CLIENT_ID = "client-emulator"
DEFAULT_CLIENT_SECRET = "secret-emulator"  # noqa: S105  known to everybody, good for nothing but this emulator
DEFAULT_SCOPES = ("backend.read", "backend.write")


class ClientAuth(enum.StrEnum):
    """How a client may prove itself (RFC 6749 section 2.3.1)."""

    ANY = "any"
    BASIC = "client_secret_basic"
    POST = "client_secret_post"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One registered client; `repr` does not show its secret.

    Attributes:
        client_id: Its name.
        client_secret: Its proof.
        auth: How it may present the proof.
        scopes: What it may ask for; what it gets when it asks for nothing.
        audiences: The targets it may name; empty for any.
        account: Whom its tokens stand for, where that is known.
    """

    client_id: str
    client_secret: str = field(repr=False)
    auth: ClientAuth = ClientAuth.ANY
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    audiences: tuple[str, ...] = ()
    account: Account = field(default_factory=Account)

    def as_json(self) -> dict[str, Any]:
        """The client as the controls list it, without its secret."""
        return {
            "client_id": self.client_id,
            "client_secret_fingerprint": fingerprint(self.client_secret),
            "auth": self.auth,
            "scopes": list(self.scopes),
            "audiences": list(self.audiences),
            **self.account.as_json(),
        }


def _default_clients() -> dict[str, Client]:
    return {DEFAULT_CLIENT_ID: Client(client_id=DEFAULT_CLIENT_ID, client_secret=DEFAULT_CLIENT_SECRET)}


@dataclass
class Clients:
    """All registered clients; one is there from the start."""

    _clients: dict[str, Client] = field(default_factory=_default_clients)

    def register(
        self,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
        auth: ClientAuth = ClientAuth.ANY,
        scopes: tuple[str, ...] = DEFAULT_SCOPES,
        audiences: tuple[str, ...] = (),
        account: Account | None = None,
    ) -> Client:
        """Add a client, or replace the one of this name, whose old secret is then worth nothing.

        What is not named is made up: an id, a secret, an account nobody knows.
        """
        client = Client(
            client_id=client_id or f"client_{secrets.token_hex(6)}",
            client_secret=client_secret or f"secret_{secrets.token_urlsafe(24)}",
            auth=auth,
            scopes=scopes,
            audiences=audiences,
            account=account or Account(),
        )
        self._clients[client.client_id] = client
        return client

    def all(self) -> list[Client]:
        """Every client in the order of registration."""
        return list(self._clients.values())

    def named(self, request: TokenRequest) -> str | None:
        """Return the client a request names or proves, or None when it names none.

        A client that has a secret must prove it; a name without one is taken as a public client's.

        Raises:
            OAuthRefusal: as `authenticate`.
        """
        client_id = request.get("client_id")
        if request.authorization is None and request.get("client_secret") is None and client_id not in self._clients:
            return client_id
        return self.authenticate(request).client_id

    def authenticate(self, request: TokenRequest) -> Client:
        """Return the client that a request proves.

        Raises:
            OAuthRefusal: `invalid_request` (400) for two proofs in one request or a name that is not the proof's;
                `invalid_client` (401) for an unknown client, a wrong secret, or a way it may not use.
        """
        basic, secret = request.basic(), request.get("client_secret")
        client_id = request.get("client_id")
        if basic is not None:
            if secret is not None or client_id not in (None, basic[0]):
                raise OAuthRefusal(400, "invalid_request", "the client must prove itself once, under one name")
            client_id, secret = basic
        client = self._clients.get(client_id or "")
        proven = hmac.compare_digest((client.client_secret if client else "").encode(), (secret or "").encode())
        used = ClientAuth.POST if basic is None else ClientAuth.BASIC
        if client is None or not proven or client.auth not in (ClientAuth.ANY, used):
            raise OAuthRefusal(
                401,
                "invalid_client",
                "the client is unknown, its secret is wrong, or it may not present it this way",
                headers=(("www-authenticate", 'Basic realm="emulator"'),),
            )
        return client
