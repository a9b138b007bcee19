"""
A login of an identity's own: its refresh token is sent by one holder at a time, and never again once it was processed.

The row in the store is what all processes share. A refresh is claimed there, marked as sent, sent once, and the new
pair is written by compare-and-set before it is used or shown to anybody. What happened to a refresh token whose answer
never came nobody knows: when the claim's lease is over it is sent once more, counted, and then given up. Whoever loses
a race takes the winner's pair and touches nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from broker.auth_json import UnverifiedTokenClaims, unverified_claims
from broker.bearer import Bearer, BearerSource
from broker.bearer.kept import KeptBearer, Windows
from broker.bearer.refresh_grant import Refreshed, RefreshFailure, RefreshGrant, Verdict
from broker.bearer.static import StaticSource
from broker.bearer.stored import bearer_context, open_bearer, open_refresh_token, refresh_token_context
from broker.bearer.turns import Turns
from broker.clock import Clock
from broker.errors import (
    BrokerError,
    GenerationChangedError,
    IssuerDownError,
    ReauthRequiredError,
    RowCorruptError,
    StoreDownError,
)
from broker.keyring import Keyring, SealContext
from broker.model import LONGEST_REFRESH_PAUSE_SECONDS, Identity, RefreshState, Secret, StoredBearer
from broker.store import Store
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

T = TypeVar("T")

_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 0.5
_FIRST_PAUSE: Final = 1.0
_MOST_TURNS: Final = 3
_NO_LOGIN: Final = "the identity has no login of its own any more"
_SETTLING_SECONDS: Final = 1.0
"""How long after its request could have ended another process is still given to write down what it learned."""


class Publish(Protocol):
    """Takes in rows as they were written or read, so that calls are answered from them."""

    def __call__(self, bearer: StoredBearer, identity: Identity | None = None) -> None:
        """Take in a bearer, and the identity where that was written with it."""
        ...


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose login it is; what an issuer answers must not be of somebody else."""

    account_id: str | None
    user_id: str | None


class _Landing(NamedTuple):
    """How an attempt ended: the row as it stands, and whether this process sent its refresh token."""

    row: StoredBearer
    was_sent: bool = False


@dataclass(eq=False)
class Issuer:
    """One configured source of type `oauth`. Durations in seconds."""

    name: str
    grant: RefreshGrant
    turns: Turns
    lease_seconds: float
    """How long a claim is held for one exchange; longer than `grant.timeout`."""
    patience: float
    """How long exchanges under way may take to end when the broker stops."""
    windows: Windows = field(default_factory=Windows)
    flights: set[asyncio.Task[Any]] = field(default_factory=set, repr=False)
    is_closed: bool = False

    async def close(self) -> None:
        """
        Begin nothing any more, let exchanges that are under way end in time, and let go of the connections.

        One that is cut off may have been processed: its refresh token is probed by whoever comes next.
        """
        self.is_closed = True
        if self.flights:
            await asyncio.wait(self.flights, timeout=self.patience)
        left = set(self.flights)
        for flight in left:
            flight.cancel()
        if left:
            await asyncio.wait(left)
        await self.grant.close()


class LoginExchange:
    """Obtains the next access token of one login."""

    def __init__(
        self,
        row: StoredBearer,
        owner: Owner,
        *,
        issuer: Issuer,
        store: Store,
        keyring: Keyring,
        clock: Clock,
        metrics: Metrics,
        publish: Publish,
        jitter: random.Random,
    ) -> None:
        self._row = row
        self.owner: Final = owner
        self._issuer = issuer
        self._store = store
        self._keyring = keyring
        self._clock = clock
        self._metrics = metrics
        self._publish = publish
        self._jitter = jitter
        self._flight: asyncio.Task[_Landing | BrokerError] | None = None
        self._patience_end = 0.0
        self._lost_claim: int | None = None
        self._failures = 0

    @property
    def row(self) -> StoredBearer:
        """The newest row that is known."""
        return self._row

    def take_in(self, row: StoredBearer) -> bool:
        """Learn of a row, whoever wrote it; say whether it holds other tokens than were known."""
        if row.version <= self._row.version:
            return False
        is_other_pair = not _is_same_pair(row, self._row)
        self._row = row
        return is_other_pair

    async def close(self) -> None:
        """Nothing is held: exchanges under way are the issuer's to end."""

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:
        """
        Return the access token of a newer pair than the one that is known, whoever obtained it.

        Raises:
            IssuerDownError: it cannot be had now.
            StoreDownError: nor can it while the store is away: nothing is sent, and what came is not used.
            ReauthRequiredError: the login is dead, or its sealed tokens do not open.
        """
        known = self._row
        for _ in range(_MOST_TURNS):
            row, was_sent = await self._attempt()
            row = await self._settled(row)
            if row.version > known.version and not _is_same_pair(row, known):
                bearer = open_bearer(self._keyring, row)
                if bearer is not None and bearer.is_live(self._clock.now()) and not _same_token(bearer, rejected):
                    return bearer
            self._require_hope(row)
            if was_sent:
                break
        raise IssuerDownError(
            note="what the issuer answered holds no usable access token", retry_after=LONGEST_REFRESH_PAUSE_SECONDS
        )

    # --- by another process -------------------------------------------------------------------------------------------

    async def _settled(self, row: StoredBearer) -> StoredBearer:
        """Wait while another process is sending the refresh token, for as long as its answer can still come."""
        poll = _FIRST_POLL
        while row.lease_expire_time is not None:
            now, lease_end = self._clock.now(), row.lease_expire_time
            answer_end = lease_end - self._issuer.lease_seconds + self._issuer.grant.timeout + _SETTLING_SECONDS
            if row.fencing_token == self._lost_claim or now >= min(answer_end, lease_end):
                raise IssuerDownError(
                    note="the answer to a refresh is lost; it is probed once its lease is over",
                    retry_after=max(_FIRST_PAUSE, lease_end - now),
                )
            await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)
            row = await self._read()
        return row

    async def _read(self) -> StoredBearer:
        row = await self._store.bearer(self._row.identity_id)
        if row is None:
            raise ReauthRequiredError(note=_NO_LOGIN)
        return self._learned(row)

    def _learned(self, row: StoredBearer, identity: Identity | None = None) -> StoredBearer:
        self._publish(row, identity)
        self.take_in(row)
        return row

    def _require_hope(self, row: StoredBearer) -> None:
        """Raise what keeps this row's refresh token from being sent."""
        if row.refresh_state is RefreshState.DEAD:
            raise ReauthRequiredError(note=f"the login is dead: {row.reason}")
        if row.sealed_refresh_token is None:
            raise ReauthRequiredError(note="the login has no refresh token")
        pause = row.pause(self._clock.now())
        if pause > 0:
            raise IssuerDownError(note="the issuer is given time", retry_after=pause)

    # --- by this process ----------------------------------------------------------------------------------------------

    async def _attempt(self) -> _Landing:
        """
        Claim the refresh, and send it if the claim is ours.

        It runs as a flight of its own, which ends on its own whoever waits for it: what an issuer answered is written
        down even when the store comes back long after everybody gave up.
        """
        flight = self._flight
        if self._issuer.is_closed:
            raise IssuerDownError(note="the broker is stopping")
        if flight is None or flight.done():
            flight = self._flight = asyncio.create_task(self._fly(), name="refresh-login")
            self._issuer.flights.add(flight)
            flight.add_done_callback(self._issuer.flights.discard)
            self._patience_end = self._clock.monotonic() + self._issuer.lease_seconds
        # One that outlives its lease waits for the store alone, which may take for ever: it is joined by nobody then.
        await asyncio.wait({flight}, timeout=max(0.0, self._patience_end - self._clock.monotonic()))
        if not flight.done():
            raise StoreDownError(note="what came of a refresh is not written down yet", retry_after=_FIRST_PAUSE)
        outcome = flight.result()
        if isinstance(outcome, BrokerError):
            raise outcome
        return outcome

    async def _fly(self) -> _Landing | BrokerError:
        row = self._row
        try:
            refresh_token = open_refresh_token(self._keyring, row)
            if refresh_token is None or row.refresh_state is RefreshState.DEAD:
                return _Landing(row, was_sent=False)
            claim = await self._store.claim_refresh(
                row.identity_id, pair=row.pair, now=self._clock.now(), lease_seconds=self._issuer.lease_seconds
            )
            held = self._learned(claim.bearer, claim.identity)
            if not claim.is_ours:
                return _Landing(held)
            if not _is_same_pair(held, row):
                # Another login has come in the place of this one, and its pair has the same number.
                refresh_token = open_refresh_token(self._keyring, held) or refresh_token
            return _Landing(await self._send(held, refresh_token), was_sent=True)
        except GenerationChangedError:
            return ReauthRequiredError(note=_NO_LOGIN)
        except RowCorruptError as error:
            return ReauthRequiredError(note=f"the login's sealed tokens do not open: {error.note}")
        except BrokerError as error:
            return error

    async def _send(self, held: StoredBearer, refresh_token: Secret) -> StoredBearer:
        try:
            # The store may have taken its time: when the lease is over another process may be sending it.
            left = (held.lease_expire_time or 0.0) - self._clock.now()
            answer = await self._issuer.grant.refresh(refresh_token, within=left)
            self._require_owners(answer)
            return await self._keep(held, answer, refresh_token)
        except RefreshFailure as failure:
            _LOG.warning(
                "login_not_refreshed",
                identity_id=held.identity_id,
                issuer=self._issuer.name,
                verdict=failure.verdict.name,
                word=failure.word,
                note=failure.note,
            )
            return await self._conclude(held, failure)

    def _require_owners(self, answer: Refreshed) -> None:
        """Refuse tokens that say to be of another account or user than the identity: nothing of them is kept."""
        for token in (answer.id_token, answer.access_token):
            claims = UnverifiedTokenClaims() if token is None else unverified_claims(token)
            for ours, theirs in (
                (self.owner.account_id, claims.unverified_account_id),
                (self.owner.user_id, claims.unverified_user_id),
            ):
                if None not in (ours, theirs) and ours != theirs:
                    note = "the issuer answered with tokens of another account or user"
                    raise RefreshFailure(Verdict.REFUSED, "account_mismatch", note=note)

    async def _keep(self, held: StoredBearer, answer: Refreshed, refresh_token: Secret) -> StoredBearer:
        """Write the new pair down; only then may it be used."""
        access_token, expire_time, obtain_time = answer.access_token, answer.expire_time, answer.send_time
        if access_token is None:
            old = open_bearer(self._keyring, held)
            if old is None:
                raise RefreshFailure(Verdict.ANSWER_LOST, "issuer_protocol", note="the answer has no access token")
            access_token, expire_time, obtain_time = old.token, old.expire_time, old.obtain_time or answer.send_time
        pair = held.pair + 1
        sealed = self._seal(access_token, bearer_context(held.identity_id, pair))
        sealed_refresh_token = self._seal(
            answer.refresh_token or refresh_token, refresh_token_context(held.identity_id, pair)
        )
        try:
            row = await self._surely(
                lambda: self._store.complete_refresh(
                    held,
                    sealed=sealed,
                    sealed_refresh_token=sealed_refresh_token,
                    expire_time=expire_time,
                    obtain_time=obtain_time,
                )
            )
        except asyncio.CancelledError:
            self._count_lost_pair(held)
            raise
        if row is None:
            self._count_lost_pair(held)
            return await self._read()
        self._failures = 0
        self._count_probe(held, "adopted")
        return self._learned(row)

    def _seal(self, token: Secret, context: SealContext) -> bytes:
        return self._keyring.seal(token.reveal().encode(), context=context)

    async def _conclude(self, held: StoredBearer, failure: RefreshFailure) -> StoredBearer:
        """
        Note in the row what a failure means for its refresh token.

        Raises:
            IssuerDownError: the token is not dead; when it may be sent again is said.
        """
        match failure.verdict:
            case Verdict.REFUSED:
                self._count_probe(held, "refused")
                refused = await self._surely(
                    lambda: self._store.refuse_refresh(held, reason=failure.word, now=self._clock.now())
                )
                # Whoever was quicker has brought another pair, which stays; ours to take it.
                return await self._read() if refused is None else self._learned(*refused)
            case Verdict.NOT_PROCESSED:
                self._count_probe(held, "released")
                self._failures += 1
                pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10), LONGEST_REFRESH_PAUSE_SECONDS)
                pause = max(pause * self._jitter.uniform(0.5, 1.0), failure.retry_after or 0.0)
                pause = min(pause, LONGEST_REFRESH_PAUSE_SECONDS)
                retry_time = self._clock.now() + pause
                row = await self._surely(lambda: self._store.release_refresh(held, retry_time=retry_time))
                if row is not None:
                    self._learned(row)
                raise IssuerDownError(note=failure.note, retry_after=pause)
            case Verdict.ANSWER_LOST:
                self._count_probe(held, "lost")
                self._lost_claim = held.fencing_token
                left = (held.lease_expire_time or 0.0) - self._clock.now()
                raise IssuerDownError(note=failure.note, retry_after=max(_FIRST_PAUSE, left))

    async def _surely(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, as often as it takes for the store to be there: by compare-and-set it is never too late to try."""
        poll = _FIRST_POLL
        while True:
            try:
                return await write()
            except StoreDownError:
                await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)

    def _count_probe(self, held: StoredBearer, outcome: str) -> None:
        if held.refresh_state is RefreshState.PROBING:
            self._metrics.count(self._metrics.refresh_probes, outcome)

    def _count_lost_pair(self, held: StoredBearer) -> None:
        self._metrics.count(self._metrics.lost_pairs)
        _LOG.error("refreshed_tokens_lost", identity_id=held.identity_id, issuer=self._issuer.name)


class LoginSource(KeptBearer):
    """The bearer of one login, kept fresh; other processes may do the same by the same row."""

    def __init__(
        self,
        login: LoginExchange,
        issuer: Issuer,
        *,
        clock: Clock,
        metrics: Metrics,
        jitter: random.Random,
        bearer: Bearer | None,
    ) -> None:
        super().__init__(
            login,
            name=issuer.name,
            turns=issuer.turns,
            clock=clock,
            metrics=metrics,
            jitter=jitter,
            windows=issuer.windows,
            bearer=bearer,
        )
        self._login = login
        self.issuer: Final = issuer
        self.owner: Final = login.owner

    def take_in(self, row: StoredBearer, bearer: Bearer | None) -> None:
        """Learn of a row, whoever wrote it, and of the access token in it."""
        if not self._login.take_in(row):
            return
        if bearer is None:
            self.forget()
        else:
            self.adopt(bearer)


class Logins:
    """Makes the sources of logins, one for each identity that has one of its own."""

    def __init__(
        self,
        issuers: Mapping[str, Issuer],
        *,
        store: Store,
        keyring: Keyring,
        clock: Clock,
        metrics: Metrics,
        jitter: random.Random,
    ) -> None:
        self._issuers = issuers
        self._store = store
        self._keyring = keyring
        self._clock = clock
        self._metrics = metrics
        self._jitter = jitter

    @property
    def issuers(self) -> Collection[str]:
        """The configured sources of type `oauth`, by name."""
        return self._issuers.keys()

    def source(
        self, identity: Identity, row: StoredBearer, known: BearerSource | None, publish: Publish
    ) -> BearerSource | None:
        """
        Return the source of a bearer of an identity's own.

        Args:
            identity: whose it is.
            row: what is stored of it.
            known: its source until now, which goes on where it is the same login.
            publish: told of each row that is written or read.

        Returns:
            None where nothing can be made of the row: it names no configured issuer and has no token either.

        Raises:
            RowCorruptError: its token does not open.
        """
        bearer = open_bearer(self._keyring, row)
        issuer = None if row.source is None else self._issuers.get(row.source)
        if issuer is None:
            if row.source is not None:
                _LOG.error("login_names_unknown_source", identity=identity.name, source=row.source)
            return None if bearer is None else StaticSource(bearer, self._clock)
        owner = Owner(identity.account_id, identity.user_id)
        if isinstance(known, LoginSource) and known.issuer is issuer and known.owner == owner:
            known.take_in(row, bearer)
            return known
        login = LoginExchange(
            row,
            owner,
            issuer=issuer,
            store=self._store,
            keyring=self._keyring,
            clock=self._clock,
            metrics=self._metrics,
            publish=publish,
            jitter=self._jitter,
        )
        return LoginSource(login, issuer, clock=self._clock, metrics=self._metrics, jitter=self._jitter, bearer=bearer)


def _is_same_pair(row: StoredBearer, other: StoredBearer) -> bool:
    """Say whether two rows hold the same tokens; a login that follows a removed one counts its pairs from one again."""
    return (row.pair, row.sealed, row.sealed_refresh_token) == (other.pair, other.sealed, other.sealed_refresh_token)


def _same_token(bearer: Bearer, other: Bearer | None) -> bool:
    return other is not None and bearer.token == other.token
