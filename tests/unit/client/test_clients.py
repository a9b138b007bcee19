"""Both clients against a small broker on loopback: who waits for whom, forks, ends, leaks, and what is printed."""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.aio import AsyncClient
from credentialbroker.authorization import Authorization, Key
from credentialbroker.channels import Channels
from credentialbroker.client import Client
from credentialbroker.errors import BrokerError, ClosedError
from credentialbroker.grpc_auth import AsyncBrokerPlugin
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.watch import Watch

from tests.support.brokers import eventually
from tests.unit.client.conftest import SmallBroker, authorization, message


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


def threads() -> int:
    """Count the threads of this process, without those in which the small broker answers: they come as it needs them."""
    return sum(not thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


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


async def test_nobody_joins_a_refresh_whose_task_was_cancelled(broker: SmallBroker) -> None:
    """As by a program that cancels all tasks of its loop: nobody waits for it who would find out, and the next asks."""
    broker.gate.clear()
    async with AsyncClient(broker.address) as client:
        client._calls.refresh(Key("", "inference", "t"))
        await eventually(lambda: len(broker.calls) == 1)
        call = next(task for task in asyncio.all_tasks() if task.get_name() == "credentialbroker-call")
        call.cancel()
        await asyncio.wait({call})
        broker.gate.set()
        assert (await client.authorization("inference", "t", timeout=5)).revision


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
    before = threads(), files_open()
    for _ in range(100):
        one()
    until(lambda: threads() <= before[0] and files_open() <= before[1] + 2)


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


WRONG = (({"thread": 123}, TypeError), ({"thread": "\ud800"}, ValueError), ({"min_validity": float("inf")}, ValueError))


@pytest.mark.parametrize(("arguments", "error"), WRONG)
async def test_a_wrong_argument_is_told_each_time(
    broker: SmallBroker, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """At once, as what it is, and nobody waits for the call that there never was."""
    with Client(broker.address) as client:
        for _ in range(2):
            with pytest.raises(error):
                client.authorization("inference", **arguments, timeout=1)
    async with AsyncClient(broker.address) as tasks:
        for _ in range(2):
            with pytest.raises(error):
                await tasks.authorization("inference", **arguments, timeout=1)
    assert broker.calls == []


async def test_details_that_are_none_are_left_out(broker: SmallBroker) -> None:
    """The code and the message come through, each time."""
    with Client(broker.address, watch=False) as client:
        for _ in range(2):
            with pytest.raises(BrokerError, match="PERMISSION_DENIED: from a proxy"):
                client.authorization("garbled", "t", timeout=5)
    async with AsyncClient(broker.address, watch=False) as tasks:
        with pytest.raises(BrokerError, match="PERMISSION_DENIED: from a proxy"):
            await tasks.authorization("garbled", "t", timeout=5)


@pytest.mark.parametrize("where", ["Channels.acquire", "Authorization.__init__"])
async def test_what_breaks_a_call_does_not_break_the_next(
    broker: SmallBroker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the call is sent, or when its answer came: who waits is told at once, and the next is answered."""
    name, _, method = where.partition(".")
    broken = {"Channels": Channels, "Authorization": Authorization}[name]

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with Client(broker.address, watch=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(broken, method, fail)
            with pytest.raises(BrokerError, match="can't start new thread"):
                client.authorization("inference", "t", timeout=5)
        assert client.authorization("inference", "t", timeout=5).revision
    async with AsyncClient(broker.address, watch=False) as tasks:
        with monkeypatch.context() as patch:
            patch.setattr(broken, method, fail)
            with pytest.raises(BrokerError, match="can't start new thread"):
                await tasks.authorization("inference", "t", timeout=5)
        assert (await tasks.authorization("inference", "t", timeout=5)).revision


async def test_nothing_that_breaks_ends_the_watch(broker: SmallBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot be started, and a stream that breaks on this side: it goes on with the next."""
    streams = []
    real = Watch.lives

    def lives(watch: Watch, now: float) -> None:
        streams.append(now)
        if len(streams) % 2:
            raise RuntimeError("broken")
        real(watch, now)

    monkeypatch.setattr(Watch, "lives", lives)
    with Client(broker.address) as client:
        start = client._upkeep._start
        failures = [RuntimeError("can't start new thread")]

        def start_later(*work: Any) -> None:
            if failures:
                raise failures.pop()
            start(*work)

        monkeypatch.setattr(client._upkeep, "_start", start_later)
        client.authorization("inference", "t")
        until(lambda: not failures)
        client.authorization("inference", "other")
        until(lambda: client.state().watching)
    async with AsyncClient(broker.address) as tasks:
        await tasks.authorization("inference", "t")
        await eventually(lambda: tasks.state().watching)
    assert len(streams) == 4


async def test_without_a_watch_a_connection_uses_its_entry_and_what_is_idle_goes(
    broker: SmallBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, whoever looks or not."""

    def due(number: int) -> pb2.Authorization:
        made = message(f"r{number}", tag=str(number))
        made.refresh_time.CopyFrom(made.server_time)
        return made

    broker.answer = due
    monkeypatch.setattr("credentialbroker.thread_upkeep.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("credentialbroker.aio_upkeep.LOOK_SECONDS", 0.02)
    with Client(broker.address, watch=False, idle_seconds=0.1) as client, client.connection("inference", "t") as open_:
        until(open_._changed.is_set)
        until(lambda: ", 0 held" in repr(client))
    async with AsyncClient(broker.address, watch=False, idle_seconds=0.1) as tasks:
        with await tasks.connection("inference", "t") as also:
            await eventually(also._changed.is_set)
            await eventually(lambda: ", 0 held" in repr(tasks))


async def test_a_grpc_call_whose_headers_are_cancelled_ends(broker: SmallBroker) -> None:
    """As at the end of a loop, which cancels all tasks."""
    broker.gate.clear()
    async with AsyncClient(broker.address) as client:
        plugin, told = AsyncBrokerPlugin(client, "inference", "t"), Future[Exception | None]()
        before = asyncio.all_tasks()
        plugin(None, lambda _, error: told.set_result(error))  # type: ignore[arg-type]
        await eventually(lambda: len(broker.calls) == 1)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        assert isinstance(await asyncio.wait_for(asyncio.wrap_future(told), 5), RuntimeError)


FORKS_AT_ONCE = """
import os, threading
from credentialbroker.client import Client

clients = [Client("127.0.0.1:1") for _ in range(5)]

def fork():
    for _ in range(10):
        child = os.fork()
        if not child:
            for client in clients:
                client.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_that_fork_at_once_do_not_wait_for_each_other() -> None:
    """Each fork holds the locks of all clients."""
    done = subprocess.run([sys.executable, "-c", FORKS_AT_ONCE], timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


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
    from tests.support.scripted_broker import ScriptedBroker

    for _ in range(4):
        async with ScriptedBroker() as broker:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", FORK, broker.address, stderr=asyncio.subprocess.PIPE, start_new_session=True
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 30)
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            _, complaints = await process.communicate()
        # gRPC takes no fork well at which a thread happens to be inside it: it says so, and the child hangs or aborts.
        if process.returncode == 0 or b"skipping fork() handlers" not in complaints:
            break
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


@pytest.mark.parametrize("watch", [True, False])
async def test_who_waits_for_a_broker_that_cannot_be_reached_has_it_logged(
    broker: SmallBroker, caplog: pytest.LogCaptureFixture, watch: bool
) -> None:
    """Though no stream was opened that would tell; a time that passes while it is there says nothing."""
    broker.gate.clear()
    for address, said in ((broker.address, []), (f"unix:///nowhere/{os.getpid()}", ["the broker is away"])):
        caplog.clear()
        with Client(address, watch=watch) as client, pytest.raises(BrokerError):
            client.authorization("inference", "t", timeout=0.3)
        async with AsyncClient(address, watch=watch) as tasks:
            with pytest.raises(BrokerError):
                await tasks.authorization("inference", "t", timeout=0.3)
        told = [one.getMessage() for one in caplog.records if one.name == "credentialbroker"]
        assert [text.partition(" (")[0] for text in told] == said * 2
