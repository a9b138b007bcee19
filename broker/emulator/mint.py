"""Access tokens: made in the format the settings ask for, and acceptable to the rest of the backend at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from broker.emulator.accounts import Account, Bearer, Bearers
from broker.emulator.issuer import Issuer
from broker.emulator.settings import EmulatorSettings, TokenFormat


@dataclass
class Mint:
    """Makes the access tokens of every grant.

    Attributes:
        issuer: Signs those that are JWTs.
        bearers: Where they become acceptable.
        settings: The settings in force.
    """

    issuer: Issuer
    bearers: Bearers
    settings: Callable[[], EmulatorSettings]

    def for_user(self, account: Account, *, family: str | None = None, now: datetime, lifetime: timedelta) -> str:
        """Make a token that stands for an account and its user; `family` is the login it descends from."""
        bearer = Bearer(
            account=account, expire_time=now + lifetime, family=family, subject=account.chatgpt_user_id or ""
        )
        return self._make(bearer, now=now)

    def for_service(
        self,
        account: Account,
        *,
        subject: str,
        audience: tuple[str, ...],
        scope: str,
        now: datetime,
        lifetime: timedelta,
    ) -> str:
        """Make a token as ordinary OAuth servers do: it says nothing of accounts.

        Whoever holds one was told no account, so a resource does not insist on the account header; a header that is
        sent must still be right.
        """
        claims: dict[str, Any] = {
            "sub": subject,
            "aud": list(audience) or None,
            "scope": scope or None,
            "email": None,
            "https://api.openai.com/auth": None,
            "https://api.openai.com/profile": None,
        }
        bearer = Bearer(account=account, expire_time=now + lifetime, subject=subject, account_header=False)
        return self._make(bearer, now=now, claims=claims)

    def _make(self, bearer: Bearer, *, now: datetime, claims: dict[str, Any] | None = None) -> str:
        if self.settings().token_format is TokenFormat.OPAQUE:
            token = f"access_{secrets.token_urlsafe(32)}"
        else:
            lifetime = bearer.expire_time - now
            token = self.issuer.access_token(account=bearer.account, now=now, lifetime=lifetime, claims=claims)
        self.bearers.add(token, bearer)
        return token
