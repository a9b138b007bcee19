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


@dataclass
class Bearers:
    """The bearer tokens the backend accepts, kept as digests only."""

    _accounts: dict[bytes, tuple[Account, datetime]] = field(default_factory=dict, repr=False)

    def add(self, token: str, account: Account, expire_time: datetime) -> None:
        """Accept `token` for `account` until `expire_time`."""
        self._accounts[_digest(token)] = (account, expire_time)

    def verify(self, token: str, now: datetime) -> Account:
        """Return the account a token proves.

        Raises:
            Refusal: `bearer_unknown` or `bearer_expired` (401).
        """
        found = self._accounts.get(_digest(token))
        if found is None:
            raise Refusal(401, "bearer_unknown", "this bearer was not issued here")
        account, expire_time = found
        if now >= expire_time:
            raise Refusal(401, "bearer_expired", "this bearer has expired")
        return account


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
