"""What an operator sees of identities: what they hold, what is due, what went wrong and is mended."""

import asyncio
from datetime import timedelta
from pathlib import Path

from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import error_reason_pb2

from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.emulator.faults import FaultRule
from tests.support.brokers import Broker, refused, running_broker, running_emulator
from tests.support.clocks import JumpingClock
from tests.support.sources import secret_file
from tests.support.watching import watching

PATH = "/backend-api/codex/models"


async def summary(broker: Broker, name: str = "agent") -> admin_pb2.IdentitySummary:
    """What the status says of one identity."""
    status = (await broker.admin.GetStatus(admin_pb2.GetStatusRequest())).status
    (found,) = [one for one in status.identities if one.name == name]
    return found


async def test_what_an_identity_holds_and_when_it_is_due(tmp_path: Path) -> None:
    """Its bearer and its end, its tasks and their successor, its last use, who watches it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        before = await summary(broker)
        assert before.state == admin_pb2.IDENTITY_STATE_ACTIVE
        assert before.bearer_state == admin_pb2.BEARER_STATE_LIVE
        assert before.bearer_expire_time.seconds
        assert not before.HasField("last_use_time")
        assert before.last_error == error_reason_pb2.ERROR_REASON_UNSPECIFIED
        used = await broker.authorize(thread_id="t1")
        await broker.authorize("control_plane.models")
        async with watching(broker.callers) as watcher:
            await watcher.subscribe("one")
            await watcher.subscribe("two", thread_id="t2")
            await watcher.value()
            await watcher.value()
            after = await summary(broker)
        assert after.active_task_count >= 3
        assert after.last_use_time.seconds == used.mint_time.seconds - used.mint_time.seconds % 60
        assert after.task_replace_time.seconds > used.expire_time.seconds
        assert after.watch_count == 2


async def test_a_login_that_ends_is_seen_coming(tmp_path: Path) -> None:
    """An imported JWT's end is the identity's, and it has no bearer to be asked for."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity(lifetime=timedelta(hours=2))
        await broker.admin.ImportIdentity(
            admin_pb2.ImportIdentityRequest(
                request_id="r",
                name="agent",
                backend="default",
                mode=admin_pb2.IDENTITY_MODE_AGENT,
                identity_jwt=issued.jwt,
            )
        )
        seen = await summary(broker)
        assert seen.HasField("expire_time")
        assert seen.bearer_state == admin_pb2.BEARER_STATE_UNSPECIFIED


async def test_a_refresh_that_fails_is_told_with_when_it_is_tried_again(tmp_path: Path) -> None:
    """While the token lives it is REFRESH_FAILING, then ABSENT; when the issuer is back nothing stands against it."""
    clock = JumpingClock()
    async with running_emulator(access_token_seconds=600.0) as emulator:
        source = {
            "type": "client_credentials",
            "token_url": f"{emulator.url}/oauth/token",
            "client_id": DEFAULT_CLIENT_ID,
            "client_secret_file": secret_file(tmp_path / "secret", DEFAULT_CLIENT_SECRET),
        }
        async with running_broker(tmp_path / "s", emulator, clock=clock, bearer_sources={"login": source}) as broker:
            await broker.admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="r",
                    name="agent",
                    backend="default",
                    mode=admin_pb2.IDENTITY_MODE_BEARER,
                    bearer_source="login",
                )
            )
            await broker.authorize(thread_id="t")
            assert (await summary(broker)).bearer_refresh_time.seconds
            emulator.backend.faults.add(FaultRule.from_json({"action": "status", "operation": "oauth", "count": None}))
            clock.ahead += 600 - 12
            await broker.authorize(thread_id="t")
            failing = await summary(broker)
            assert failing.bearer_state == admin_pb2.BEARER_STATE_REFRESH_FAILING
            assert failing.last_error == error_reason_pb2.ERROR_REASON_ISSUER_DOWN
            assert failing.last_error_time.seconds
            assert failing.retry_time.seconds >= failing.last_error_time.seconds
            clock.ahead += 12
            assert (await refused(broker.authorize(thread_id="t"))).reason == "ISSUER_DOWN"
            assert (await summary(broker)).bearer_state == admin_pb2.BEARER_STATE_ABSENT
            emulator.backend.faults.remove()
            emulator.backend.change(clock_offset_seconds=clock.ahead)
            clock.ahead += 60
            await broker.authorize(thread_id="t")
            mended = await summary(broker)
            assert mended.bearer_state == admin_pb2.BEARER_STATE_LIVE
            assert mended.last_error == error_reason_pb2.ERROR_REASON_UNSPECIFIED


async def test_a_backend_that_is_away_stands_against_an_identity_until_it_is_back(tmp_path: Path) -> None:
    """The registration of the background task is tried again by itself, and then nothing is left of it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        rule = FaultRule.from_json({"action": "status", "operation": "task_register", "count": None})
        emulator.backend.faults.add(rule)
        await broker.create_agent()
        assert (await refused(broker.authorize(thread_id="t"))).reason == "BACKEND_DOWN"
        seen = await summary(broker)
        assert seen.last_error == error_reason_pb2.ERROR_REASON_BACKEND_DOWN
        assert seen.retry_time.seconds
        emulator.backend.faults.remove()
        async with asyncio.timeout(20):
            while (await summary(broker)).last_error:
                await asyncio.sleep(0.05)
        assert (await summary(broker)).active_task_count


async def test_a_route_that_alone_rejects_is_named(tmp_path: Path) -> None:
    """It stands beside an identity that is otherwise well."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        emulator.backend.faults.add(FaultRule.from_json({"action": "route_reject", "path_prefix": PATH, "count": None}))
        for _ in range(2):
            rejected = await broker.authorize("control_plane.models")
            assert (await broker.sees(rejected, PATH)).status_code == 401
            await broker.callers.ReportRejected(
                pb2.ReportRejectedRequest(scope="control_plane.models", revision=rejected.revision, http_status=401)
            )
        seen = await summary(broker)
        assert list(seen.rejected_scopes) == ["control_plane.models"]
        assert seen.state == admin_pb2.IDENTITY_STATE_ACTIVE
        assert (await summary(broker)).bearer_state == admin_pb2.BEARER_STATE_LIVE


async def test_a_status_fits_into_an_answer(tmp_path: Path) -> None:
    """However many identities with long names there are: the first of them, ordered, and the counts of all."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        for number in range(300):
            await broker.admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id=str(number),
                    name=f"{number:03}-".ljust(63, "x"),
                    backend="default",
                    mode=admin_pb2.IDENTITY_MODE_BEARER,
                    static_bearer=admin_pb2.StaticBearer(token=f"token-{number}"),
                )
            )
        status = (await broker.admin.GetStatus(admin_pb2.GetStatusRequest())).status
        names = [one.name for one in status.identities]
        assert names == sorted(names)
        assert 200 <= len(names) <= 250
        assert [(one.state, one.count) for one in status.identity_counts] == [(admin_pb2.IDENTITY_STATE_ACTIVE, 300)]
