"""The token endpoint and the revocation endpoint: which grant is asked for, who asks, and what was decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from broker.emulator.accounts import Bearers, fingerprint
from broker.emulator.clients import Clients
from broker.emulator.exchanges import Exchange, ExchangeLedger
from broker.emulator.families import Families
from broker.emulator.federation import JWT_BEARER, TOKEN_EXCHANGE, Federation, granted
from broker.emulator.issuer import Issuer
from broker.emulator.mint import Mint
from broker.emulator.refusal import OAuthRefusal, Refusal
from broker.emulator.settings import EmulatorSettings
from broker.emulator.subjects import Subjects
from broker.emulator.token_request import TokenRequest, parse

REFRESH_TOKEN = "refresh_token"  # noqa: S105  the name of a grant
CLIENT_CREDENTIALS = "client_credentials"
REVOCATION = "revocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body of one request and the headers that say how to read it and who sent it."""

    content_type: str | None
    content: bytes
    authorization: str | None


class AuthorizationServer:
    """The issuer of one emulated backend.

    Attributes:
        exchanges: Everything it decided.
        families: The logins and their refresh tokens.
        clients: Who may ask in a name of its own.
        subjects: The workloads whose tokens it exchanges.
    """

    def __init__(self, issuer: Issuer, bearers: Bearers, settings: Callable[[], EmulatorSettings]) -> None:
        """Build an issuer without logins.

        Args:
            issuer: Signs.
            bearers: Where access tokens become acceptable to the rest of the backend.
            settings: The settings in force at the time of the call.
        """
        mint = Mint(issuer, bearers, settings)
        self.exchanges = ExchangeLedger()
        self.families = Families(mint, self.exchanges)
        self.clients = Clients()
        self.subjects = Subjects()
        self._mint = mint
        self._bearers = bearers
        self._federation = Federation(mint, bearers, self.subjects, self.clients, settings)
        self._settings = settings
        self._grants: dict[str, Callable[..., dict[str, Any]]] = {
            REFRESH_TOKEN: self._refresh,
            CLIENT_CREDENTIALS: self._client_credentials,
            JWT_BEARER: self._federation.jwt_bearer,
            TOKEN_EXCHANGE: self._federation.token_exchange,
        }

    def token(self, body: Body, *, now: datetime) -> tuple[dict[str, Any], Exchange]:
        """Answer `POST /oauth/token`, secrets included, and say what was recorded about it.

        Raises:
            Refusal: in the form that the grant's refusals have; recorded as well.
        """
        exchange = Exchange()
        try:
            request = parse(body.content_type, body.content, body.authorization)
            grant = self._grants.get(request.require("grant_type"))
            if grant is None:
                raise OAuthRefusal(400, "unsupported_grant_type", f"the grants are {', '.join(self._grants)}")
            exchange.grant = request.require("grant_type")
            # Codex refreshes with JSON; every other grant is as its RFC has it.
            if not request.form and exchange.grant != REFRESH_TOKEN:
                raise OAuthRefusal(400, "invalid_request", "this grant takes a form")
            return grant(request, now=now, exchange=exchange), exchange
        except Refusal as refusal:
            exchange.outcome = refusal.code
            raise
        finally:
            self.exchanges.append(exchange, now=now)

    def revoke(self, body: Body, *, now: datetime) -> None:
        """Answer `POST /oauth/revoke`: end the family of a refresh token, or one access token.

        A token that is unknown or already dead is no error (RFC 7009 section 2.2). `token_type_hint` may be wrong
        and is not needed.

        Raises:
            Refusal: The body cannot be read, `token` is missing, or the client's proof is wrong.
        """
        exchange = Exchange(grant=REVOCATION)
        try:
            request = parse(body.content_type, body.content, body.authorization)
            exchange.client_id = self.clients.named(request)
            token = request.require("token")
            exchange.presented = fingerprint(token)
            ended = self.families.revoke(token, exchange=exchange) or self._bearers.end(token)
            exchange.outcome = "revoked" if ended else "ignored"
        except Refusal as refusal:
            exchange.outcome = refusal.code
            raise
        finally:
            self.exchanges.append(exchange, now=now)

    def _refresh(self, request: TokenRequest, *, now: datetime, exchange: Exchange) -> dict[str, Any]:
        client_id = self.clients.named(request)
        if client_id is None:
            raise OAuthRefusal(400, "invalid_request", "client_id is required")
        exchange.client_id = client_id
        refresh_token = request.require("refresh_token")
        pair = self.families.refresh(refresh_token, client_id=client_id, now=now, exchange=exchange)
        exchange.issued_access = fingerprint(pair.access_token)
        if pair.refresh_token is not None:
            exchange.issued_refresh = fingerprint(pair.refresh_token)
        return pair.as_json()

    def _client_credentials(self, request: TokenRequest, *, now: datetime, exchange: Exchange) -> dict[str, Any]:
        client = self.clients.authenticate(request)
        exchange.client_id = exchange.subject = client.client_id
        exchange.account_id = client.account.account_id
        exchange.scope = granted(request.get("scope"), offered=client.scopes)
        audience = request.all("audience")
        exchange.audience = " ".join(audience) or None
        if client.audiences and not set(audience) <= set(client.audiences):
            raise OAuthRefusal(400, "invalid_target", "this client may not ask for that audience")
        lifetime = self._settings().access_token_lifetime
        token = self._mint.for_service(
            client.account,
            subject=client.client_id,
            audience=audience,
            scope=exchange.scope,
            now=now,
            lifetime=lifetime,
        )
        exchange.issued_access = fingerprint(token)
        answer = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": int(lifetime.total_seconds()),
            "scope": exchange.scope,
        }
        return answer | ({"audience": exchange.audience} if exchange.audience else {})
