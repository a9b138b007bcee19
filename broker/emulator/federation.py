"""The two grants that exchange somebody else's token for one of this backend: jwt-bearer and token exchange.

jwt-bearer is Codex's workload identity (codex-rs/workload-identity/src/exchange.rs at
343074d4207d572809bd8cea15f4be1d09d98e0b), with its own parameters and its own answer; token exchange is RFC 8693.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from broker.emulator.accounts import Account, Bearers, fingerprint
from broker.emulator.clients import DEFAULT_SCOPES, Clients
from broker.emulator.exchanges import Exchange
from broker.emulator.mint import Mint
from broker.emulator.refusal import OAuthRefusal, Refusal
from broker.emulator.settings import EmulatorSettings
from broker.emulator.subjects import Subjects, SubjectTokenError
from broker.emulator.token_request import TokenRequest

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105  the name of a grant
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  the name of a kind of token
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  the name of a kind of token
# A client of the real endpoint refuses an answer that promises more.
_MAX_FEDERATED_LIFETIME = timedelta(hours=1)
_JWT_BEARER_REQUIRED = {"grant_type", "assertion", "federation_rule_id"}
_JWT_BEARER_OPTIONAL = {"workload_identity_context"}


@dataclass
class Federation:
    """Exchanges tokens of workloads."""

    mint: Mint
    bearers: Bearers
    subjects: Subjects
    clients: Clients
    settings: Callable[[], EmulatorSettings]

    def jwt_bearer(self, request: TokenRequest, *, now: datetime, exchange: Exchange) -> dict[str, Any]:
        """Answer Codex's workload identity exchange.

        Raises:
            OAuthRefusal: `invalid_request` for anything but exactly its form; as `invalid_grant`,
                `federation_rule_unknown` or a code of `SubjectTokenError`.
        """
        if not request.form or not _JWT_BEARER_REQUIRED <= request.names() <= (
            _JWT_BEARER_REQUIRED | _JWT_BEARER_OPTIONAL
        ):
            known = ", ".join(sorted(_JWT_BEARER_REQUIRED | _JWT_BEARER_OPTIONAL))
            raise OAuthRefusal(400, "invalid_request", f"this grant takes a form of {known}, and all but the last")
        assertion = request.require("assertion")
        exchange.presented = fingerprint(assertion)
        settings = self.settings()
        if request.get("federation_rule_id") != settings.federation_rule_id:
            raise OAuthRefusal(
                400, "federation_rule_unknown", "there is no such federation rule", error="invalid_grant"
            )
        exchange.subject, account = self._subject(assertion, now=now, error="invalid_grant")
        exchange.account_id = account.account_id
        lifetime = min(settings.access_token_lifetime, _MAX_FEDERATED_LIFETIME)
        token = self.mint.for_user(account, now=now, lifetime=lifetime)
        exchange.issued_access, exchange.scope = fingerprint(token), " ".join(DEFAULT_SCOPES)
        return {
            "access_token": token,
            "chatgpt_account_id": account.account_id,
            "chatgpt_account_user_id": f"{account.chatgpt_user_id}__{account.account_id}",
            "chatgpt_plan_type": account.plan_type,
            "expires_in": max(1, int(lifetime.total_seconds())),
            "issued_token_type": ACCESS_TOKEN_TYPE,
            "scope": exchange.scope,
            "token_type": "Bearer",
            "user_id": account.chatgpt_user_id,
        }

    def token_exchange(self, request: TokenRequest, *, now: datetime, exchange: Exchange) -> dict[str, Any]:
        """Answer a token exchange of RFC 8693; delegation (an actor token) is not offered.

        Raises:
            OAuthRefusal: `invalid_request`, `invalid_client`, `invalid_scope` or `invalid_target`; as
                `invalid_request`, which the RFC wants for a bad subject token, a code of `SubjectTokenError`.
        """
        exchange.client_id = self.clients.named(request)
        token_type = request.require("subject_token_type")
        subject_token = request.require("subject_token")
        exchange.presented = fingerprint(subject_token)
        if request.names() & {"actor_token", "actor_token_type"}:
            raise OAuthRefusal(400, "invalid_request", "actor tokens are not offered")
        if request.get("requested_token_type") not in (None, ACCESS_TOKEN_TYPE):
            raise OAuthRefusal(400, "invalid_request", "only access tokens are issued")
        audience = (*request.all("audience"), *(_target(uri) for uri in request.all("resource")))
        exchange.audience = " ".join(audience) or None
        if token_type == ACCESS_TOKEN_TYPE:
            exchange.subject, account = self._user(subject_token, now=now)
        elif token_type in (JWT_TYPE, ID_TOKEN_TYPE):
            exchange.subject, account = self._subject(subject_token, now=now, error="invalid_request")
        else:
            raise OAuthRefusal(400, "invalid_request", "this subject_token_type is not known")
        exchange.account_id = account.account_id
        exchange.scope = granted(request.get("scope"), offered=DEFAULT_SCOPES)
        lifetime = self.settings().access_token_lifetime
        token = self.mint.for_service(
            account, subject=exchange.subject, audience=audience, scope=exchange.scope, now=now, lifetime=lifetime
        )
        exchange.issued_access = fingerprint(token)
        return {
            "access_token": token,
            "issued_token_type": ACCESS_TOKEN_TYPE,
            "token_type": "Bearer",
            "expires_in": int(lifetime.total_seconds()),
            "scope": exchange.scope,
        }

    def _subject(self, token: str, *, now: datetime, error: str) -> tuple[str, Account]:
        try:
            return self.subjects.verify(token, audience=self.settings().subject_audience, now=now)
        except SubjectTokenError as problem:
            raise OAuthRefusal(400, problem.code, problem.message, error=error) from None

    def _user(self, token: str, *, now: datetime) -> tuple[str, Account]:
        """Whom an access token of this backend, presented as the subject, was issued to."""
        try:
            bearer = self.bearers.verify(token, now)
        except Refusal:
            raise OAuthRefusal(
                400, "subject_token_invalid", "the subject token is not accepted", error="invalid_request"
            ) from None
        return bearer.subject, bearer.account


def granted(scope: str | None, *, offered: tuple[str, ...]) -> str:
    """The scopes to grant: those asked for, or all that are offered.

    Raises:
        OAuthRefusal: `invalid_scope` when more is asked for than is offered.
    """
    if scope is None:
        return " ".join(offered)
    if not set(scope.split(" ")) <= set(offered):
        raise OAuthRefusal(400, "invalid_scope", f"the scopes here are {' '.join(offered)}")
    return scope


def _target(uri: str) -> str:
    """Check a `resource`: an absolute URI without a fragment (RFC 8693 section 2.1)."""
    parts = urlsplit(uri)
    if not parts.scheme or not (parts.netloc or parts.path) or "#" in uri:
        raise OAuthRefusal(400, "invalid_target", "resource must be an absolute URI without a fragment")
    return uri
