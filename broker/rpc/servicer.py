"""The callers' service: unpacks, asks, packs."""

from collections.abc import AsyncIterator

from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from broker import errors
from broker.authorization import Answer, AuthorizationRequest, Authorizer
from broker.clock import Clock
from broker.rejection import Mender, Rejection
from broker.rpc import fields, messages
from broker.rpc.interceptors import Call, Context, current_call
from broker.rpc.pages import PageTokens
from broker.rpc.server import Listener
from broker.rpc.watch import WatchConversations
from broker.tasks import TaskKeeper


class CredentialBrokerServicer(credential_broker_pb2_grpc.CredentialBrokerServicer):
    """`credentialbroker.v1.CredentialBroker`; what each RPC means stands in its proto file."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        tasks: TaskKeeper,
        mender: Mender,
        conversations: WatchConversations,
        page_tokens: PageTokens,
        clock: Clock,
    ) -> None:
        self._authorizer = authorizer
        self._tasks = tasks
        self._mender = mender
        self._conversations = conversations
        self._page_tokens = page_tokens
        self._clock = clock

    def serve_on(self, listener: Listener) -> None:
        """Add this service to a listener."""
        listener.add_service(
            credential_broker_pb2_grpc.add_CredentialBrokerServicer_to_server,
            self,
            {"GetAuthorization": self._repeat_authorization},
        )

    async def GetAuthorization(
        self, request: pb2.GetAuthorizationRequest, context: Context
    ) -> pb2.GetAuthorizationResponse:
        """Hand out headers."""
        call = current_call()
        answer = await self._authorizer.authorize(
            call, _checked(_asked(request)), min_validity=_min_validity(request), deadline=call.deadline
        )
        return self._pack(answer)

    def _repeat_authorization(
        self, request: pb2.GetAuthorizationRequest, call: Call
    ) -> pb2.GetAuthorizationResponse | None:
        """Hand out what an equal call of this second was given, if there was one."""
        answer = self._authorizer.repeat(call, _asked(request), min_validity=_min_validity(request))
        return None if answer is None else self._pack(answer)

    def _pack(self, answer: Answer) -> pb2.GetAuthorizationResponse:
        """
        Pack an answer; one that is handed out again is the same message with the time of now.

        That it is shared does no harm: gRPC serializes it when the handler returns, and at worst, should it ever wait
        before, a caller would see a time that is newer by that wait.
        """
        if answer.packed is None:
            message = pb2.GetAuthorizationResponse(authorization=messages.authorization(answer.authorization))
            answer.packed = (message, message.authorization.server_time)
        response: pb2.GetAuthorizationResponse
        response, server_time = answer.packed
        now = self._clock.now()
        server_time.seconds = int(now)
        server_time.nanos = int(now % 1 * 1e9)
        return response

    async def RegisterTask(self, request: pb2.RegisterTaskRequest, context: Context) -> pb2.RegisterTaskResponse:
        """Make sure that a task lives."""
        call = current_call()
        target = request.WhichOneof("target")
        if target is None or (target == "kind" and request.kind != pb2.TASK_KIND_BACKGROUND):
            raise errors.FieldInvalidError(
                violations={"target": "is required: thread_id, or kind = TASK_KIND_BACKGROUND"}
            )
        thread_id = fields.thread_id(request.thread_id) if target == "thread_id" else None
        if target == "thread_id" and thread_id is None:
            raise errors.ThreadIdInvalidError(violations={"thread_id": "is not empty"})
        view = self._authorizer.view_of(fields.identity(request.identity), call.caller)
        task = await self._tasks.register(view, thread_id, deadline=call.deadline)
        return pb2.RegisterTaskResponse(task=messages.task(task, view.identity))

    async def EndTask(self, request: pb2.EndTaskRequest, context: Context) -> pb2.EndTaskResponse:
        """End the task of a thread."""
        call = current_call()
        thread_id = fields.thread_id(request.thread_id)
        if thread_id is None:
            raise errors.ThreadIdRequiredError(violations={"thread_id": "is required"})
        view = self._authorizer.view_of(fields.identity(request.identity), call.caller)
        return pb2.EndTaskResponse(task=messages.task(await self._tasks.end(view, thread_id), view.identity))

    async def ReportRejected(self, request: pb2.ReportRejectedRequest, context: Context) -> pb2.ReportRejectedResponse:
        """Hand out something better than what a backend rejected."""
        call = current_call()
        fields.rejected_status(request.http_status)
        fields.thread_id(request.thread_id)
        rejection = Rejection(
            scope=fields.scope(request.scope),
            thread_id=request.thread_id,
            revision=request.revision,
            detail=fields.rejection_detail(request.detail),
        )
        answer = await self._mender.report(call, rejection, deadline=call.deadline)
        return pb2.ReportRejectedResponse(authorization=self._pack(answer).authorization)

    async def WatchAuthorizations(  # type: ignore[override]  # reads and writes by itself: the chain knows such ones
        self, request_iterator: AsyncIterator[pb2.WatchAuthorizationsRequest], context: Context
    ) -> None:
        """Keep authorizations current."""
        await self._conversations.serve(current_call(), context)

    async def ExplainAuthorization(
        self, request: pb2.ExplainAuthorizationRequest, context: Context
    ) -> pb2.ExplainAuthorizationResponse:
        """Say what would be decided, and why."""
        explanation = await self._authorizer.explain(current_call().caller, _checked(_asked(request)))
        return messages.explanation(explanation)

    async def ListScopes(self, request: pb2.ListScopesRequest, context: Context) -> pb2.ListScopesResponse:
        """List the scopes that the caller may use."""
        size = fields.page_size(request.page_size)
        after = self._page_tokens.read("scopes", fields.page_token(request.page_token))
        rules = [rule for rule in self._authorizer.rules() if rule.name > after]
        page = rules[:size]
        return pb2.ListScopesResponse(
            scopes=[messages.scope_rule(rule) for rule in page],
            next_page_token=self._page_tokens.make("scopes", page[-1].name if len(rules) > size else None),
        )


def _asked(request: pb2.GetAuthorizationRequest | pb2.ExplainAuthorizationRequest) -> AuthorizationRequest:
    return AuthorizationRequest(
        request.scope, request.thread_id, request.identity, request.target_url, request.expected_account_id
    )


def _min_validity(request: pb2.GetAuthorizationRequest) -> float:
    return fields.min_validity(request.min_validity) if request.HasField("min_validity") else 0.0


def _checked(request: AuthorizationRequest) -> AuthorizationRequest:
    """Return a request after checking the form of each of its fields."""
    fields.scope(request.scope)
    fields.thread_id(request.thread_id)
    fields.identity(request.identity)
    fields.target_url(request.target_url)
    fields.id_text(request.expected_account_id, "expected_account_id")
    return request
