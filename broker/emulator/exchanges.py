"""The ledger of the token endpoint: who got which token for what, without a single secret value."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

EXCHANGES_CAPACITY = 500_000


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request that the token endpoint decided, whether or not its answer arrived.

    It is filled while the request is decided, and stands still once it is in the ledger.

    Attributes:
        seq: Its place in the ledger, from 1.
        time: On the backend's own clock, RFC 3339.
        grant: The `grant_type` as sent, where it is one the endpoint knows; `revocation` for a call of the
            revocation endpoint; `login` for tokens that a control or a test had issued; else `unknown`.
        outcome: `issued`; `repeated` (the answer of a moment ago, given again); `revoked` or `ignored` (a
            revocation of something that is no live token); else the precise code of the refusal.
        family: The login that a refresh token descends from, for instance `family-1`.
        generation: How many rotations after the login the presented refresh token was issued; 0 is the login's own.
        reused: Whether a refresh token was presented that had been spent before.
        presented: Fingerprint of the refresh token, subject token or revoked token that was sent.
        issued_access: Fingerprint of the access token handed out.
        issued_refresh: Fingerprint of the refresh token handed out; None where the old one stays.
        client_id: The client that asked, as far as it proved or named itself.
        subject: Whom the tokens are for: the user, the client, or the subject of the presented token.
        account_id: The account they stand for, where it is known.
        audience: The audiences asked for, separated by spaces.
        scope: The scopes granted, separated by spaces.
    """

    seq: int = 0
    time: str = ""
    grant: str = "unknown"
    outcome: str = "issued"
    family: str | None = None
    generation: int | None = None
    reused: bool = False
    presented: str | None = None
    issued_access: str | None = None
    issued_refresh: str | None = None
    client_id: str | None = None
    subject: str | None = None
    account_id: str | None = None
    audience: str | None = None
    scope: str | None = None


@dataclass
class ExchangeLedger:
    """Every exchange in the order in which the issuer decided them; nothing in it changes or is removed on demand.

    The totals are counted as it grows, so that they are exact and cheap to read however long it is. Beyond
    `capacity` the oldest entries (never the totals) are forgotten, and `dropped` says how many.

    Attributes:
        double_uses: How often a refresh token was presented that had been spent before.
        families_revoked: How many logins are dead, by a reuse or by a revocation.
    """

    capacity: int = EXCHANGES_CAPACITY
    dropped: int = 0
    double_uses: int = 0
    families_revoked: int = 0
    _last_seq: int = 0
    _entries: deque[Exchange] = field(default_factory=deque, repr=False)
    _totals: Counter[tuple[str, str]] = field(default_factory=Counter)

    def append(self, exchange: Exchange, *, now: datetime) -> None:
        """Write down what was decided; costs the same however much there is already."""
        self._last_seq += 1
        exchange.seq, exchange.time = self._last_seq, now.isoformat()
        self._entries.append(exchange)
        self._totals[exchange.grant, exchange.outcome] += 1
        self.double_uses += exchange.reused
        if len(self._entries) > self.capacity:
            self._entries.popleft()
            self.dropped += 1

    def count(self, grant: str, outcome: str | None = None) -> int:
        """How many exchanges of a grant there ever were, with one outcome or with any."""
        return sum(number for (kind, end), number in self._totals.items() if kind == grant and outcome in (None, end))

    def entries(self, *, since: int = 0, grant: str | None = None, family: str | None = None) -> Iterator[Exchange]:
        """The kept exchanges in order.

        Args:
            since: Only those with a greater `seq`.
            grant: Only this grant.
            family: Only this login.
        """
        for exchange in islice(self._entries, max(0, since - self.dropped), None):
            if grant in (None, exchange.grant) and family in (None, exchange.family):
                yield exchange

    def as_json(self, *, since: int = 0, grant: str | None = None, family: str | None = None) -> dict[str, Any]:
        """The totals of everything ever recorded, by grant and outcome, and the selected exchanges."""
        selected = [asdict(exchange) for exchange in self.entries(since=since, grant=grant, family=family)]
        totals: dict[str, dict[str, int]] = {}
        for (kind, outcome), number in self._totals.items():
            totals.setdefault(kind, {})[outcome] = number
        return {
            "last_seq": self._last_seq,
            "dropped": self.dropped,
            "double_uses": self.double_uses,
            "families_revoked": self.families_revoked,
            "totals": totals,
            "count": len(selected),
            "exchanges": selected,
        }
