"""Who stands behind a credential: accounts, and the bearer tokens that prove them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker.emulator.refusal import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account and user a credential belongs to; a None is something the emulator does not know.

    Attributes:
        account_id: Compared with the `chatgpt-account-id` header.
        chatgpt_user_id: The user within the account.
        email: The user's address.
        plan_type: The raw plan name, for instance `business`.
        fedramp: Whether calls must carry `x-openai-fedramp: true`.
    """

    account_id: str | None = None
    chatgpt_user_id: str | None = None
    email: str | None = None
    plan_type: str = "business"
    fedramp: bool = False

    def as_json(self) -> dict[str, Any]:
        """The account as the controls show it."""
        return {
            "account_id": self.account_id,
            "chatgpt_user_id": self.chatgpt_user_id,
            "email": self.email,
            "plan_type": self.plan_type,
            "fedramp": self.fedramp,
        }


def fingerprint(secret: str) -> str:
    """Name a secret without revealing it: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """What an access token proves.

    Attributes:
        account: Whose it is.
        expire_time: From when on it is refused.
        subject: The user, client or workload it was issued to; empty where that is not known.
        family: The login it descends from; None when it comes from another grant.
        account_header: Whether its holder knows the account, so that calls must name it.
    """

    account: Account
    expire_time: datetime
    subject: str
    family: str | None = None
    account_header: bool = True


@dataclass
class Bearers:
    """The bearer tokens the backend accepts, kept as digests only."""

    _bearers: dict[bytes, Bearer] = field(default_factory=dict, repr=False)
    _ended_families: set[str] = field(default_factory=set)

    def add(self, token: str, bearer: Bearer) -> None:
        """Accept a token from now on."""
        self._bearers[_digest(token)] = bearer

    def verify(self, token: str, now: datetime) -> Bearer:
        """Return what a token proves.

        Raises:
            Refusal: `bearer_unknown`, `bearer_expired` or `bearer_revoked` (401).
        """
        bearer = self._bearers.get(_digest(token))
        if bearer is None:
            raise Refusal(401, "bearer_unknown", "this bearer was not issued here, or was revoked")
        if now >= bearer.expire_time:
            raise Refusal(401, "bearer_expired", "this bearer has expired")
        if bearer.family in self._ended_families:
            raise Refusal(401, "bearer_revoked", "the login of this bearer has ended")
        return bearer

    def end(self, token: str) -> bool:
        """Refuse one token from now on; False when it was not accepted anyway."""
        return self._bearers.pop(_digest(token), None) is not None

    def end_all(self) -> None:
        """Refuse every token that was accepted so far."""
        self._bearers.clear()

    def end_family(self, family: str) -> None:
        """Refuse every token of a login from now on."""
        self._ended_families.add(family)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
