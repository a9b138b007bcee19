"""The refresh-token grant: every refresh rotates the pair, and an old refresh token is worth nothing.

The simple form of the issuer. A stricter one (reuse that revokes the whole family, ambiguous answers on purpose)
takes this class's place behind the same three methods.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from broker.emulator.accounts import Account, Bearers, fingerprint
from broker.emulator.issuer import Issuer
from broker.emulator.refusal import Refusal

ACCESS_TOKEN_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login or a refresh hands out; `repr` shows no token."""

    account: Account
    expires_in: int
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    id_token: str = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """The OAuth answer, secrets included."""
        return {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "id_token": self.id_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        }


@dataclass
class OAuthIssuer:
    """Hands out and rotates pairs of access and refresh token.

    Attributes:
        bearers: Where access tokens become acceptable to the rest of the backend.
    """

    issuer: Issuer
    bearers: Bearers
    _current: dict[str, tuple[Account, timedelta]] = field(default_factory=dict, repr=False)
    _spent: set[str] = field(default_factory=set, repr=False)

    def login(self, account: Account, *, now: datetime, lifetime: timedelta = ACCESS_TOKEN_LIFETIME) -> TokenPair:
        """Issue a first pair for an account; later refreshes give access tokens of the same lifetime."""
        access_token = self.issuer.access_token(account=account, now=now, lifetime=lifetime)
        id_token = self.issuer.access_token(account=account, now=now, lifetime=lifetime)
        refresh_token = f"rt_{secrets.token_urlsafe(32)}"
        self.bearers.add(access_token, account, now + lifetime)
        self._current[fingerprint(refresh_token)] = (account, lifetime)
        return TokenPair(account, int(lifetime.total_seconds()), access_token, refresh_token, id_token)

    def refresh(self, body: dict[str, Any], *, now: datetime) -> TokenPair:
        """Answer `POST /oauth/token` with `grant_type` = `refresh_token`.

        The access token given out before stays good until it expires; only the refresh token is spent. The codes
        are those codex-rs/login/src/auth/manager.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b distinguishes.

        Raises:
            Refusal: 400 `invalid_request` or `unsupported_grant_type`; 401 `refresh_token_reused` for a token
                that was rotated away, `refresh_token_invalidated` for one that was never current.
        """
        if body.get("grant_type") != "refresh_token":
            raise Refusal(400, "unsupported_grant_type", "only the refresh_token grant is offered")
        refresh_token, client_id = body.get("refresh_token"), body.get("client_id")
        if not (isinstance(refresh_token, str) and refresh_token and isinstance(client_id, str) and client_id):
            raise Refusal(400, "invalid_request", "client_id and refresh_token must be non-empty strings")
        name = fingerprint(refresh_token)
        if name in self._spent:
            raise Refusal(401, "refresh_token_reused", "this refresh token was already used")
        found = self._current.pop(name, None)
        if found is None:
            raise Refusal(401, "refresh_token_invalidated", "this refresh token is not valid")
        self._spent.add(name)
        account, lifetime = found
        return self.login(account, now=now, lifetime=lifetime)
