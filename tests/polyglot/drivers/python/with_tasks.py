"""The driver of the client for asyncio: a task for each command."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx
import protocol
from credentialbroker.aio import AsyncClient, AsyncConnection
from credentialbroker.authorization import Authorization
from credentialbroker.grpc_auth import AsyncBrokerPlugin
from credentialbroker.httpx_auth import AsyncBrokerAuth
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub
from protocol import Command, Traffic

HTTP_SECONDS = 30.0


@dataclass
class Driver:
    """What is open."""

    clients: dict[str, AsyncClient] = field(default_factory=dict)
    held: dict[Any, Authorization] = field(default_factory=dict)
    connections: dict[str, AsyncConnection] = field(default_factory=dict)
    traffic: dict[str, tuple[Traffic, list[asyncio.Task[None]]]] = field(default_factory=dict)

    async def do(self, command: Command) -> Any:
        """Do a command. Returns its answer."""
        return await getattr(self, f"do_{command['do']}")(command)

    def client(self, command: Command) -> AsyncClient:
        return self.clients[command["client"]]

    async def do_hello(self, _: Command) -> Any:
        return protocol.hello("python-aio", ["httpx_async"], ["plugin_aio"])

    async def do_open(self, command: Command) -> Any:
        given = {} if command.get("env") else protocol.options(command, *protocol.OPEN_OPTIONS)
        self.clients[command["client"]] = AsyncClient(**given)
        return {}

    async def do_close(self, command: Command) -> Any:
        await self.client(command).close()
        return {}

    async def do_authorization(self, command: Command) -> Any:
        found = await self.client(command).authorization(**protocol.asked(command))
        self.held[command["id"]] = found
        return protocol.authorization(found)

    async def do_many(self, command: Command) -> Any:
        client, arguments = self.client(command), protocol.asked(command)
        threads = command.get("threads") or [command.get("thread", "")]
        return await at_once(
            lambda number: client.authorization(**{**arguments, "thread": threads[number % len(threads)]}),
            command["count"],
        )

    async def do_cancel_after(self, command: Command) -> Any:
        try:
            async with asyncio.timeout(command["seconds"]):
                return await self.do_authorization(command)
        except TimeoutError:
            raise protocol.CancelledByUserError from None

    async def do_report_rejected(self, command: Command) -> Any:
        client, held, detail = self.client(command), self.held[command["held"]], command.get("detail", "")
        if command.get("count", 1) > 1:
            return await at_once(lambda _: client.report_rejected(held, detail), command["count"])
        better = await client.report_rejected(held, detail)
        self.held[command["id"]] = better
        return protocol.authorization(better)

    async def do_register_task(self, command: Command) -> Any:
        client = self.client(command)
        return protocol.task(await client.register_task(**protocol.options(command, "thread", "identity")))

    async def do_end_task(self, command: Command) -> Any:
        return protocol.task(await self.client(command).end_task(**protocol.options(command, "thread", "identity")))

    async def do_state(self, command: Command) -> Any:
        return protocol.state(self.client(command).state())

    async def do_http(self, command: Command) -> Any:
        about = protocol.options(command, "origin", "scope", "thread", "identity")
        auth = AsyncBrokerAuth(self.client(command), **about)
        follow = bool(command.get("follow_redirects"))
        async with httpx.AsyncClient(auth=auth, follow_redirects=follow, trust_env=False, timeout=HTTP_SECONDS) as http:

            async def send() -> Any:
                headers = command.get("headers") or {}
                answer = await http.request(command["method"], command["url"], content=body(command), headers=headers)
                return {"status": answer.status_code, "body": answer.text, "location": answer.headers.get("location")}

            count = command.get("count", 1)
            return await send() if count == 1 else await at_once(lambda _: send(), count)

    async def do_grpc_echo(self, command: Command) -> Any:
        plugin = AsyncBrokerPlugin(self.client(command), **protocol.options(command, "scope", "thread", "identity"))
        name = command.get("server_name")
        async with grpc.aio.secure_channel(
            command["target"],
            grpc.composite_channel_credentials(
                grpc.ssl_channel_credentials(protocol.read(command["ca_file"])),
                grpc.metadata_call_credentials(plugin),
            ),
            options=[("grpc.ssl_target_name_override", name)] if name else [],
        ) as channel:
            stub = CredentialBrokerStub(channel)
            answers = [
                await stub.ListScopes(pb2.ListScopesRequest(), timeout=HTTP_SECONDS)
                for _ in range(command.get("count", 1))
            ]
        return {"results": [{"metadata": [[one.scope, one.description] for one in each.scopes]} for each in answers]}

    async def do_connect(self, command: Command) -> Any:
        connection = await self.client(command).connection(**protocol.asked(command))
        self.connections[command["connection"]] = connection
        return {"headers": [list(pair) for pair in connection.headers], "connection_tag": connection.connection_tag}

    async def do_changed(self, command: Command) -> Any:
        connection = self.connections[command["connection"]]
        if not command.get("wait"):
            return {"changed": connection.changed()}
        try:
            async with asyncio.timeout(command["wait"]):
                await connection.wait_changed()
        except TimeoutError:
            return {"changed": False}
        return {"changed": True}

    async def do_disconnect(self, command: Command) -> Any:
        self.connections[command["connection"]].close()
        return {}

    async def do_traffic_start(self, command: Command) -> Any:
        client, traffic, names = self.client(command), Traffic(), itertools.cycle(command["threads"])
        workers = command.get("workers", 1)

        async def work() -> None:
            while True:
                await asyncio.sleep(workers / command["rate"])
                started = time.monotonic()
                traffic.count(await attempt(client.authorization(command["scope"], next(names))), started)

        self.traffic[command["traffic"]] = traffic, [asyncio.create_task(work()) for _ in range(workers)]
        return {}

    async def do_traffic_stop(self, command: Command) -> Any:
        traffic, tasks = self.traffic.pop(command["traffic"])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return traffic.report()

    async def do_burn(self, command: Command) -> Any:
        client, scope, thread = self.client(command), command["scope"], command.get("thread", "")
        started = time.perf_counter_ns()
        for _ in range(command["count"]):
            await client.authorization(scope, thread)
        took = time.perf_counter_ns() - started
        return {"seconds": took / 1e9, "nanoseconds_each": took / command["count"]}

    async def do_show(self, command: Command) -> Any:
        client, held = self.client(command), self.held[command["held"]]
        with await client.connection(held.key.scope, held.key.thread, identity=held.key.identity) as connection:
            return {"texts": protocol.texts(held, client, connection, client.state())}

    async def do_fork(self, _: Command) -> Any:
        return {"unsupported": True}  # a loop does not survive a fork, and what belongs to it neither

    async def do_threads(self, _: Command) -> Any:
        return {"count": protocol.threads() + len(asyncio.all_tasks())}


def body(command: Command) -> Any:
    """Return the body as text, or as something that can be read only once."""
    text = command.get("body")
    if text is None or not command.get("stream_body"):
        return text

    async def once() -> AsyncIterator[bytes]:
        yield text.encode()

    return once()


async def attempt(work: Awaitable[Any]) -> Any:
    """Return what comes of it, an exception too."""
    try:
        return await work
    except Exception as problem:  # noqa: BLE001 - told to the suite
        return problem


async def at_once(work: Callable[[int], Awaitable[Any]], count: int) -> Any:
    """Do something so many times at once, each in a task."""
    started = time.monotonic()
    found = await asyncio.gather(*(attempt(work(number)) for number in range(count)))
    return {"results": [protocol.outcome(each) for each in found], "seconds": time.monotonic() - started}


async def serve() -> None:
    """Do what standard input says, until it ends."""
    driver, tasks = Driver(), set()

    async def answer(command: Command) -> None:
        try:
            protocol.say(command["id"], {"ok": await driver.do(command)})
        except Exception as problem:  # noqa: BLE001 - told to the suite
            protocol.say(command["id"], {"error": protocol.error(problem)})

    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        task = asyncio.create_task(answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for client in driver.clients.values():
        await client.close()


def run() -> None:
    """Run the driver."""
    asyncio.run(serve())
