"""
RotateIdentityKey: a new key is stored, registered as a new agent, proven, and adopted with a new generation.

The wire knows no change of an agent's key, so another agent takes the place of the old one. The old pair stays valid at
the backend, and what was signed with it lives until its `expire_time`; the broker erases the old key with the switch.
What carries the change through, here or in another process, stands in `broker.agents`.
"""

from collections.abc import Callable
from typing import Final

from broker import errors
from broker.agents import AgentRegistrar
from broker.clock import Clock
from broker.keyring import Keyring
from broker.keys import SigningKey, derive_seed
from broker.model import Identity, IdentityState, Mode, Origin
from broker.profiles import AgentAuth
from broker.registration import Registrar, live_bearer
from broker.request_names import KeyChange, RequestNames
from broker.snapshots import IdentityView, Snapshots, seal_private_key
from broker.store import NewKey, Store

_NOT_LEASED: Final = 0.0


class Rotator:
    """Gives identities new keys."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registrar: Registrar,
        agents: AgentRegistrar,
        keyring: Keyring,
        clock: Clock,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._agents = agents
        self._keyring = keyring
        self._clock = clock
        self._token_bytes = token_bytes
        self._requests = RequestNames(keyring, clock)

    async def rotate(
        self, identity: Identity, request_id: str, *, is_expected: bool = True, wait_until: float
    ) -> Identity:
        """
        Give an identity a new key and return it with that.

        The same request goes on with what it began, and returns the identity as it stands once that is done.

        Args:
            identity: as it stands in the store.
            request_id: the operator's own name for this change.
            is_expected: whether `identity` is the version that the operator looked at; a request that is repeated has
                changed that itself.
            wait_until: monotonic time until which it is waited for; it goes on afterwards.

        Raises:
            RequestIdReusedError: the request id was used for something else.
            RotationUnsupportedError: it cannot register itself; the hint says what to do instead.
            IdentityRevokedError: it is disabled or deleted.
            RegistrationInProgressError: its first key is not registered yet, or the new one was not by then.
            ReauthRequiredError: the login that would register the new key has ended.
            IdentityRejectedError: the backend refused the new key; the old one goes on.
            GenerationChangedError: the identity is not as expected, or changed meanwhile.
            BrokerError: what is in the way now; the broker tries again by itself.
        """
        request = self._requests.of(request_id, KeyChange(identity.name))
        begun = await self._store.remembered_identity(request)
        if begun is None:
            if not is_expected:
                raise errors.GenerationChangedError
            return (await self._change_key(self._snapshots.publish_identity(identity), request_id, wait_until)).identity
        view = self._snapshots.publish_identity(begun)
        if await self._store.pending_agent(begun.id) is not None:
            view = await self._agents.finish(view, wait_until=wait_until)
        return view.identity

    async def register_anew(self, view: IdentityView, *, wait_until: float) -> IdentityView:
        """
        Give an identity another agent because the backend no longer accepts the one it has; see `rotate`.

        How often this may be is the caller's to decide.
        """
        return await self._change_key(view, None, wait_until)

    async def _change_key(self, view: IdentityView, request_id: str | None, wait_until: float) -> IdentityView:
        self._require_able(view)
        # What registers the new key is there before anything is begun that would have to be undone.
        await live_bearer(view, self._clock)
        identity = view.identity
        generation = identity.generation + 1
        key = SigningKey.from_seed(derive_seed(self._token_bytes(64)))
        request = None if request_id is None else self._requests.of(request_id, KeyChange(identity.name))
        begun = await self._store.claim_agent(
            identity.id,
            generation=identity.generation,
            now=self._clock.now() if request is None else request.now,
            # Begun here, and claimed by the job that carries it through.
            lease_seconds=_NOT_LEASED,
            new_key=NewKey(
                sealed_private_key=seal_private_key(self._keyring, key, identity.id, generation),
                public_key=key.ssh_public_key,
            ),
            request=request,
        )
        # One that was abandoned before had this generation too: what was held against its tasks is not against these.
        self._registrar.forget_troubles(identity.id)
        return await self._agents.finish(self._snapshots.publish_identity(begun.identity), wait_until=wait_until)

    def _require_able(self, view: IdentityView) -> None:
        """
        Refuse what cannot be given a new key, and say what to do instead.

        Raises:
            BrokerError: as `rotate` says.
        """
        identity = view.identity
        if identity.state in (IdentityState.DISABLED, IdentityState.DELETED):
            raise errors.IdentityRevokedError
        hint = None
        if identity.mode is Mode.BEARER:
            hint = "an identity of mode BEARER has no key; ReauthenticateIdentity gives it a new bearer"
        elif identity.origin is Origin.IMPORTED_JWT:
            hint = "its key came in an Agent Identity JWT; give it a new one with ReauthenticateIdentity"
        elif not identity.can_register:
            hint = "it was imported as a bare key without a login; create a new identity in its place"
        elif view.backend.profile.agent_auth is AgentAuth.NONE:
            hint = "this backend's profile registers no agents; import an Agent Identity JWT instead"
        elif view.bearers is None or view.bearers.is_empty:
            hint = "registering an agent needs a bearer; give it one with ReauthenticateIdentity or UpdateIdentity"
        if hint is not None:
            raise errors.RotationUnsupportedError(metadata={"hint": hint})
        if identity.state is IdentityState.REGISTERING:
            raise errors.RegistrationInProgressError(retry_after=1.0, note="the first key is not registered yet")
        if identity.expire_time is not None and identity.expire_time <= self._clock.now():
            raise errors.ReauthRequiredError
