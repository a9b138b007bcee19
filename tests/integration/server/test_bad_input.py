"""Bad input over real gRPC: each is a typed error that names its field, and nothing is half written."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from broker.emulator import EmulatorServer
from tests.support.brokers import Broker, refused, running_broker

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAILED = grpc.StatusCode.FAILED_PRECONDITION
LONG = "x" * 10_240

BAD_CALLS: list[tuple[str, Callable[[Broker], Any], str, str | None]] = [
    ("no scope", lambda b: b.authorize(""), "FIELD_INVALID", "scope"),
    ("unknown scope", lambda b: b.authorize("inferense", "t"), "SCOPE_UNKNOWN", "scope"),
    ("child of a scope", lambda b: b.authorize("control_plane.nothing", "t"), "SCOPE_UNKNOWN", "scope"),
    ("scope with a control character", lambda b: b.authorize("inference\x00", "t"), "SCOPE_UNKNOWN", "scope"),
    ("long scope", lambda b: b.authorize(LONG, "t"), "SCOPE_UNKNOWN", "scope"),
    ("no thread", lambda b: b.authorize("inference"), "THREAD_ID_REQUIRED", "thread_id"),
    ("thread with a newline", lambda b: b.authorize("inference", "a\nb"), "THREAD_ID_INVALID", "thread_id"),
    ("thread of spaces", lambda b: b.authorize("inference", "   "), "THREAD_ID_INVALID", "thread_id"),
    ("long thread", lambda b: b.authorize("inference", LONG), "THREAD_ID_INVALID", "thread_id"),
    ("bad identity", lambda b: b.authorize("inference", "t", identity="A/B"), "FIELD_INVALID", "identity"),
    ("long identity", lambda b: b.authorize("inference", "t", identity=LONG), "FIELD_INVALID", "identity"),
    ("unknown identity", lambda b: b.authorize("inference", "t", identity="nobody"), "NOT_ALLOWED", None),
    ("long url", lambda b: b.authorize("inference", "t", target_url=f"https://{LONG}"), "FIELD_INVALID", "target_url"),
    (
        "negative min_validity",
        lambda b: b.authorize("inference", "t", min_validity=Duration(seconds=-1)),
        "FIELD_INVALID",
        "min_validity",
    ),
    (
        "long min_validity",
        lambda b: b.authorize("inference", "t", min_validity=Duration(seconds=61)),
        "MIN_VALIDITY_TOO_LONG",
        None,
    ),
    (
        "other account",
        lambda b: b.authorize("inference", "t", expected_account_id="account-other"),
        "ACCOUNT_MISMATCH",
        None,
    ),
    (
        "bad account",
        lambda b: b.authorize("inference", "t", expected_account_id="a b"),
        "FIELD_INVALID",
        "expected_account_id",
    ),
    ("no target", lambda b: b.callers.RegisterTask(pb2.RegisterTaskRequest()), "FIELD_INVALID", "target"),
    (
        "kind of a thread",
        lambda b: b.callers.RegisterTask(pb2.RegisterTaskRequest(kind=pb2.TASK_KIND_THREAD)),
        "FIELD_INVALID",
        "target",
    ),
    (
        "empty thread",
        lambda b: b.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="")),
        "THREAD_ID_INVALID",
        "thread_id",
    ),
    ("end of nothing", lambda b: b.callers.EndTask(pb2.EndTaskRequest()), "THREAD_ID_REQUIRED", "thread_id"),
    (
        "negative page",
        lambda b: b.callers.ListScopes(pb2.ListScopesRequest(page_size=-1)),
        "FIELD_INVALID",
        "page_size",
    ),
    (
        "forged page token",
        lambda b: b.callers.ListScopes(pb2.ListScopesRequest(page_token="aW5mZXJlbmNl")),
        "PAGE_TOKEN_INVALID",
        "page_token",
    ),
]


@pytest.mark.parametrize(("call", "reason", "field"), [case[1:] for case in BAD_CALLS], ids=[c[0] for c in BAD_CALLS])
async def test_a_bad_call_is_refused_by_its_field(
    broker: Broker, call: Callable[[Broker], Any], reason: str, field: str | None
) -> None:
    """The reason is exact, the field is named, and no task comes of it; a good call passes afterwards."""
    await broker.create_agent()
    refusal = await refused(call(broker))
    assert refusal.reason == reason
    assert list(refusal.violations) == ([] if field is None else [field])
    tasks = (await broker.admin.ListTasks(admin_pb2.ListTasksRequest())).tasks
    assert [task for task in tasks if task.thread_id and reason != "MIN_VALIDITY_TOO_LONG"] == []
    assert (await broker.authorize(thread_id="good")).headers


async def test_several_identities_are_never_guessed_between(broker: Broker) -> None:
    """With two identities and none named there is no answer; with one there is; a deleted one does not count."""
    await broker.create_agent("one")
    assert (await broker.authorize(thread_id="t")).identity == "one"
    await broker.create_agent("two")
    for call in (broker.authorize(thread_id="t"), broker.callers.EndTask(pb2.EndTaskRequest(thread_id="t"))):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason, list(refusal.violations)) == (INVALID, "IDENTITY_REQUIRED", ["identity"])
    assert (await broker.authorize(thread_id="t", identity="two")).identity == "two"
    await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="one"))
    assert (await broker.authorize(thread_id="t")).identity == "two"


@pytest.mark.parametrize("scope", ["inference", "control_plane.usage", "bootstrap"])
async def test_a_target_that_only_looks_like_the_backend_gets_no_header(broker: Broker, scope: str) -> None:
    """Whatever stands around the host, and whatever the scope: no header of any kind; the backend itself gets them."""
    await broker.create_agent()
    url = broker.emulator.url
    host, port = url.removeprefix("http://").split(":")
    for trick in (
        f"http://{host}.evil.example:{port}/",
        f"http://{host}:{port}@evil.example/",
        f"http://evil.example#@{host}:{port}",
        f"http://evil.example\\@{host}:{port}/",
        f"http://user@{host}:{port}/",
        f"http://{host}:{port}\t/",
        f" http://{host}:{port}/",
        f"http://{host}:{int(port) + 1}/",
        f"http://{host}/",
        f"https://{host}:{port}/",
        f"http://localhost:{port}/",
        f"http://2130706433:{port}/",
        f"http://127.1:{port}/",
        f"http://{host}.:{port}/",
        f"http://[::1]:{port}/",
        f"http://[::1%25lo]:{port}/",
        f"http://{host}:{port}{port}/",
        f"//{host}:{port}/",
        f"{host}:{port}",
        "/backend-api",
        "https://chatgpt.com/backend-api",
        "javascript:alert(1)",
    ):
        refusal = await refused(broker.authorize(scope, "t", target_url=trick))
        assert (trick, refusal.code, refusal.reason) == (trick, FAILED, "TARGET_NOT_ALLOWED")
    assert (await broker.authorize(scope, "t", target_url=f"{url}/backend-api/x?y#z".replace("#z", ""))).headers


# --- operators --------------------------------------------------------------------------------------------------------


def create(broker: Broker, **changes: Any) -> Any:
    """Call CreateIdentity with a good order, changed."""
    token = broker.emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
    order: dict[str, Any] = {
        "request_id": "r-bad",
        "name": "new",
        "backend": "default",
        "mode": admin_pb2.IDENTITY_MODE_AGENT,
        "static_bearer": admin_pb2.StaticBearer(token=token),
    }
    if "bearer_source" in changes or changes.pop("bare", False):
        del order["static_bearer"]
    return broker.admin.CreateIdentity(admin_pb2.CreateIdentityRequest(**(order | changes)))


BAD_ORDERS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"request_id": ""}, "FIELD_INVALID", "request_id"),
    ({"request_id": LONG}, "FIELD_INVALID", "request_id"),
    ({"name": ""}, "FIELD_INVALID", "name"),
    ({"name": "../etc"}, "FIELD_INVALID", "name"),
    ({"name": "Agent"}, "FIELD_INVALID", "name"),
    ({"name": "a" * 64}, "FIELD_INVALID", "name"),
    ({"name": "a\x1b[2J"}, "FIELD_INVALID", "name"),
    ({"backend": "nowhere"}, "FIELD_INVALID", "backend"),
    ({"mode": admin_pb2.IDENTITY_MODE_UNSPECIFIED}, "FIELD_INVALID", "mode"),
    ({"mode": 77}, "FIELD_INVALID", "mode"),
    ({"account_id": "a b"}, "FIELD_INVALID", "account_id"),
    ({"account_id": LONG}, "FIELD_INVALID", "account_id"),
    ({"user_id": "a\n"}, "FIELD_INVALID", "user_id"),
    ({"comment": "a\nb"}, "FIELD_INVALID", "comment"),
    ({"bearer_source": "nowhere"}, "FIELD_INVALID", "bearer_source"),
    ({"static_bearer": admin_pb2.StaticBearer(token="a b")}, "FIELD_INVALID", "static_bearer.token"),
    ({"bare": True}, "BEARER_UNAVAILABLE", None),
    ({"bare": True, "mode": admin_pb2.IDENTITY_MODE_BEARER}, "FIELD_INVALID", "bearer"),
]


async def test_a_bad_order_makes_no_identity(broker: Broker) -> None:
    """Each is refused by its field, nothing is stored or asked of the backend, and the request id stays free."""
    for changes, reason, field in BAD_ORDERS:
        refusal = await refused(create(broker, **changes))
        assert (changes, refusal.reason) == (changes, reason)
        assert list(refusal.violations) == ([] if field is None else [field])
    everything = admin_pb2.ListIdentitiesRequest(states=list(admin_pb2.IdentityState.values())[1:])
    assert list((await broker.admin.ListIdentities(everything)).identities) == []
    assert broker.registrations("agent_register") == 0
    assert (await create(broker)).identity.name == "new"


async def test_a_request_id_stands_for_one_content(broker: Broker) -> None:
    """The same again answers the same identity; other content under it is refused by its field and changes nothing."""
    token = admin_pb2.StaticBearer(token=broker.emulator.backend.mint_token().access_token)
    first = (await create(broker, static_bearer=token)).identity
    assert (await create(broker, static_bearer=token)).identity.id == first.id
    for changes in ({"name": "other"}, {"fedramp": True}, {"static_bearer": admin_pb2.StaticBearer(token="other")}):
        refusal = await refused(create(broker, **({"static_bearer": token} | changes)))
        assert (refusal.code, refusal.reason, list(refusal.violations)) == (
            INVALID,
            "REQUEST_ID_REUSED",
            ["request_id"],
        )
    refusal = await refused(create(broker, request_id="r-2"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTITY_EXISTS")
    assert [one.id for one in (await broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest())).identities] == [
        first.id
    ]


async def test_a_change_needs_a_mask_and_the_state_it_was_read_in(broker: Broker) -> None:
    """An unknown or empty mask and a stale etag change nothing; every method with an etag looks at it."""
    before = await broker.create_agent()
    for paths in ([], ["name"], ["assertions_enabled", "backend"], ["nothing"], ["expire_time.seconds"]):
        change = admin_pb2.UpdateIdentityRequest(
            identity=admin_pb2.Identity(name="agent"), update_mask=FieldMask(paths=paths)
        )
        refusal = await refused(broker.admin.UpdateIdentity(change))
        assert (refusal.code, refusal.reason, list(refusal.violations)) == (INVALID, "FIELD_INVALID", ["update_mask"])
    good = admin_pb2.UpdateIdentityRequest(
        identity=admin_pb2.Identity(name="agent", assertions_enabled=False),
        update_mask=FieldMask(paths=["assertions_enabled"]),
        etag=before.etag,
    )
    after = (await broker.admin.UpdateIdentity(good)).identity
    assert not after.assertions_enabled
    assert after.etag != before.etag
    for call in (
        broker.admin.UpdateIdentity(good),
        broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent", etag=before.etag)),
        broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent", etag=before.etag)),
        broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent", etag=before.etag)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "GENERATION_CHANGED")
    assert (await broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name="agent"))).identity.etag == after.etag


async def test_what_does_not_exist_is_named_to_operators(broker: Broker) -> None:
    """NOT_FOUND with the resource, for each method that names one."""
    for call, kind, name in (
        (broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name="nobody")), "identity", "nobody"),
        (broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="nobody")), "identity", "nobody"),
        (broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="nobody")), "identity", "nobody"),
        (broker.admin.ListTasks(admin_pb2.ListTasksRequest(identity="nobody")), "identity", "nobody"),
        (broker.admin.GetTask(admin_pb2.GetTaskRequest(id="none")), "task", "none"),
        (broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id="none")), "task", "none"),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, f"{kind.upper()}_NOT_FOUND")
        (resource,) = [one for one in refusal.details if one.DESCRIPTOR.name == "ResourceInfo"]
        assert (resource.resource_type, resource.resource_name) == (kind, name)


async def test_pages_go_on_where_they_were_and_belong_to_their_list(broker: Broker) -> None:
    """Walking gives each row once; a token of another list or another filter is refused."""
    names = [f"agent-{number}" for number in range(5)]
    for name in names:
        await broker.create_agent(name)
    request = admin_pb2.ListIdentitiesRequest(page_size=2)
    seen: list[str] = []
    tokens = []
    while True:
        page = await broker.admin.ListIdentities(request)
        assert len(page.identities) <= 2
        seen += [one.name for one in page.identities]
        if not page.next_page_token:
            break
        tokens.append(page.next_page_token)
        request.page_token = page.next_page_token
    assert seen == names
    for call in (
        broker.callers.ListScopes(pb2.ListScopesRequest(page_token=tokens[0])),
        broker.admin.ListTasks(admin_pb2.ListTasksRequest(page_token=tokens[0])),
        broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest(page_token=tokens[0], backend="default")),
        broker.admin.ListIdentities(
            admin_pb2.ListIdentitiesRequest(page_token=tokens[0], states=[admin_pb2.IDENTITY_STATE_ACTIVE])
        ),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason, list(refusal.violations)) == (
            INVALID,
            "PAGE_TOKEN_INVALID",
            ["page_token"],
        )


async def test_a_list_that_does_not_fit_into_an_answer_goes_on_in_the_next(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """However many rows are asked for, an answer stays below what the server sends; no row is left out or twice."""
    sections = {"limits": {"cached_threads": 1000}}
    async with running_broker(tmp_path / "state", emulator, **sections) as broker:
        names = [f"{'n' * 55}-{number:03}" for number in range(110)]
        for name in names:
            await create(
                broker,
                request_id=name[-64:],
                name=name,
                mode=admin_pb2.IDENTITY_MODE_BEARER,
                account_id="a" * 128,
                user_id="u" * 128,
                static_bearer=admin_pb2.StaticBearer(token="token"),
            )
        request = admin_pb2.ListIdentitiesRequest(page_size=1000)
        seen: list[str] = []
        pages = 0
        while True:
            page = await broker.admin.ListIdentities(request)
            pages += 1
            seen += [one.name for one in page.identities]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert seen == names
        assert pages > 1
        status = (await broker.admin.GetStatus(admin_pb2.GetStatusRequest())).status
        assert len(status.identities) > 0
