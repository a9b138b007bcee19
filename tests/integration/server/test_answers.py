"""What an authorization says: its headers, its times, and the names that stay or change with what they name."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from broker.authorization import AuthorizationRequest
from broker.clock import SystemClock
from broker.emulator import EmulatorServer
from broker.emulator.accounts import Account
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import Caller, ScopeName, ThreadId
from broker.rpc.interceptors import Call
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, eventually, refused, running_broker

PER_THREAD = "codex-2026-05"
"""A profile with an upstream task per thread."""


class StandingClock(SystemClock):
    """The machine's clock, whose wall time stands until it is moved."""

    def __init__(self) -> None:
        self.wall = float(int(super().now())) + 0.25

    def now(self) -> float:
        """Return where the wall time stands."""
        return self.wall


@pytest.fixture
def clock() -> StandingClock:
    """Make a clock that stands."""
    return StandingClock()


@pytest.fixture
async def standing(tmp_path: Path, emulator: EmulatorServer, clock: StandingClock) -> AsyncIterator[Broker]:
    """Run a broker with an agent, where time stands."""
    async with running_broker(tmp_path / "state", emulator, clock=clock) as broker:
        await broker.create_agent()
        yield broker


def seconds(moment: Timestamp) -> float:
    """Return the Unix seconds of a time."""
    return moment.seconds + moment.nanos / 1e9


def header_names(authorization: pb2.Authorization) -> list[tuple[str, bool]]:
    """Return the names of the headers and whether each is sensitive."""
    return [(header.name, header.sensitive) for header in authorization.headers]


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["inference", "control_plane.usage", "bootstrap"])
async def test_a_backend_takes_the_whole_set(broker: Broker, scope: str) -> None:
    """The account is named beside the credential, only the credential is sensitive, and the emulator verifies it."""
    identity = await broker.create_agent()
    authorization = await broker.authorize(scope, "t")
    assert header_names(authorization) == [("authorization", True), ("chatgpt-account-id", False)]
    assert authorization.headers[1].value == identity.account_id == "account-emulator"
    assert (await broker.sees(authorization)).json()["verdict"] == "verified"


@pytest.mark.parametrize("scope", ["inference", "bootstrap"])
async def test_a_fedramp_identity_says_so(broker: Broker, scope: str) -> None:
    """The third header is there when the identity has it, and a backend that demands it is content."""
    account = Account(account_id="account-gov", chatgpt_user_id="user-gov", fedramp=True)
    token = broker.emulator.backend.mint_token(account=account, lifetime=timedelta(days=1)).access_token
    await broker.create_agent(fedramp=True, static_bearer=admin_pb2.StaticBearer(token=token))
    authorization = await broker.authorize(scope, "t")
    assert header_names(authorization)[2:] == [("x-openai-fedramp", False)]
    assert authorization.headers[2].value == "true"
    assert (await broker.sees(authorization)).json()["verdict"] == "verified"


async def test_kind_reason_and_fallback_tell_why(broker: Broker) -> None:
    """Each reason of this version once: a fallback names what it fell back from, and nothing else does."""
    await broker.create_agent("agent")
    await broker.create_agent("off", assertions_enabled=False)
    token = broker.emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
    await broker.admin.CreateIdentity(
        admin_pb2.CreateIdentityRequest(
            request_id="bearer",
            name="bearer",
            backend="default",
            mode=admin_pb2.IDENTITY_MODE_BEARER,
            static_bearer=admin_pb2.StaticBearer(token=token),
        )
    )
    seen = {}
    for identity, scope in (
        ("agent", "inference"),
        ("agent", "bootstrap"),
        ("bearer", "inference"),
        ("bearer", "control_plane.usage"),
        ("off", "control_plane.usage"),
    ):
        answer = await broker.authorize(scope, "t", identity=identity)
        seen[identity, scope] = (
            pb2.CredentialKind.Name(answer.kind).removeprefix("CREDENTIAL_KIND_"),
            pb2.DecisionReason.Name(answer.reason).removeprefix("DECISION_REASON_"),
            pb2.CredentialKind.Name(answer.fallback_from).removeprefix("CREDENTIAL_KIND_"),
        )
        assert answer.identity == identity
    assert seen == {
        ("agent", "inference"): ("AGENT_ASSERTION", "TASK_ASSERTION", "UNSPECIFIED"),
        ("agent", "bootstrap"): ("BEARER", "SCOPE_IS_BEARER_ONLY", "UNSPECIFIED"),
        ("bearer", "inference"): ("BEARER", "IDENTITY_IS_BEARER", "UNSPECIFIED"),
        ("bearer", "control_plane.usage"): ("BEARER", "IDENTITY_IS_BEARER", "UNSPECIFIED"),
        ("off", "control_plane.usage"): ("BEARER", "FEATURE_DISABLED", "AGENT_ASSERTION"),
    }
    assert (await refused(broker.authorize("inference", "t", identity="off"))).reason == "FEATURE_DISABLED"


# --- one signature a second -------------------------------------------------------------------------------------------


async def test_within_a_second_the_same_bytes_and_one_signature(standing: Broker, clock: StandingClock) -> None:
    """However many calls and threads of one task: signed once a second, and anew in the next."""
    signed = standing.app.metrics.signatures.labels()
    first = await standing.authorize(thread_id="a")
    before = signed.value
    clock.wall += 0.7
    for thread in ("a", "b", "a"):
        assert (await standing.authorize(thread_id=thread)).headers == first.headers
    assert signed.value == before
    clock.wall += 0.1
    later = await standing.authorize(thread_id="a")
    assert later.headers[0] != first.headers[0]
    assert signed.value == before + 1
    assert seconds(later.mint_time) == seconds(first.mint_time) + 1


async def test_server_time_is_that_of_each_answer(standing: Broker, clock: StandingClock) -> None:
    """Callers count from it, so it is fresh also in an answer that is handed out again."""
    for moment in (0.0, 0.1, 0.6):
        start = clock.wall
        clock.wall += moment
        answer = await standing.authorize(thread_id="a")
        assert seconds(answer.server_time) == pytest.approx(start + moment, abs=1e-6)
        assert int(seconds(answer.mint_time)) == int(clock.wall)
        clock.wall = start


async def test_an_answer_that_had_to_wait_is_minted_after_the_wait(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Time that a registration took is not taken from the life of what is handed out."""
    clock = StandingClock()
    async with running_broker(tmp_path / "state", emulator, clock=clock) as broker:
        emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER, count=None))
        await broker.create_agent()
        call = broker.callers.GetAuthorization(pb2.GetAuthorizationRequest(scope="inference", thread_id="t"))
        await eventually(
            lambda: (
                broker.app.metrics.rpc_started.labels(
                    "unary", "credentialbroker.v1.CredentialBroker", "GetAuthorization"
                ).value
                == 1
            )
        )
        await eventually(lambda: broker.registrations() == 1)
        clock.wall += 7
        emulator.backend.faults.remove()
        answer = (await call).authorization
        assert seconds(answer.mint_time) == int(clock.wall)
        assert seconds(answer.expire_time) == int(clock.wall) + 60
        assert assertion_of(answer).timestamp.endswith("Z")


# --- times ------------------------------------------------------------------------------------------------------------


async def test_an_assertion_lives_as_long_as_its_profile_says(standing: Broker) -> None:
    """60 s from when it was minted, to be refreshed about half-way, with jitter."""
    refreshes = set()
    for thread in range(8):
        answer = await standing.authorize(thread_id=f"t{thread}")
        mint = seconds(answer.mint_time)
        assert seconds(answer.expire_time) - mint == 60
        refreshes.add(seconds(answer.refresh_time) - mint)
    assert all(27 <= one <= 33 for one in refreshes)
    assert len(refreshes) > 1


@asynccontextmanager
async def configured(
    tmp_path: Path, emulator: EmulatorServer, clock: StandingClock, **sections: Any
) -> AsyncIterator[Broker]:
    """Run a broker with other settings, and an agent."""
    async with running_broker(tmp_path / "state", emulator, clock=clock, **sections) as broker:
        await broker.create_agent()
        yield broker


async def test_no_answer_is_good_for_longer_than_the_longest_lease(
    tmp_path: Path, emulator: EmulatorServer, clock: StandingClock
) -> None:
    """`max_lease_seconds` bounds bearers, which live for a day here, and assertions."""
    settings = {"state_dir": str(tmp_path / "state"), "max_lease_seconds": 40, "grant_bootstrap": True}
    async with configured(tmp_path, emulator, clock, broker=settings) as broker:
        for scope in ("inference", "bootstrap"):
            answer = await broker.authorize(scope, "t")
            assert seconds(answer.expire_time) - seconds(answer.mint_time) == 40


async def test_a_scope_may_ask_for_less(tmp_path: Path, emulator: EmulatorServer, clock: StandingClock) -> None:
    """`max_lifetime_seconds` of the scope bounds its answers; `min_lifetime_seconds` refuses those that are shorter."""
    scopes = {
        "inference": {"max_lifetime_seconds": 20},
        "bootstrap": {"max_lifetime_seconds": 30},
        "control_plane.usage": {"min_lifetime_seconds": 90},
    }
    async with configured(tmp_path, emulator, clock, scopes=scopes) as broker:
        for scope, lifetime in (("inference", 20), ("bootstrap", 30)):
            answer = await broker.authorize(scope, "t")
            assert seconds(answer.expire_time) - seconds(answer.mint_time) == lifetime
        assert (await refused(broker.authorize("control_plane.usage"))).reason == "MIN_VALIDITY_TOO_LONG"


async def test_an_answer_ends_with_its_bearer_and_with_its_identity(standing: Broker, clock: StandingClock) -> None:
    """A bearer's end less a margin of 5 s, the identity's end as it is; after them nothing is handed out."""
    token = standing.emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
    end = Timestamp(seconds=int(clock.wall) + 100)
    await standing.create_agent("short", static_bearer=admin_pb2.StaticBearer(token=token, expire_time=end))
    answer = await standing.authorize("bootstrap", identity="short")
    assert seconds(answer.expire_time) == end.seconds - 5
    assert seconds(answer.offline_serving_until_time) <= end.seconds - 5

    ends = Timestamp(seconds=int(clock.wall) + 30)
    await standing.admin.UpdateIdentity(
        admin_pb2.UpdateIdentityRequest(
            identity=admin_pb2.Identity(name="agent", expire_time=ends), update_mask=FieldMask(paths=["expire_time"])
        )
    )
    for scope in ("inference", "bootstrap"):
        assert seconds((await standing.authorize(scope, "t", identity="agent")).expire_time) == ends.seconds
    clock.wall = ends.seconds
    assert (await refused(standing.authorize(thread_id="t", identity="agent"))).reason == "REAUTH_REQUIRED"
    clock.wall = end.seconds - 5
    assert (await refused(standing.authorize("bootstrap", identity="short"))).reason == "REAUTH_REQUIRED"


async def test_what_is_asked_for_at_least_is_given_or_refused(standing: Broker) -> None:
    """A validity that fits is given; the longest that can be is named when it does not."""
    assert (await standing.authorize(thread_id="t", min_validity=Duration(seconds=59))).headers
    refusal = await refused(standing.authorize(thread_id="t", min_validity=Duration(seconds=61)))
    assert refusal.reason == "MIN_VALIDITY_TOO_LONG"
    (info,) = [one for one in refusal.details if one.DESCRIPTOR.name == "ErrorInfo"]
    longest = int(info.metadata["max_seconds"])
    assert (await standing.authorize(thread_id="t", min_validity=Duration(seconds=longest))).headers


# --- revision and connection tag --------------------------------------------------------------------------------------


async def test_a_revision_names_the_credential_and_not_its_second(standing: Broker, clock: StandingClock) -> None:
    """Two assertions of one task an hour apart carry the same revision and connection tag."""
    first = await standing.authorize(thread_id="t")
    clock.wall += 3600
    later = await standing.authorize(thread_id="t")
    assert later.headers != first.headers
    assert (later.revision, later.connection_tag) == (first.revision, first.connection_tag)


async def test_names_say_nothing_and_are_short(broker: Broker) -> None:
    """ASCII, at most 128 bytes, and the task id is in neither, however they are read."""
    await broker.create_agent()
    answer = await broker.authorize(thread_id="t")
    task_id = assertion_of(answer).task_id
    for name in (answer.revision, answer.connection_tag):
        assert name.isascii()
        assert 0 < len(name) <= 128
        readings = [name.encode(), base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))]
        for reading in readings:
            for form in (task_id.encode(), base64.b64encode(task_id.encode()), task_id.encode().hex().encode()):
                assert form not in reading


async def test_names_survive_a_restart(tmp_path: Path, emulator: EmulatorServer) -> None:
    """They are worked out from what is stored, with keys that are stored."""
    names = []
    for attempt in range(2):
        async with running_broker(tmp_path / "state", emulator) as broker:
            if attempt == 0:
                await broker.create_agent()
            answers = [await broker.authorize(scope, "t") for scope in ("inference", "bootstrap")]
            names.append([(answer.revision, answer.connection_tag) for answer in answers])
    assert names[0] == names[1]
    assert len({one for pair in names[0] for one in pair}) == 4, "kinds have names of their own"


async def test_names_change_with_the_generation(broker: Broker) -> None:
    """What was handed out before an operator disabled the identity is never taken for what comes after."""
    await broker.create_agent()
    before = await broker.authorize(thread_id="t")
    await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
    await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
    after = await broker.authorize(thread_id="t")
    assert after.revision != before.revision
    assert after.connection_tag != before.connection_tag


async def test_names_change_with_the_upstream_task(broker: Broker) -> None:
    """A task that replaces another has another version, so its answers have other names."""
    await broker.create_agent()
    before = await broker.authorize(thread_id="t")
    tasks = (await broker.admin.ListTasks(admin_pb2.ListTasksRequest())).tasks
    (task,) = [task for task in tasks if task.thread_id == "t"]
    await broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=task.id, force=True))
    await broker.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="t"))
    after = await broker.authorize(thread_id="t")
    assert assertion_of(after).task_id != assertion_of(before).task_id
    assert after.revision != before.revision
    assert after.connection_tag != before.connection_tag


async def test_identities_have_names_of_their_own(broker: Broker) -> None:
    """Nothing of one identity is equal to that of another."""
    for name in ("one", "two"):
        await broker.create_agent(name)
    one, two = [await broker.authorize(thread_id="t", identity=name) for name in ("one", "two")]
    assert one.revision != two.revision
    assert one.connection_tag != two.connection_tag


async def test_a_revision_is_bound_to_the_principal_and_a_connection_tag_is_not(broker: Broker) -> None:
    """Another caller cannot use the revision it saw, while pooled connections may be shared."""
    await broker.create_agent()
    request = AuthorizationRequest(
        scope=ScopeName("inference"),
        thread_id=ThreadId("t"),
        identity=None,
        target_url=None,
        expected_account_id=None,
    )
    answers = []
    for principal in ("one", "two", "one"):
        call = Call(iter(["r"]))
        call.caller = Caller(principal, "test")
        soon = SystemClock().monotonic() + 5
        answer = await broker.app.authorizer.authorize(call, request, min_validity=0.0, deadline=soon)
        answers.append(answer.authorization)
    revisions = [answer.revision for answer in answers]
    assert revisions[0] == revisions[2] != revisions[1]
    assert len({answer.connection_tag for answer in answers}) == 1
