"""Logins and the refresh tokens that descend from them: single use, and one reuse ends the whole family.

This is the issuer as the hardest real ones are. Two programs that refresh the same login at once both lose it here,
and the ledger shows who came second, which is how a client that must never do so is proven.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from broker.emulator.accounts import Account, fingerprint
from broker.emulator.exchanges import Exchange, ExchangeLedger
from broker.emulator.mint import Mint
from broker.emulator.refusal import OAuthRefusal, RefreshRefusal
from broker.emulator.settings import TokenFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """What a login or a refresh hands out; `repr` shows no token.

    Attributes:
        account: Whom the tokens prove.
        family: The login they descend from.
        generation: How many rotations lie between the login and this refresh token.
        issue_time: When.
        expires_in: Whole seconds the access token is good from then on.
        access_token: Good at the rest of the backend.
        refresh_token: Renews the pair; None in an answer that leaves the old one in force.
        id_token: A JWT that names account and user; None in an answer that leaves the old one in force.
    """

    account: Account
    family: str
    generation: int
    issue_time: datetime
    expires_in: int
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    id_token: str | None = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """The OAuth answer, secrets included, without what it leaves out."""
        tokens = {"access_token": self.access_token, "refresh_token": self.refresh_token, "id_token": self.id_token}
        sent = {name: token for name, token in tokens.items() if token is not None}
        return {**sent, "token_type": "Bearer", "expires_in": self.expires_in}

    def auth_json(self) -> str:
        """The `auth.json` that Codex writes after this login, tokens included.

        Its fields are those of codex-rs/login/src/auth/storage.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b.
        """
        tokens = {
            "id_token": self.id_token,
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "account_id": self.account.account_id,
        }
        last_refresh = self.issue_time.isoformat().replace("+00:00", "Z")
        return json.dumps(
            {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": last_refresh}, indent=2
        )


@dataclass(slots=True, kw_only=True)
class Family:
    """One login and all that descends from it.

    Attributes:
        name: Its name in the ledger.
        account: Whom it proves.
        client_id: The only client that may refresh it; None for any.
        access_lifetime: Of each access token; None for what the settings say at the time.
        refresh_lifetime: The same for each refresh token.
        generation: Of the newest refresh token.
        newest: Fingerprint of the newest refresh token.
        ended_by: None while it lives, then `reuse` or `revocation`.
    """

    name: str
    account: Account
    client_id: str | None
    access_lifetime: timedelta | None
    refresh_lifetime: timedelta | None
    generation: int = 0
    newest: str = ""
    ended_by: str | None = None
    last_answer: TokenPair | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The family as the controls show it."""
        return {
            "family": self.name,
            "account_id": self.account.account_id,
            "client_id": self.client_id,
            "generation": self.generation,
            "newest_refresh_token": self.newest,
            "ended_by": self.ended_by,
        }


@dataclass(slots=True, kw_only=True)
class _RefreshToken:
    family: Family
    generation: int
    expire_time: datetime
    spend_time: datetime | None = None


@dataclass
class Families:
    """All logins. Refresh tokens are kept as fingerprints only, spent ones for ever."""

    mint: Mint
    exchanges: ExchangeLedger
    _families: dict[str, Family] = field(default_factory=dict)
    _tokens: dict[str, _RefreshToken] = field(default_factory=dict, repr=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __iter__(self) -> Iterator[Family]:
        """All families in the order of their logins."""
        return iter(self._families.values())

    def login(
        self,
        account: Account,
        *,
        now: datetime,
        access_lifetime: timedelta | None = None,
        refresh_lifetime: timedelta | None = None,
        client_id: str | None = None,
    ) -> TokenPair:
        """Begin a family and issue its first pair."""
        family = Family(
            name=f"family-{next(self._numbers)}",
            account=account,
            client_id=client_id,
            access_lifetime=access_lifetime,
            refresh_lifetime=refresh_lifetime,
        )
        self._families[family.name] = family
        pair = self._issue(family, now=now, refresh_token=self._next_token(family, now=now), id_token=True)
        self.exchanges.append(
            Exchange(
                grant="login",
                family=family.name,
                issued_access=fingerprint(pair.access_token),
                issued_refresh=family.newest,
                client_id=client_id,
                subject=account.chatgpt_user_id,
                account_id=account.account_id,
            ),
            now=now,
        )
        return pair

    def refresh(self, refresh_token: str, *, client_id: str, now: datetime, exchange: Exchange) -> TokenPair:
        """Spend a refresh token for the next pair of its family.

        Access tokens given out before stay good until they expire. The codes are those that
        codex-rs/login/src/auth/manager.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b tells apart.

        Args:
            refresh_token: What was presented.
            client_id: Who presents it.
            now: The time of it.
            exchange: Gets what is found out, also when this raises.

        Raises:
            RefreshRefusal: `refresh_token_reused` for one that was spent, `refresh_token_expired`, or
                `refresh_token_invalidated` for one of an ended family and for one never issued.
            OAuthRefusal: `refresh_token_of_other_client`; nothing is spent.
        """
        settings = self.mint.settings()
        exchange.presented = fingerprint(refresh_token)
        found = self._tokens.get(exchange.presented)
        if found is None:
            raise self._refusal("refresh_token_invalidated", "this refresh token is not valid")
        family = found.family
        _note(found, exchange)
        if family.client_id not in (None, client_id):
            raise OAuthRefusal(
                400,
                "refresh_token_of_other_client",
                "this refresh token was issued to another client",
                error="invalid_grant",
            )
        if found.spend_time is not None:
            exchange.reused = True
            if (pair := self._repeated(found, now=now)) is not None:
                exchange.outcome = "repeated"
                return pair
            if settings.family_revocation:
                self._end(family, by="reuse")
            raise self._refusal("refresh_token_reused", "this refresh token was already used")
        if family.ended_by is not None:
            raise self._refusal("refresh_token_invalidated", "this login has ended")
        if now >= found.expire_time:
            raise self._refusal("refresh_token_expired", "this refresh token has expired")
        successor = None
        if settings.rotate_refresh_tokens:
            found.spend_time = now
            family.generation += 1
            successor = self._next_token(family, now=now)
        # An opaque issuer is one for thousands of refreshes: it leaves the id token, a second signature, as it was.
        with_id_token = settings.token_format is TokenFormat.JWT
        pair = self._issue(family, now=now, refresh_token=successor, id_token=with_id_token)
        if successor is not None:
            family.last_answer = pair
        return pair

    def revoke(self, refresh_token: str, *, exchange: Exchange) -> bool:
        """End the family of a refresh token, spent or not; False when it is not one, or the family has ended."""
        found = self._tokens.get(fingerprint(refresh_token))
        if found is None:
            return False
        _note(found, exchange)
        return self._end(found.family, by="revocation")

    def end(self, name: str) -> bool:
        """End a family by its name, as a user who logs out elsewhere; False when there is none, or it has ended."""
        family = self._families.get(name)
        return family is not None and self._end(family, by="revocation")

    def _issue(self, family: Family, *, now: datetime, refresh_token: str | None, id_token: bool) -> TokenPair:
        lifetime = family.access_lifetime
        if lifetime is None:
            lifetime = self.mint.settings().access_token_lifetime
        account = family.account
        return TokenPair(
            account=account,
            family=family.name,
            generation=family.generation,
            issue_time=now,
            expires_in=int(lifetime.total_seconds()),
            access_token=self.mint.for_user(account, family=family.name, now=now, lifetime=lifetime),
            refresh_token=refresh_token,
            id_token=self.mint.issuer.access_token(account=account, now=now, lifetime=lifetime) if id_token else None,
        )

    def _next_token(self, family: Family, *, now: datetime) -> str:
        """Make the refresh token of the family's generation."""
        lifetime = family.refresh_lifetime
        if lifetime is None:
            lifetime = self.mint.settings().refresh_token_lifetime
        token = f"rt_{secrets.token_urlsafe(32)}"
        family.newest = fingerprint(token)
        self._tokens[family.newest] = _RefreshToken(
            family=family, generation=family.generation, expire_time=now + lifetime
        )
        return token

    def _repeated(self, spent: _RefreshToken, *, now: datetime) -> TokenPair | None:
        """The answer that a spent token once got, where the issuer is lenient and the next token is still unused."""
        family = spent.family
        if spent.spend_time is None or family.last_answer is None or family.ended_by is not None:
            return None
        age = now - spent.spend_time
        if age >= self.mint.settings().reuse_grace or spent.generation != family.generation - 1:
            return None
        pair = family.last_answer
        return replace(pair, expires_in=pair.expires_in - int(age.total_seconds()))

    def _end(self, family: Family, *, by: str) -> bool:
        if family.ended_by is not None:
            return False
        family.ended_by = by
        self.exchanges.families_revoked += 1
        if self.mint.settings().revocation_ends_access_tokens:
            self.mint.bearers.end_family(family.name)
        return True

    def _refusal(self, code: str, message: str) -> RefreshRefusal:
        return RefreshRefusal(code, message, style=self.mint.settings().refresh_error_style)


def _note(found: _RefreshToken, exchange: Exchange) -> None:
    """Write down whose refresh token was presented."""
    exchange.family, exchange.generation = found.family.name, found.generation
    exchange.subject, exchange.account_id = found.family.account.chatgpt_user_id, found.family.account.account_id
