"""Health of both listeners through a broker's life, and reflection where it is switched on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from broker.app import Application
from broker.emulator import EmulatorServer
from broker.errors import DrainingError
from broker.model import Caller
from broker.rpc.interceptors import Chain, Gate
from broker.rpc.server import ADMIN_SERVICE, CALLER_SERVICE, Listener
from broker.store import Store
from broker.telemetry import Metrics
from broker.upkeep import Upkeep
from tests.support.brokers import Broker, dev_config, eventually, guarded_channel, refused, running_broker
from tests.support.http_faults import RecordingClock
from tests.support.stores import FaultyStore

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def health_of(address: str) -> AsyncIterator["health_pb2_grpc.HealthAsyncStub"]:
    """Ask for health as a probe does: without any metadata."""
    async with grpc.aio.insecure_channel(f"ipv4:{address}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def checked(address: str, service: str) -> int:
    """Return the status of a service."""
    async with health_of(address) as health:
        return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_each_listener_says_how_its_service_is(broker: Broker) -> None:
    """The name of the service and the empty name of the whole are SERVING; other names are unknown."""
    for address, service, other in (
        (broker.app.caller_address, CALLER_SERVICE, ADMIN_SERVICE),
        (broker.app.admin_address, ADMIN_SERVICE, CALLER_SERVICE),
    ):
        assert await checked(address, "") == await checked(address, service) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await checked(address, other)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_probe_needs_no_metadata_and_sees_no_more_than_health(broker: Broker) -> None:
    """Health passes without the guard header; the other services of the same listener do not."""
    async with grpc.aio.insecure_channel(f"ipv4:{broker.app.caller_address}") as channel:
        refusal = await refused(channel.unary_unary(f"/{CALLER_SERVICE}/ListScopes")(b""))
    assert refusal.reason == "GUARD_HEADER_MISSING"
    assert await checked(broker.app.caller_address, "") == SERVING


async def test_nothing_is_served_before_it_is_warm() -> None:
    """A listener that is bound and not yet told otherwise says NOT_SERVING, and refuses calls with WARMING_UP."""
    gate = Gate()
    chain = Chain(
        caller=Caller("local", "loopback"), deadline_seconds=1.0, gate=gate, metrics=Metrics(), clock=RecordingClock()
    )
    listener = Listener(("127.0.0.1:0",), chain, services=(CALLER_SERVICE,), tls=None, reflection_on=True)
    await listener.start()
    (address,) = listener.addresses
    try:
        for service in ("", CALLER_SERVICE):
            assert await checked(address, service) == NOT_SERVING
        async with guarded_channel(address) as channel:
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            refusal = await refused(anext(aiter(reflection.ServerReflectionInfo(iter(asked)))))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WARMING_UP")
            assert refusal.retry_seconds is not None
            gate.open()
            assert await anext(aiter(reflection.ServerReflectionInfo(iter(asked))))
    finally:
        await listener.stop(0)


async def test_health_is_the_first_to_say_that_a_broker_stops(tmp_path: Path, emulator: EmulatorServer) -> None:
    """While balancers notice, a watcher sees NOT_SERVING and calls are still answered; then they are refused."""
    app = Application(dev_config(tmp_path / "state", emulator.url, broker=broker_section(tmp_path)))
    await app.start()
    async with health_of(app.caller_address) as health, guarded_channel(app.caller_address) as channel:
        list_scopes = channel.unary_unary(f"/{CALLER_SERVICE}/ListScopes")
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", CALLER_SERVICE)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        async with httpx.AsyncClient(trust_env=False) as client:
            ready = f"http://{app.http_address}/readyz"
            assert (await client.get(ready)).status_code == 200
            stopping = asyncio.ensure_future(app.stop())
            for watch in watches:
                assert (await watch.read()).status == NOT_SERVING
            assert (await client.get(ready)).status_code == 503
        await list_scopes(b"")
        for watch in watches:
            watch.cancel()
        await stopping


def broker_section(tmp_path: Path) -> dict[str, object]:
    """Return the settings of a broker that gives balancers a moment to notice."""
    return {"state_dir": str(tmp_path / "state"), "drain_seconds": 0.5}


async def test_a_watcher_of_health_does_not_hold_up_the_end(tmp_path: Path, emulator: EmulatorServer) -> None:
    """A client that watches health for ever is told NOT_SERVING and then let go, long before the grace is over."""
    settings = {"state_dir": str(tmp_path / "state"), "drain_grace_seconds": 600}
    app = Application(dev_config(tmp_path / "state", emulator.url, broker=settings))
    await app.start()
    async with health_of(app.caller_address) as health, guarded_channel(app.caller_address) as channel:
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        talk = reflection.ServerReflectionInfo()
        await talk.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await talk.read()
        async with asyncio.timeout(30):
            await app.stop()
        assert (await watch.read()).status == NOT_SERVING


async def test_the_loops_begin_once_it_serves(
    tmp_path: Path, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever there is to preload, to follow and to prune, nobody waits for SERVING because of it."""
    app = Application(dev_config(tmp_path / "state", emulator.url))
    served: list[bool] = []

    def start(upkeep: Upkeep) -> None:
        served.append(app._readiness.ready)
        real(upkeep)

    real = Upkeep.start
    monkeypatch.setattr(Upkeep, "start", start)
    await app.start()
    await app.stop()
    assert served == [True]


async def test_a_call_in_flight_is_waited_for(
    tmp_path: Path, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment that streams get does not end a call, which has the whole grace."""
    monkeypatch.setattr("broker.rpc.server._LAST_ANSWERS_SECONDS", 0.1)
    stores: list[FaultyStore] = []

    def wrap(store: Store) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    app = Application(dev_config(tmp_path / "state", emulator.url), wrap_store=wrap)
    await app.start()
    async with guarded_channel(app.admin_address) as channel:
        gate = stores[0].hold("identities")
        held = asyncio.ensure_future(channel.unary_unary(f"/{ADMIN_SERVICE}/ListIdentities")(b""))
        await eventually(lambda: stores[0].calls["identities"] > 0)
        stopping = asyncio.ensure_future(app.stop())
        # Nothing happens in this time unless the call is cut.
        assert await asyncio.wait({held, stopping}, timeout=0.4) == (set(), {held, stopping})
        gate.set()
        await held
        await stopping


async def test_draining_refuses_new_calls_with_a_reason(broker: Broker) -> None:
    """On a connection that is open already, a new call is told to go to another replica."""
    broker.app._gate.close()
    for call in (broker.authorize(), broker.channels[1].unary_unary(f"/{ADMIN_SERVICE}/GetStatus")(b"")):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, DrainingError.reason)
        assert refusal.retry_seconds is not None


async def reflected(address: str) -> set[str]:
    """Return the services that reflection lists."""
    async with guarded_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        async for answer in answers:
            return {service.name for service in answer.list_services_response.service}
    raise AssertionError("no answer")


async def test_reflection_lists_what_the_listener_serves(broker: Broker) -> None:
    """Each listener shows its own service, health and reflection itself."""
    common = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert await reflected(broker.app.caller_address) == {CALLER_SERVICE, *common}
    assert await reflected(broker.app.admin_address) == {ADMIN_SERVICE, *common}


async def test_reflection_is_off_unless_it_is_switched_on(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Nobody learns the shape of the API from a broker that was not told to show it."""
    state_dir = str(tmp_path / "state")
    async with running_broker(
        tmp_path / "state", emulator, broker={"state_dir": state_dir, "reflection": False}
    ) as broker:
        for address in (broker.app.caller_address, broker.app.admin_address):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await reflected(address)
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
