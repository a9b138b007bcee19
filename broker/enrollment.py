"""
How identities come, change and go: create, import, update, disable, enable, delete.

Creating an agent: key made → intent stored (REGISTERING, with the sealed key) → key registered at the backend
(`broker.agents`) → ACTIVE. A create that was cut off goes on with the same key, by itself and when its `request_id`
comes again.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from broker import errors
from broker.agents import AgentRegistrar
from broker.backends import Backend
from broker.bearer import BearerSource
from broker.clock import Clock
from broker.imports import Imported, ImportReader, ImportSource, agreed
from broker.keyring import Keyring
from broker.keys import SigningKey, derive_seed
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    Secret,
    StoredBearer,
)
from broker.own_bearers import FileLogin, OwnBearer, OwnBearers, OwnLogin
from broker.profiles import AgentAuth, upstream_key
from broker.registration import Registrar, live_bearer
from broker.request_names import RequestNames
from broker.snapshots import (
    IdentityView,
    Snapshots,
    open_private_key,
    seal_private_key,
    task_id_context,
)
from broker.store import Claimed, CreateRequest, KeepBearer, Store, TaskClaim
from broker.telemetry import logger

_LOG: Final = logger(__name__)


@dataclass(frozen=True, slots=True)
class NamedSource:
    """A bearer source of the configuration."""

    name: str


_REASONS: Final = {
    IdentityState.REGISTERING: errors.RegistrationInProgressError.reason,
    IdentityState.REJECTED: errors.IdentityRejectedError.reason,
    IdentityState.REAUTH_REQUIRED: errors.ReauthRequiredError.reason,
}
"""What a state that outlives being disabled says of itself."""

BearerChoice = OwnBearer | OwnLogin | FileLogin | NamedSource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOrder:
    """An identity to be made; the fields are those of `CreateIdentityRequest`, checked in form."""

    request_id: str
    name: IdentityName
    backend: str
    mode: Mode
    account_id: str | None = None
    user_id: str | None = None
    fedramp: bool = False
    bearer: BearerChoice = None
    assertions_enabled: bool = True
    expire_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """An identity to be taken over; the fields are those of `ImportIdentityRequest`, checked in form."""

    request_id: str
    name: IdentityName
    backend: str
    mode: Mode
    source: ImportSource
    bearer: BearerChoice = None
    expected_account_id: str | None = None
    expected_user_id: str | None = None
    assertions_enabled: bool = True
    expire_time: float | None = None


class Enroller:
    """Makes, changes and ends identities."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registrar: Registrar,
        agents: AgentRegistrar,
        imports: ImportReader,
        keyring: Keyring,
        backends: Mapping[str, Backend],
        bearer_sources: Mapping[str, BearerSource],
        own_bearers: OwnBearers,
        clock: Clock,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._agents = agents
        self._keyring = keyring
        self._backends = backends
        self._bearer_sources = bearer_sources
        self._own_bearers = own_bearers
        self._clock = clock
        self._token_bytes = token_bytes
        self._requests = RequestNames(keyring, clock)
        self._imports = imports
        self._writes: set[asyncio.Task[Identity]] = set()

    async def close(self) -> None:
        """Let what was begun to be written come to its end."""
        if self._writes:
            await asyncio.wait(set(self._writes))

    # --- create -------------------------------------------------------------------------------------------------------

    async def create(self, order: CreateOrder, *, wait_until: float) -> Identity:
        """
        Make an identity; in mode AGENT with a new key that is registered at the backend.

        Args:
            order: what to make.
            wait_until: monotonic time until which the registration is waited for; it goes on afterwards.

        Raises:
            RequestIdReusedError: the request id was used for something else.
            IdentityExistsError: the name is taken.
            FieldInvalidError: the order names something that does not exist or does not fit.
            RegistrationInProgressError: not done by then; the identity is kept and the broker goes on.
            ReauthRequiredError: the issuer of its login refused the refresh token; the identity is kept.
            IssuerDownError: that issuer did not answer; the identity is kept, and its login refreshed on its first use.
            BrokerError: the registration's outcome.
        """
        backend = self._backend(order.backend)
        request = self._requests.of(order.request_id, order)
        identity = await self._store.remembered_identity(request)
        if identity is None:
            identity = await self._begin(order, backend, request)
        view = await self._publish(identity)
        if view.identity.state is IdentityState.REGISTERING:
            view = await self._agents.finish(view, wait_until=wait_until)
        elif isinstance(order.bearer, OwnLogin):
            view = await self._with_bearer(view, wait_until)
        return view.identity

    async def _with_bearer(self, view: IdentityView, wait_until: float) -> IdentityView:
        """Have a login that came without a live access token refreshed; it goes on when there is no time to wait."""
        timeout = max(0.0, wait_until - self._clock.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await live_bearer(view, self._clock)
        return self._snapshots.view(view.identity.id) or view

    async def _begin(self, order: CreateOrder, backend: Backend, request: CreateRequest) -> Identity:
        self._require_fit(order.mode, backend, order.bearer)
        account_id, user_id = await self._account_of(order)
        now = self._clock.now()
        identity_id = IdentityId(uuid.UUID(bytes=self._token_bytes(16), version=4).hex)
        key = SigningKey.from_seed(derive_seed(self._token_bytes(64))) if order.mode is Mode.AGENT else None
        identity = Identity(
            id=identity_id,
            name=order.name,
            backend=backend.name,
            mode=order.mode,
            origin=Origin.CREATED if key else Origin.BEARER_ONLY,
            state=IdentityState.REGISTERING if key else IdentityState.ACTIVE,
            state_reason=errors.RegistrationInProgressError.reason if key else "",
            account_id=account_id,
            user_id=user_id,
            fedramp=order.fedramp,
            assertions_enabled=order.assertions_enabled,
            bearer_source=order.bearer.name if isinstance(order.bearer, NamedSource) else None,
            public_key=key.ssh_public_key if key else None,
            sealed_private_key=seal_private_key(self._keyring, key, identity_id, 1) if key else None,
            create_time=now,
            update_time=now,
            expire_time=order.expire_time,
        )
        return await self._store.create_identity(identity, request, bearer=self._seal_bearer(identity_id, order.bearer))

    def _require_fit(self, mode: Mode, backend: Backend, bearer: BearerChoice) -> None:
        if isinstance(bearer, NamedSource) and bearer.name not in self._bearer_sources:
            known = ", ".join(self._bearer_sources) or "none"
            is_login = self._own_bearers.has_issuer(bearer.name)
            problem = "is of type oauth, which takes a login: oauth_bearer" if is_login else "is not configured"
            raise errors.FieldInvalidError(violations={"bearer_source": f"{problem}; configured: {known}"})
        if isinstance(bearer, FileLogin):
            raise errors.FieldInvalidError(violations={"oauth_bearer.refresh_token": "is required"})
        if isinstance(bearer, OwnLogin):
            self._own_bearers.issuer(bearer.source)
        if mode is Mode.BEARER and not self._brings_bearer(bearer):
            raise errors.FieldInvalidError(violations={"bearer": "is needed for mode BEARER: a source or a token"})
        if mode is Mode.AGENT and backend.profile.agent_auth is AgentAuth.NONE:
            raise errors.BackendUnsupportedError(
                metadata={"hint": "this backend's profile registers no agents; import an Agent Identity JWT instead"}
            )
        if mode is Mode.AGENT and not self._brings_bearer(bearer):
            raise errors.BearerUnavailableError(
                metadata={"hint": "registering an agent needs a bearer: give bearer_source or static_bearer"}
            )

    def _brings_bearer(self, choice: BearerChoice) -> bool:
        if isinstance(choice, NamedSource):
            return not self._bearer_sources[choice.name].is_empty
        return choice is not None

    async def _account_of(self, order: CreateOrder) -> tuple[str | None, str | None]:
        """Return account and user: what the order says, which the bearer must not contradict, else what that says."""
        bearer: BearerChoice = order.bearer
        if isinstance(bearer, NamedSource):
            source = self._bearer_sources[bearer.name]
            current = None if source.is_empty else source.current() or await source.refresh()
            bearer = None if current is None else OwnBearer(current.token)
        if not isinstance(bearer, OwnBearer | OwnLogin):
            return order.account_id, order.user_id
        owners = self._own_bearers.owners(bearer)
        return (
            agreed("account_id", order.account_id, owners.account_id),
            agreed("user_id", order.user_id, owners.user_id),
        )

    # --- import -------------------------------------------------------------------------------------------------------

    async def take_over(self, order: ImportOrder) -> Identity:
        """
        Import an identity that exists elsewhere.

        Raises:
            RequestIdReusedError: the request id was used for something else.
            IdentityExistsError: the name is taken.
            ImportInvalidError: what was given cannot be used; the violations say why.
            AccountMismatchError: it is of another account or user than expected.
            ReauthRequiredError: it has expired.
            BrokerError: the keys to verify a JWT with could not be had.
        """
        backend = self._backend(order.backend)
        request = self._requests.of(order.request_id, order)
        identity = await self._store.remembered_identity(request)
        if identity is None:
            issuer = order.bearer.source if isinstance(order.bearer, FileLogin) else None
            found = await self._imports.read(order.source, backend.name, issuer=issuer)
            identity = await self._keep(order, backend, request, found)
            if identity.mode is Mode.AGENT and found.task_id is not None:
                await self._adopt_task(identity, backend, found)
        return (await self._publish(identity)).identity

    async def _keep(self, order: ImportOrder, backend: Backend, request: CreateRequest, found: Imported) -> Identity:
        if order.mode is Mode.AGENT and found.key is None:
            raise errors.ImportInvalidError(
                violations={"source": "holds no agent key; import it in mode BEARER, or create one with its login"}
            )
        found, bearer = self._with_own_bearer(order, found)
        if order.mode is Mode.BEARER and bearer is None:
            raise errors.ImportInvalidError(violations={"source": "holds no bearer; import it in mode AGENT"})
        if isinstance(bearer, NamedSource) and bearer.name not in self._bearer_sources:
            raise errors.FieldInvalidError(violations={"bearer_source": "is not configured"})
        if order.mode is Mode.BEARER and not self._brings_bearer(bearer):
            raise errors.FieldInvalidError(violations={"bearer_source": "never has a bearer, which mode BEARER needs"})
        agreed("expected_account_id", order.expected_account_id, found.account_id, unknown_matches=False)
        agreed("expected_user_id", order.expected_user_id, found.user_id, unknown_matches=False)
        now = self._clock.now()
        identity_id = IdentityId(uuid.UUID(bytes=self._token_bytes(16), version=4).hex)
        key = found.key if order.mode is Mode.AGENT else None
        identity = Identity(
            id=identity_id,
            name=order.name,
            backend=backend.name,
            mode=order.mode,
            origin=found.origin if key else Origin.BEARER_ONLY,
            state=IdentityState.ACTIVE,
            account_id=found.account_id,
            user_id=found.user_id,
            email=found.email,
            plan_type=found.plan_type,
            fedramp=found.fedramp,
            assertions_enabled=order.assertions_enabled,
            bearer_source=bearer.name if isinstance(bearer, NamedSource) else None,
            agent_runtime_id=found.agent_runtime_id if key else None,
            public_key=key.ssh_public_key if key else None,
            sealed_private_key=seal_private_key(self._keyring, key, identity_id, 1) if key else None,
            create_time=now,
            update_time=now,
            expire_time=_earlier(order.expire_time, found.expire_time),
        )
        return await self._store.create_identity(identity, request, bearer=self._seal_bearer(identity_id, bearer))

    def _with_own_bearer(self, order: ImportOrder, found: Imported) -> tuple[Imported, BearerChoice]:
        """
        Return what was found, and the bearer that the identity gets: the order's, else the one that was found.

        Raises:
            FieldInvalidError: the order names no issuer of logins, or gives it no refresh token.
            ImportInvalidError: the file has no login to be refreshed.
            AccountMismatchError: the order's login is of another account or user than what was found.
        """
        bearer = order.bearer
        if isinstance(bearer, FileLogin):
            self._own_bearers.issuer(bearer.source)
            if isinstance(found.bearer, OwnLogin):
                return found, found.bearer
            if not isinstance(order.source, Secret):
                raise errors.FieldInvalidError(violations={"oauth_bearer.refresh_token": "is required"})
            raise errors.ImportInvalidError(
                violations={"tokens.refresh_token": "is missing; give it in oauth_bearer, or log in again with Codex"}
            )
        if isinstance(bearer, OwnLogin):
            self._own_bearers.issuer(bearer.source)
            owners = self._own_bearers.owners(bearer)
            found = replace(
                found,
                account_id=agreed("account_id", found.account_id, owners.account_id),
                user_id=agreed("user_id", found.user_id, owners.user_id),
            )
        return found, bearer or found.bearer

    async def _adopt_task(self, identity: Identity, backend: Backend, found: Imported) -> None:
        """Take over the task that an imported record holds, so that the backend need not register another."""
        key = upstream_key(backend.profile.task_layout, found.task_kind, None)
        outcome = await self._store.claim_task(
            TaskClaim(
                identity_id=identity.id,
                generation=identity.generation,
                kind=found.task_kind,
                thread_id=None,
                upstream_key=key,
                now=self._clock.now(),
                lease_seconds=1.0,
            )
        )
        if isinstance(outcome, Claimed) and outcome.task.upstream is not None and found.task_id is not None:
            upstream = outcome.task.upstream
            await self._store.complete_claim(
                upstream,
                sealed_task_id=self._keyring.seal(found.task_id.encode(), context=task_id_context(upstream)),
                now=self._clock.now(),
                expire_time=None,
            )

    # --- changes by operators -----------------------------------------------------------------------------------------

    async def update(
        self, identity: Identity, *, bearer_source: str | None, assertions_enabled: bool, expire_time: float | None
    ) -> Identity:
        """
        Write an identity's changeable settings.

        Raises:
            GenerationChangedError: it changed meanwhile.
            FieldInvalidError: the bearer source does not exist.
        """
        if bearer_source is not None and bearer_source not in self._bearer_sources:
            raise errors.FieldInvalidError(violations={"bearer_source": "is not configured"})
        # A bearer of its own is of no use beside a named source, and a secret to be rid of.
        bearer = KeepBearer.KEEP if bearer_source is None else None
        changed = replace(
            identity,
            bearer_source=bearer_source,
            assertions_enabled=assertions_enabled,
            expire_time=expire_time,
            update_time=self._clock.now(),
        )
        return await self._write(changed, bearer=bearer)

    async def disable(self, identity: Identity) -> Identity:
        """Stop an identity; its generation is bumped, so that nothing made before is valid after enabling."""
        if identity.state is IdentityState.DISABLED:
            # Another process may have done it: what is acknowledged here holds here at once.
            return self._snapshots.publish_identity(identity).identity
        disabled = replace(
            identity,
            state=IdentityState.DISABLED,
            state_reason=errors.IdentityRevokedError.reason,
            former_state=identity.state,
        )
        return await self._write(self._next_generation(disabled))

    async def enable(self, identity: Identity) -> Identity:
        """Let a disabled identity be again what it was: in use, being registered, rejected, or without a login."""
        if identity.state is not IdentityState.DISABLED:
            return self._snapshots.publish_identity(identity).identity
        state = identity.former_state or IdentityState.ACTIVE
        if identity.mode is Mode.AGENT and identity.agent_runtime_id is None:
            state = IdentityState.REGISTERING
        elif state not in _REASONS:
            state = IdentityState.ACTIVE  # a change of key that was under way came to nothing
        return await self._write(
            replace(
                identity,
                state=state,
                state_reason=_REASONS.get(state, ""),
                former_state=None,
                update_time=self._clock.now(),
            )
        )

    async def delete(self, identity: Identity) -> Identity:
        """Erase an identity's secrets and keep a record of it; the name becomes free."""
        if identity.state is IdentityState.DELETED:
            return self._snapshots.publish_identity(identity).identity
        return await self._write(
            replace(
                identity,
                state=IdentityState.DELETED,
                state_reason=errors.IdentityRevokedError.reason,
                sealed_private_key=None,
                former_state=None,
                bearer_source=None,
                generation=identity.generation + 1,
                update_time=self._clock.now(),
            )
        )

    def _next_generation(self, identity: Identity) -> Identity:
        """Bump the generation and seal the key to it; a key that does not open stays as it is, unusable."""
        sealed = identity.sealed_private_key
        generation = identity.generation + 1
        if sealed is not None:
            try:
                key = open_private_key(self._keyring, identity)
                sealed = seal_private_key(self._keyring, key, identity.id, generation)
            except errors.RowCorruptError as error:
                _LOG.error("identity_key_unusable", identity=identity.name, note=error.note)
        return replace(identity, generation=generation, sealed_private_key=sealed, update_time=self._clock.now())

    async def _write(self, identity: Identity, *, bearer: KeepBearer | None = KeepBearer.KEEP) -> Identity:
        """Write a change, and make it hold in memory even if whoever asked for it has gone meanwhile."""
        write = asyncio.create_task(self._write_through(identity, bearer), name="write-identity")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write_through(self, identity: Identity, bearer: KeepBearer | None) -> Identity:
        written = await self._store.write_identity(identity, bearer=bearer)
        self._registrar.forget_troubles(identity.id)
        return (await self._publish(written)).identity

    # --- helpers ------------------------------------------------------------------------------------------------------

    async def _publish(self, identity: Identity) -> IdentityView:
        bearer = None
        if identity.bearer_source is None and identity.state is not IdentityState.DELETED:
            bearer = await self._store.bearer(identity.id)
        return self._snapshots.publish_identity(identity, bearer)

    def _backend(self, name: str) -> Backend:
        backend = self._backends.get(name)
        if backend is None:
            known = ", ".join(self._backends)
            raise errors.FieldInvalidError(violations={"backend": f"is not configured; configured: {known}"})
        return backend

    def _seal_bearer(self, identity_id: IdentityId, bearer: BearerChoice) -> StoredBearer | None:
        if not isinstance(bearer, OwnBearer | OwnLogin):
            return None
        return self._own_bearers.sealed(bearer, identity_id, pair=1)


def _earlier(first: float | None, second: float | None) -> float | None:
    return min((time for time in (first, second) if time is not None), default=None)
