"""Both clients against a small broker on loopback: who waits for whom, forks, ends, leaks, and what is printed."""

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from credentialbroker.aio import AsyncClient
from credentialbroker.client import Client
from credentialbroker.errors import BrokerError, ClosedError

from tests.support.brokers import eventually
from tests.unit.client.conftest import SmallBroker, authorization


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def files_open() -> int:
    """Count the open files and sockets of this process."""
    files = Path("/proc/self/fd")
    if not files.is_dir():
        pytest.skip("this system does not show open files")
    return len(list(files.iterdir()))


def test_fifty_threads_make_one_call(broker: SmallBroker) -> None:
    """All wait for the one answer, and get the same."""
    broker.gate.clear()
    with Client(broker.address) as client, ThreadPoolExecutor(50) as pool:
        waiting = [pool.submit(client.authorization, "inference", "t") for _ in range(50)]
        until(lambda: len(broker.calls) == 1)
        broker.gate.set()
        found = {id(each.result(10)) for each in waiting}
        assert (len(found), len(broker.calls)) == (1, 1)


def test_who_gives_up_gives_up_alone(broker: SmallBroker) -> None:
    """One thread's short deadline passes; the other still gets the answer of the same call."""
    broker.gate.clear()
    with Client(broker.address) as client, ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.authorization, "inference", "t")
        until(lambda: len(broker.calls) == 1)
        with pytest.raises(BrokerError) as failed:
            client.authorization("inference", "t", timeout=0.05)
        assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        broker.gate.set()
        assert patient.result(10).revision == "r1"
    assert len(broker.calls) == 1


async def test_cancelling_a_task_cancels_nothing_of_another(broker: SmallBroker) -> None:
    """The first task, which began the call, is cancelled; the second gets its answer."""
    broker.gate.clear()
    async with AsyncClient(broker.address) as client:
        first, second = (asyncio.create_task(client.authorization("inference", "t")) for _ in range(2))
        await eventually(lambda: len(broker.calls) == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        broker.gate.set()
        assert (await second).revision == "r1"
    assert len(broker.calls) == 1


def test_closing_ends_who_waits(broker: SmallBroker) -> None:
    """Both who waits for an answer and who waits on a connection are told; later calls are refused."""
    client = Client(broker.address)
    connection = client.connection("inference", "t")
    broker.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(client.authorization, "inference", "other")
        watching = pool.submit(connection.wait_changed)
        until(lambda: len(broker.calls) == 2)
        client.close()
        client.close()
        for each in (asking, watching):
            with pytest.raises(ClosedError):
                each.result(5)
    with pytest.raises(ClosedError):
        client.authorization("inference", "t")


async def test_closing_ends_tasks_that_wait(broker: SmallBroker) -> None:
    """The same for asyncio."""
    client = AsyncClient(broker.address)
    connection = await client.connection("inference", "t")
    broker.gate.clear()
    asking = asyncio.create_task(client.authorization("inference", "other"))
    watching = asyncio.create_task(connection.wait_changed())
    await eventually(lambda: len(broker.calls) == 2)
    await client.close()
    await client.close()
    assert [type(each) for each in await asyncio.gather(asking, watching, return_exceptions=True)] == [ClosedError] * 2
    with pytest.raises(ClosedError):
        await client.authorization("inference", "t")


def test_a_hundred_clients_leave_nothing(broker: SmallBroker) -> None:
    """No thread and no file of a closed client is left."""

    def one() -> None:
        with Client(broker.address) as client:
            client.authorization("inference", "t")
            until(lambda: client.state().watching)

    one()
    before = threading.active_count(), files_open()
    for _ in range(100):
        one()
    until(lambda: threading.active_count() <= before[0] and files_open() <= before[1] + 2)


async def test_a_hundred_async_clients_leave_nothing(broker: SmallBroker) -> None:
    """No task and no file of a closed client is left."""

    async def one() -> None:
        async with AsyncClient(broker.address) as client:
            await client.authorization("inference", "t")
            await eventually(lambda: client.state().watching)

    await one()
    before = files_open()
    for _ in range(100):
        await one()
    await eventually(lambda: len(asyncio.all_tasks()) == 1 and files_open() <= before + 2)


FORK = """
import os, sys, time
from credentialbroker.client import Client

client = Client(sys.argv[1])
held = client.authorization("inference", "held")
while not client.state().watching:
    time.sleep(0.01)
for number in range(5):
    child = os.fork()
    if not child:
        assert client.authorization("inference", "held") is held
        assert client.authorization("inference", f"new{number}", timeout=5).revision
        end = time.monotonic() + 5
        while not client.state().watching and time.monotonic() < end:
            time.sleep(0.01)
        os._exit(0 if client.state().watching else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.authorization("inference", f"parent{number}", timeout=5).revision
assert client.state().watching
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_client_goes_on_in_a_child_made_by_fork() -> None:
    """With what was held, new calls and a stream of its own; the parent's stream stays up."""
    import sys

    from tests.support.scripted_broker import ScriptedBroker

    async with ScriptedBroker() as broker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FORK, broker.address, stderr=asyncio.subprocess.PIPE
        )
        _, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaints.decode()[-2000:]


def test_nothing_prints_a_header_value(broker: SmallBroker) -> None:
    """Neither the authorization, its headers, the client, a connection, nor a state; and it cannot be pickled."""
    with Client(broker.address) as client:
        held = client.authorization("inference", "t")
        assert "s3cret" in dict(held.headers)["authorization"]
        with client.connection("inference", "t") as connection:
            for thing in (held, held.headers, client, connection, client.state()):
                assert "s3cret" not in f"{thing!r} {thing!s} {[thing]}"
        with pytest.raises(TypeError, match="memory only"):
            pickle.dumps(held)


def test_times_are_of_the_moment_of_receipt() -> None:
    """The broker's clock, thirty years off, does not matter."""
    held = authorization(received=time.monotonic(), lifetime=60.0)
    assert 59.0 < held.expires_in() <= 60.0
    assert 29.0 < held.refresh_in() <= 30.0
