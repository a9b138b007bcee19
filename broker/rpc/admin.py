"""The operators' service: unpacks, asks, packs, and records who changed what."""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from credentialbroker.v1 import broker_admin_pb2 as pb2
from credentialbroker.v1 import broker_admin_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as caller_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from broker import __version__, errors
from broker.audit import AuditLog
from broker.auth_json import IdentityJwt
from broker.authorization import STALE_AFTER_SECONDS, Authorizer
from broker.clock import Clock
from broker.enrollment import BearerChoice, CreateOrder, Enroller, ImportOrder, NamedSource
from broker.imports import BareKey
from broker.model import Identity, IdentityState, Mode, Secret, Task, TaskState
from broker.own_bearers import FileLogin, OwnBearer, OwnLogin
from broker.reauthentication import Credential, Reauthenticator
from broker.registration import ANSWER_MARGIN_SECONDS
from broker.rotation import Rotator
from broker.rpc import fields, messages
from broker.rpc.interceptors import Context, Gate, current_call
from broker.rpc.pages import PageTokens
from broker.rpc.server import Listener
from broker.snapshots import Snapshots
from broker.status import StatusReader
from broker.store import Store
from broker.tasks import TaskKeeper

Word = TypeVar("Word")
Row = TypeVar("Row", pb2.Identity, caller_pb2.Task)

LARGEST_AUTH_JSON_BYTES: Final = 32 * 1024
_CHANGEABLE: Final = ("bearer_source", "assertions_enabled", "expire_time")
_MOST_SUMMARIES: Final = 250
_MOST_SUMMARY_BYTES: Final = 56 * 1024
# An answer has at most 64 KiB: a page that is not full takes another bite of rows, none of which has more than 2.5 KB.
_FULL_BYTES: Final = 36 * 1024
_BITE_ROWS: Final = 10
_MOST_BITES: Final = 200

_MODES: Final[dict[int, Mode]] = {number: mode for mode, number in messages.MODES.items()}
_STATES: Final[dict[int, IdentityState]] = {number: state for state, number in messages.STATES.items()}
_TASK_STATES: Final[dict[int, TaskState]] = {number: state for state, number in messages.TASK_STATES.items()}


class BrokerAdminServicer(broker_admin_pb2_grpc.BrokerAdminServicer):
    """`credentialbroker.v1.BrokerAdmin`; what each RPC means stands in its proto file."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        enroller: Enroller,
        rotator: Rotator,
        reauthenticator: Reauthenticator,
        status: StatusReader,
        tasks: TaskKeeper,
        authorizer: Authorizer,
        audit: AuditLog,
        page_tokens: PageTokens,
        gate: Gate,
        clock: Clock,
        max_staleness: float,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._enroller = enroller
        self._rotator = rotator
        self._reauthenticator = reauthenticator
        self._status = status
        self._tasks = tasks
        self._authorizer = authorizer
        self._audit = audit
        self._page_tokens = page_tokens
        self._gate = gate
        self._clock = clock
        self._max_staleness = max_staleness
        self._start_wall = clock.now()
        self._start = clock.monotonic()

    def serve_on(self, listener: Listener) -> None:
        """Add this service to a listener."""
        listener.add_service(broker_admin_pb2_grpc.add_BrokerAdminServicer_to_server, self)

    # --- making identities --------------------------------------------------------------------------------------------

    async def CreateIdentity(self, request: pb2.CreateIdentityRequest, context: Context) -> pb2.CreateIdentityResponse:
        """Make an identity."""
        now = self._clock.now()
        order = CreateOrder(
            request_id=fields.request_id(request.request_id),
            name=fields.identity_name(request.name),
            backend=request.backend or "default",
            mode=_mode(request.mode),
            account_id=fields.id_text(request.account_id, "account_id"),
            user_id=fields.id_text(request.user_id, "user_id"),
            fedramp=request.fedramp,
            bearer=_bearer_choice(request, now),
            assertions_enabled=request.assertions_enabled if request.HasField("assertions_enabled") else True,
            expire_time=_optional_time(request, "expire_time", now),
        )
        self._record("create_identity", order.name, request.comment)
        identity = await self._enroller.create(order, wait_until=self._wait_until())
        return pb2.CreateIdentityResponse(identity=self._pack(identity))

    async def ImportIdentity(self, request: pb2.ImportIdentityRequest, context: Context) -> pb2.ImportIdentityResponse:
        """Take over an identity that exists elsewhere."""
        now = self._clock.now()
        order = ImportOrder(
            request_id=fields.request_id(request.request_id),
            name=fields.identity_name(request.name),
            backend=request.backend or "default",
            mode=_mode(request.mode),
            source=_import_source(request),
            bearer=_bearer_choice(request, now),
            expected_account_id=fields.id_text(request.expected_account_id, "expected_account_id"),
            expected_user_id=fields.id_text(request.expected_user_id, "expected_user_id"),
            assertions_enabled=request.assertions_enabled if request.HasField("assertions_enabled") else True,
            expire_time=_optional_time(request, "expire_time", now),
        )
        self._record("import_identity", order.name, request.comment)
        identity = await self._enroller.take_over(order)
        return pb2.ImportIdentityResponse(identity=self._pack(identity))

    # --- reading them -------------------------------------------------------------------------------------------------

    async def GetIdentity(self, request: pb2.GetIdentityRequest, context: Context) -> pb2.GetIdentityResponse:
        """Return one identity."""
        return pb2.GetIdentityResponse(identity=self._pack(await self._named(request.name)))

    async def ListIdentities(self, request: pb2.ListIdentitiesRequest, context: Context) -> pb2.ListIdentitiesResponse:
        """List identities by name."""
        size = fields.page_size(request.page_size)
        states = _chosen(request.states, _STATES, "states") or set(IdentityState) - {IdentityState.DELETED}
        listing = f"identities/{request.backend}/{','.join(sorted(states))}"
        after: str | None = self._page_tokens.read(listing, fields.page_token(request.page_token))
        found = _Page[pb2.Identity](size)
        while after is not None and not found.is_full:
            page = await self._store.identities(
                after=after, limit=found.bite, include_deleted=IdentityState.DELETED in states
            )
            found.add(
                self._pack(row) for row in page.rows if row.state in states and request.backend in ("", row.backend)
            )
            after = page.next_after
        return pb2.ListIdentitiesResponse(
            identities=found.messages, next_page_token=self._page_tokens.make(listing, after)
        )

    # --- changing them ------------------------------------------------------------------------------------------------

    async def UpdateIdentity(self, request: pb2.UpdateIdentityRequest, context: Context) -> pb2.UpdateIdentityResponse:
        """Change settings of an identity."""
        mask = list(request.update_mask.paths)
        wrong = [path for path in mask if path not in _CHANGEABLE]
        if not mask or wrong:
            raise errors.FieldInvalidError(
                violations={"update_mask": f"is required and names only {', '.join(_CHANGEABLE)}"}
            )
        wanted, etag = request.identity, request.etag or request.identity.etag
        identity = await self._named(wanted.name, etag)
        self._record("update_identity", identity.name, request.comment, fields=",".join(sorted(mask)))
        expire_time = _optional_time(wanted, "expire_time", self._clock.now()) if "expire_time" in mask else None

        def update(identity: Identity) -> Awaitable[Identity]:
            return self._enroller.update(
                identity,
                bearer_source=(wanted.bearer_source or None) if "bearer_source" in mask else identity.bearer_source,
                assertions_enabled=wanted.assertions_enabled
                if "assertions_enabled" in mask
                else identity.assertions_enabled,
                expire_time=expire_time if "expire_time" in mask else identity.expire_time,
            )

        return pb2.UpdateIdentityResponse(identity=self._pack(await self._change(identity, etag, update)))

    async def DisableIdentity(
        self, request: pb2.DisableIdentityRequest, context: Context
    ) -> pb2.DisableIdentityResponse:
        """Stop an identity."""
        identity = await self._named(request.name, request.etag)
        self._record("disable_identity", identity.name, request.comment)
        disabled = await self._change(identity, request.etag, self._enroller.disable)
        return pb2.DisableIdentityResponse(identity=self._pack(disabled))

    async def EnableIdentity(self, request: pb2.EnableIdentityRequest, context: Context) -> pb2.EnableIdentityResponse:
        """Let a disabled identity serve again."""
        identity = await self._named(request.name, request.etag)
        self._record("enable_identity", identity.name, request.comment)
        enabled = await self._change(identity, request.etag, self._enroller.enable)
        return pb2.EnableIdentityResponse(identity=self._pack(enabled))

    async def DeleteIdentity(self, request: pb2.DeleteIdentityRequest, context: Context) -> pb2.DeleteIdentityResponse:
        """Erase an identity's secrets."""
        known = self._snapshots.named(fields.identity_name(request.name))
        if known is not None and known.identity.state is IdentityState.DELETED:
            return pb2.DeleteIdentityResponse(identity=self._pack(known.identity))
        identity = await self._named(request.name, request.etag)
        self._record("delete_identity", identity.name, request.comment)
        deleted = await self._change(identity, request.etag, self._enroller.delete)
        return pb2.DeleteIdentityResponse(identity=self._pack(deleted))

    # --- keys and logins ----------------------------------------------------------------------------------------------

    async def RotateIdentityKey(
        self, request: pb2.RotateIdentityKeyRequest, context: Context
    ) -> pb2.RotateIdentityKeyResponse:
        """Give an identity a new key."""
        request_id = fields.request_id(request.request_id)
        identity = await self._named(request.name)
        self._record("rotate_identity_key", identity.name, request.comment)
        rotated = await self._rotator.rotate(
            identity, request_id, is_expected=_is_expected(identity, request.etag), wait_until=self._wait_until()
        )
        return pb2.RotateIdentityKeyResponse(identity=self._pack(rotated))

    async def ReauthenticateIdentity(
        self, request: pb2.ReauthenticateIdentityRequest, context: Context
    ) -> pb2.ReauthenticateIdentityResponse:
        """Give an identity a new login."""
        request_id = fields.request_id(request.request_id)
        credential = _credential(request, self._clock.now())
        identity = await self._named(request.name)
        self._record("reauthenticate_identity", identity.name, request.comment)
        changed = await self._reauthenticator.reauthenticate(
            identity,
            request_id,
            credential,
            is_expected=_is_expected(identity, request.etag),
            wait_until=self._wait_until(),
        )
        return pb2.ReauthenticateIdentityResponse(identity=self._pack(changed))

    # --- tasks --------------------------------------------------------------------------------------------------------

    async def GetTask(self, request: pb2.GetTaskRequest, context: Context) -> pb2.GetTaskResponse:
        """Return one task."""
        task = await self._task(request.id)
        return pb2.GetTaskResponse(task=await self._pack_task(task))

    async def ListTasks(self, request: pb2.ListTasksRequest, context: Context) -> pb2.ListTasksResponse:
        """List tasks."""
        size = fields.page_size(request.page_size)
        states = _chosen(request.states, _TASK_STATES, "states")
        identity = await self._named(request.identity) if request.identity else None
        listing = f"tasks/{request.identity}/{','.join(sorted(states))}"
        after: str | None = self._page_tokens.read(listing, fields.page_token(request.page_token))
        found = _Page[caller_pb2.Task](size)
        while after is not None and not found.is_full:
            page = await self._store.tasks(
                identity_id=identity.id if identity else None,
                state=next(iter(states)) if len(states) == 1 else None,
                after=after,
                limit=found.bite,
            )
            rows = [row for row in page.rows if not states or row.effective_state in states]
            found.add([await self._pack_task(row) for row in rows])
            after = page.next_after
        return pb2.ListTasksResponse(tasks=found.messages, next_page_token=self._page_tokens.make(listing, after))

    async def RevokeTask(self, request: pb2.RevokeTaskRequest, context: Context) -> pb2.RevokeTaskResponse:
        """Take a task down."""
        task = await self._task(request.id)
        if request.etag and request.etag != messages.task_etag(task):
            raise errors.GenerationChangedError
        self._record("revoke_task", task.id, request.comment, force=request.force)
        first, *others = await self._tasks.revoke(task, force=request.force)
        return pb2.RevokeTaskResponse(
            task=await self._pack_task(first), shared_tasks=[await self._pack_task(one) for one in others]
        )

    # --- the broker itself --------------------------------------------------------------------------------------------

    async def GetStatus(self, request: pb2.GetStatusRequest, context: Context) -> pb2.GetStatusResponse:
        """Say how this broker is doing; answers also while the store is away."""
        confirmation = self._snapshots.confirmation
        status = pb2.BrokerStatus(
            server_version=__version__,
            serving_state=self._serving_state(),
            start_time=messages.timestamp(self._start_wall),
            uptime=messages.duration(self._clock.monotonic() - self._start),
            server_time=messages.timestamp(self._clock.now()),
            store=pb2.StoreStatus(
                last_confirm_time=messages.timestamp(confirmation.wall or None),
                offline_serving_until_time=messages.timestamp(confirmation.wall + self._max_staleness),
            ),
            identities=self._summaries(),
        )
        try:
            statistics = await self._store.statistics()
        except errors.StoreDownError:
            return pb2.GetStatusResponse(status=status)
        status.store.driver = statistics.driver
        status.store.schema_version = statistics.schema_version
        status.identity_counts.extend(
            pb2.IdentityCount(state=messages.STATES[state], count=count)
            for state, count in statistics.identities.items()
            if count
        )
        status.task_counts.extend(
            pb2.TaskCount(state=messages.TASK_STATES[state], count=count)
            for state, count in statistics.tasks.items()
            if count
        )
        return pb2.GetStatusResponse(status=status)

    def _serving_state(self) -> pb2.ServingState.ValueType:
        if self._gate.refusal is errors.DrainingError:
            return pb2.SERVING_STATE_DRAINING
        if self._gate.refusal is not None:
            return pb2.SERVING_STATE_WARMING_UP
        age = self._clock.monotonic() - self._snapshots.confirmation.monotonic
        return pb2.SERVING_STATE_OFFLINE if age > STALE_AFTER_SECONDS else pb2.SERVING_STATE_SERVING

    def _summaries(self) -> Iterator[pb2.IdentitySummary]:
        left = _MOST_SUMMARY_BYTES
        for status in itertools.islice(self._status.identities(), _MOST_SUMMARIES):
            summary = messages.identity_summary(status)
            left -= summary.ByteSize()
            if left < 0:
                return
            yield summary

    # --- not built yet ------------------------------------------------------------------------------------------------

    async def RewrapSecrets(self, request: pb2.RewrapSecretsRequest, context: Context) -> pb2.RewrapSecretsResponse:
        """Not built yet."""
        raise errors.NotBuiltError

    async def VerifyAudit(self, request: pb2.VerifyAuditRequest, context: Context) -> pb2.VerifyAuditResponse:
        """Not built yet."""
        raise errors.NotBuiltError

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _wait_until(self) -> float:
        return current_call().deadline - ANSWER_MARGIN_SECONDS

    def _record(self, event: str, name: str, comment: str, **more: str | bool) -> None:
        """Record what an operator is about to do, before it is done."""
        call = current_call()
        self._audit.record(
            event,
            request_id=call.request_id,
            principal=call.caller.principal,
            resource=name,
            comment=fields.comment(comment) or None,
            **more,
        )

    async def _change(
        self, identity: Identity, etag: str, change: Callable[[Identity], Awaitable[Identity]]
    ) -> Identity:
        """
        Change an identity; where no etag binds it to what was read, once more when another write came between.

        Raises:
            GenerationChangedError: it changed again, or from what the etag names.
        """
        try:
            return await change(identity)
        except errors.GenerationChangedError:
            if etag:
                raise
        current = await self._named(identity.name)
        if current.id != identity.id:
            raise errors.GenerationChangedError  # it was deleted, and another has its name
        return await change(current)

    async def _named(self, name: str, etag: str = "") -> Identity:
        identity = await self._store.identity_named(fields.identity_name(name))
        if identity is None:
            raise errors.IdentityNotFoundError(metadata={"resource_type": "identity", "resource_name": name})
        if not _is_expected(identity, etag):
            raise errors.GenerationChangedError
        return identity

    async def _task(self, task_id: str) -> Task:
        task = await self._store.task_by_id(fields.backend_id(task_id, "id"))
        if task is None:
            raise errors.TaskNotFoundError(metadata={"resource_type": "task", "resource_name": task_id})
        return task

    def _pack(self, identity: Identity) -> pb2.Identity:
        return messages.identity(identity, self._authorizer.last_use(identity.id))

    async def _pack_task(self, task: Task) -> caller_pb2.Task:
        view = self._snapshots.view(task.identity_id)
        identity = view.identity if view else await self._store.identity(task.identity_id)
        if identity is None:
            raise errors.RowCorruptError
        return messages.task(task, identity)


class _Page(Generic[Row]):
    """
    The rows of one answer, filled bite by bite until there are enough, or as many as an answer may hold.

    A filter may leave little of what is read; after some bites the caller gets what there is and comes again.
    """

    def __init__(self, size: int) -> None:
        self.messages: list[Row] = []
        self._size = size
        self._bytes = 0
        self._bites = 0

    @property
    def is_full(self) -> bool:
        """Whether no further bite is to be taken."""
        return len(self.messages) >= self._size or self._bytes > _FULL_BYTES or self._bites >= _MOST_BITES

    @property
    def bite(self) -> int:
        """How many rows to read next."""
        return min(self._size - len(self.messages), _BITE_ROWS)

    def add(self, rows: Iterable[Row]) -> None:
        """Take what is left of a bite."""
        self._bites += 1
        for row in rows:
            self.messages.append(row)
            self._bytes += row.ByteSize()


def _mode(number: int) -> Mode:
    mode = _MODES.get(number)
    if mode is None:
        raise errors.FieldInvalidError(violations={"mode": "is required: AGENT or BEARER"})
    return mode


def _bearer_choice(request: pb2.CreateIdentityRequest | pb2.ImportIdentityRequest, now: float) -> BearerChoice:
    match request.WhichOneof("bearer"):
        case "bearer_source":
            return NamedSource(fields.identity_name(request.bearer_source, "bearer_source"))
        case "static_bearer":
            return _static_bearer(request.static_bearer, now)
        case "oauth_bearer":
            return _login(request.oauth_bearer, now)
        case None:
            return None


def _login(given: pb2.OauthBearer, now: float) -> OwnLogin | FileLogin:
    """Read the tokens of a login; without a refresh token they are those of the file that stands beside it."""
    source = fields.identity_name(given.source, "oauth_bearer.source")
    tokens = {
        name: fields.token(getattr(given, name), f"oauth_bearer.{name}") if getattr(given, name) else None
        for name in ("refresh_token", "access_token", "id_token")
    }
    refresh_token = tokens["refresh_token"]
    if refresh_token is not None:
        return OwnLogin(
            source=source,
            refresh_token=refresh_token,
            access_token=tokens["access_token"],
            id_token=tokens["id_token"],
            expire_time=_optional_time(given, "expire_time", now),
        )
    if tokens["access_token"] or tokens["id_token"] or given.HasField("expire_time"):
        raise errors.FieldInvalidError(violations={"oauth_bearer.refresh_token": "is required beside other tokens"})
    return FileLogin(source)


def _is_expected(identity: Identity, etag: str) -> bool:
    """Say whether an identity is the version that an operator looked at; without an etag it always is."""
    return not etag or etag == messages.identity_etag(identity)


def _credential(request: pb2.ReauthenticateIdentityRequest, now: float) -> Credential:
    match request.WhichOneof("credential"):
        case "static_bearer":
            return _static_bearer(request.static_bearer, now)
        case "oauth_bearer":
            login = _login(request.oauth_bearer, now)
            if isinstance(login, FileLogin):
                raise errors.FieldInvalidError(violations={"oauth_bearer.refresh_token": "is required"})
            return login
        case "auth_json":
            return _auth_json(request.auth_json)
        case "identity_jwt":
            return IdentityJwt(fields.token(request.identity_jwt, "identity_jwt"))
        case None:
            raise errors.FieldInvalidError(
                violations={"credential": "is required: static_bearer, oauth_bearer, auth_json or identity_jwt"}
            )


def _static_bearer(own: pb2.StaticBearer, now: float) -> OwnBearer:
    return OwnBearer(fields.token(own.token, "static_bearer.token"), _optional_time(own, "expire_time", now))


def _auth_json(content: bytes) -> Secret:
    if len(content) > LARGEST_AUTH_JSON_BYTES:
        raise errors.ImportInvalidError(violations={"auth_json": "is larger than 32 KiB"})
    try:
        return Secret(content.decode())
    except UnicodeDecodeError:
        raise errors.ImportInvalidError(violations={"auth_json": "is not UTF-8"}) from None


def _import_source(request: pb2.ImportIdentityRequest) -> Secret | IdentityJwt | BareKey:
    match request.WhichOneof("source"):
        case "auth_json":
            return _auth_json(request.auth_json)
        case "identity_jwt":
            return IdentityJwt(fields.token(request.identity_jwt, "identity_jwt"))
        case "bare_key":
            bare = request.bare_key
            account_id = fields.id_text(bare.account_id, "bare_key.account_id")
            if account_id is None:
                raise errors.FieldInvalidError(violations={"bare_key.account_id": "is required"})
            return BareKey(
                private_key=fields.token(bare.private_key, "bare_key.private_key"),
                agent_runtime_id=fields.backend_id(bare.agent_runtime_id, "bare_key.agent_runtime_id"),
                account_id=account_id,
                user_id=fields.id_text(bare.user_id, "bare_key.user_id"),
                fedramp=bare.fedramp,
            )
        case None:
            raise errors.FieldInvalidError(violations={"source": "is required: auth_json, identity_jwt or bare_key"})


def _optional_time(
    message: pb2.CreateIdentityRequest | pb2.ImportIdentityRequest | pb2.StaticBearer | pb2.OauthBearer | pb2.Identity,
    field: str,
    now: float,
) -> float | None:
    if not message.HasField("expire_time"):
        return None
    moment: Timestamp = message.expire_time
    return fields.future_time(moment, field, now)


def _chosen(numbers: Iterable[int], words: Mapping[int, Word], field: str) -> set[Word]:
    chosen = set(numbers)
    if chosen - words.keys():
        raise errors.FieldInvalidError(violations={field: "holds a value that is none"})
    return {words[number] for number in chosen}
