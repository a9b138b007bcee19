"""
ReauthenticateIdentity: a new login in the place of one that ended, and nothing lost that the new one does not change.

The tasks of an agent stay as long as its key and its `agent_runtime_id` do; only another agent begins a new generation.
What is given must be of the identity's account and user and must be good now, else nothing is changed. A refresh token
that has to be sent to learn that is sent by a job that ends by itself, so that what it brought is kept even if whoever
asked has gone.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from broker import errors
from broker.auth_json import IdentityJwt
from broker.clock import Clock
from broker.errors import BrokerError
from broker.imports import Imported, ImportReader, agreed
from broker.keyring import Keyring
from broker.model import (
    Identity,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    Secret,
    StoredBearer,
    StoredLadder,
)
from broker.own_bearers import OwnBearer, OwnBearers, OwnLogin
from broker.registration import Registrar
from broker.request_names import RequestNames
from broker.snapshots import Snapshots, seal_private_key
from broker.store import CreateRequest, KeepBearer, Store
from broker.telemetry import logger

_LOG: Final = logger(__name__)

Credential = OwnBearer | OwnLogin | Secret | IdentityJwt
"""A token, a login, the text of an `auth.json`, or an Agent Identity JWT."""

_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 0.5
_SUSPENDED: Final = (IdentityState.REAUTH_REQUIRED, IdentityState.REJECTED)


@dataclass(frozen=True, slots=True)
class _ReauthenticationOrder:
    name: IdentityName
    credential: Credential


class Reauthenticator:
    """Gives identities new logins."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registrar: Registrar,
        imports: ImportReader,
        own_bearers: OwnBearers,
        keyring: Keyring,
        clock: Clock,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._imports = imports
        self._own_bearers = own_bearers
        self._keyring = keyring
        self._clock = clock
        self._requests = RequestNames(keyring, clock)
        self._jobs: dict[tuple[str, bytes], asyncio.Task[Identity | BrokerError]] = {}

    async def close(self, patience: float = 0.0) -> None:
        """Let what is under way end within so many seconds; a login that was not written by then is lost."""
        if self._jobs:
            await asyncio.wait(set(self._jobs.values()), timeout=patience)
        left = set(self._jobs.values())
        for job in left:
            job.cancel()
        if left:
            await asyncio.wait(left)

    async def reauthenticate(
        self,
        identity: Identity,
        request_id: str,
        credential: Credential,
        *,
        is_expected: bool = True,
        wait_until: float,
    ) -> Identity:
        """
        Give an identity a new login and return it as it is then.

        Args:
            identity: as it stands in the store.
            request_id: the operator's own name for this change; repeated, it is done once.
            credential: the new login.
            is_expected: whether `identity` is the version that the operator looked at; a request that is repeated has
                changed that itself.
            wait_until: monotonic time until which it is waited for; it goes on afterwards.

        Raises:
            RequestIdReusedError: the request id was used for something else.
            ImportInvalidError: what was given cannot be used for this identity; the violations say why.
            AccountMismatchError: it is of another account or user.
            ReauthRequiredError: it has expired, or its issuer refused it.
            IssuerDownError: its issuer did not answer, or had not by then.
            GenerationChangedError: the identity is not as expected.
            IdentityNotFoundError: the identity was deleted meanwhile.
            BrokerError: the keys to verify a JWT with could not be had.
        """
        request = self._requests.of(request_id, _ReauthenticationOrder(identity.name, credential))
        key = (request.request_id, request.fingerprint)
        job = self._jobs.get(key)
        if job is None:
            job = asyncio.create_task(
                self._run(identity, request, credential, is_expected=is_expected), name="reauthenticate"
            )
            self._jobs[key] = job
            job.add_done_callback(lambda _: self._jobs.pop(key, None))
        await asyncio.wait({job}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not job.done():
            raise errors.IssuerDownError(retry_after=1.0)
        outcome = job.result()
        if isinstance(outcome, BrokerError):
            raise outcome.again() from outcome
        return outcome

    async def _run(
        self, identity: Identity, request: CreateRequest, credential: Credential, *, is_expected: bool
    ) -> Identity | BrokerError:
        try:
            done = await self._store.remembered_identity(request)
            if done is not None:
                return self._snapshots.publish_identity(done).identity
            if not is_expected:
                return errors.GenerationChangedError()
            return await self._replace_login(identity, request, credential)
        except BrokerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the job must end with an outcome for whoever waits
            _LOG.error("reauthentication_crashed", identity=identity.name, exc_info=error)
            return errors.InternalError()

    async def _replace_login(self, identity: Identity, request: CreateRequest, credential: Credential) -> Identity:
        found = await self._read(identity, credential)
        _require_fit(identity, found, self._clock.now())
        agreed("account_id", identity.account_id, found.account_id)
        agreed("user_id", identity.user_id, found.user_id)
        bearer = None if found.bearer is None else await self._own_bearers.made_live(found.bearer)
        if bearer is not None:
            # What the issuer answered may say more than what was given.
            owners = self._own_bearers.owners(bearer)
            agreed("account_id", identity.account_id, owners.account_id)
            agreed("user_id", identity.user_id, owners.user_id)
        written, row = await self._write(identity, request, found, bearer)
        view = self._snapshots.publish_identity(written, row)
        self._registrar.forget_troubles(identity.id)
        await self._clear_ladder(identity)
        _LOG.info("identity_reauthenticated", identity=identity.name, generation=written.generation)
        return view.identity

    # --- what is given ------------------------------------------------------------------------------------------------

    async def _read(self, identity: Identity, credential: Credential) -> Imported:
        if isinstance(credential, OwnBearer | OwnLogin):
            owners = self._own_bearers.owners(credential)
            return Imported(
                origin=Origin.BEARER_ONLY, account_id=owners.account_id, user_id=owners.user_id, bearer=credential
            )
        known = await self._store.bearer(identity.id)
        # The tokens of an `auth.json` are refreshed where those before them were.
        issuer = None if known is None else known.source
        found = await self._imports.read(credential, identity.backend, issuer=issuer)
        if identity.mode is Mode.BEARER or (found.key is not None and identity.origin is Origin.CREATED):
            # A key that the broker made itself is changed by RotateIdentityKey only.
            found = replace(found, key=None, agent_runtime_id=None)
        return found

    # --- what it changes ----------------------------------------------------------------------------------------------

    async def _write(
        self, identity: Identity, request: CreateRequest, found: Imported, bearer: OwnBearer | OwnLogin | None
    ) -> tuple[Identity, StoredBearer | KeepBearer | None]:
        """Write the new login over the identity as it is by then: what was spent to get it must not be for nothing."""
        poll = _FIRST_POLL
        while True:
            try:
                return await self._write_over(identity, request, found, bearer)
            except errors.GenerationChangedError:
                pass  # written by another between reading and writing
            except errors.StoreDownError:
                if not isinstance(bearer, OwnLogin):
                    raise
            await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)

    async def _write_over(
        self, identity: Identity, request: CreateRequest, found: Imported, bearer: OwnBearer | OwnLogin | None
    ) -> tuple[Identity, StoredBearer | KeepBearer | None]:
        current = await self._store.identity(identity.id)
        if current is None or current.state is IdentityState.DELETED:
            raise errors.IdentityNotFoundError
        changed = self._changed(current, found, bearer)
        if bearer is None:
            return await self._store.write_identity(changed, request=request), KeepBearer.KEEP
        known = await self._store.bearer(identity.id)
        row = self._own_bearers.sealed(bearer, identity.id, pair=1 if known is None else known.pair + 1)
        written = await self._store.write_identity(changed, bearer=row, request=request)
        return written, await self._store.bearer(identity.id)

    def _changed(self, identity: Identity, found: Imported, bearer: OwnBearer | OwnLogin | None) -> Identity:
        changed = replace(
            identity,
            account_id=identity.account_id or found.account_id,
            user_id=identity.user_id or found.user_id,
            email=found.email or identity.email,
            plan_type=found.plan_type or identity.plan_type,
            update_time=self._clock.now(),
        )
        if bearer is not None:
            changed = replace(changed, bearer_source=None)
        if found.key is not None:
            changed = replace(changed, origin=found.origin, fedramp=found.fedramp, expire_time=found.expire_time)
            if not _is_same_agent(identity, found):
                generation = identity.generation + 1
                changed = replace(
                    changed,
                    agent_runtime_id=found.agent_runtime_id,
                    public_key=found.key.ssh_public_key,
                    sealed_private_key=seal_private_key(self._keyring, found.key, identity.id, generation),
                    generation=generation,
                )
        return _restored(identity, changed, has_key=found.key is not None)

    async def _clear_ladder(self, identity: Identity) -> None:
        """Forget what was tried with the login before; a rejection that is noted at this moment is of the new one."""
        try:
            ladder = await self._store.ladder(identity.id)
            if ladder is None or not ladder.document:
                return
            cleared = await self._store.write_ladder(StoredLadder(identity_id=identity.id, version=ladder.version))
        except (errors.GenerationChangedError, errors.StoreDownError) as error:
            _LOG.warning("ladder_not_cleared", identity=identity.name, reason=error.reason)
            return
        self._snapshots.publish_ladder(cleared)


def _require_fit(identity: Identity, found: Imported, now: float) -> None:
    """
    Refuse a login that this identity could not live on.

    Raises:
        ImportInvalidError: the violations say why.
    """
    if found.key is None and found.bearer is None:
        problem = (
            "holds no bearer, which mode BEARER needs"
            if identity.mode is Mode.BEARER
            else "holds no login, and the key is the broker's own; RotateIdentityKey changes that"
        )
        raise errors.ImportInvalidError(violations={"credential": problem})
    ended = identity.expire_time is not None and identity.expire_time <= now
    if found.key is None and identity.origin is Origin.IMPORTED_JWT and ended:
        problem = "is a bearer, and the identity lives on an Agent Identity JWT that has ended; give a new JWT"
        raise errors.ImportInvalidError(violations={"credential": problem})


def _is_same_agent(identity: Identity, found: Imported) -> bool:
    return (
        found.key is not None
        and found.key.ssh_public_key == identity.public_key
        and found.agent_runtime_id == identity.agent_runtime_id
    )


def _restored(before: Identity, changed: Identity, *, has_key: bool) -> Identity:
    """Say in which state the new login leaves an identity; one that an operator disabled stays so until enabled."""
    disabled = before.state is IdentityState.DISABLED
    state = before.former_state or IdentityState.ACTIVE if disabled else before.state
    # Whoever refused the agent may take it again with another login only where that login can register it.
    ends_suspension = state in _SUSPENDED and (has_key or before.mode is Mode.BEARER or before.can_register)
    is_new_agent = changed.generation != before.generation
    if not (ends_suspension or is_new_agent):
        return changed
    if disabled:
        return replace(changed, former_state=IdentityState.ACTIVE)
    return replace(changed, state=IdentityState.ACTIVE, state_reason="")
