"""The driver of the client for threads: a thread for each command."""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import protocol
import requests
from credentialbroker import httpx_auth, requests_auth
from credentialbroker.authorization import Authorization
from credentialbroker.client import Client, Connection
from credentialbroker.errors import BrokerError
from credentialbroker.grpc_auth import BrokerPlugin
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub
from protocol import Command, Traffic

HTTP_SECONDS = 30.0


@dataclass
class Driver:
    """What is open."""

    clients: dict[str, Client] = field(default_factory=dict)
    held: dict[Any, Authorization] = field(default_factory=dict)
    connections: dict[str, Connection] = field(default_factory=dict)
    traffic: dict[str, tuple[Traffic, threading.Event, list[threading.Thread]]] = field(default_factory=dict)

    def do(self, command: Command) -> Any:
        """Do a command. Returns its answer."""
        return getattr(self, f"do_{command['do']}")(command)

    def client(self, command: Command) -> Client:
        return self.clients[command["client"]]

    def do_hello(self, _: Command) -> Any:
        return protocol.hello("python", ["httpx", "requests"], ["plugin"])

    def do_open(self, command: Command) -> Any:
        given = {} if command.get("env") else protocol.options(command, *protocol.OPEN_OPTIONS)
        self.clients[command["client"]] = Client(**given)
        return {}

    def do_close(self, command: Command) -> Any:
        self.client(command).close()
        return {}

    def do_authorization(self, command: Command) -> Any:
        found = self.client(command).authorization(**protocol.asked(command))
        self.held[command["id"]] = found
        return protocol.authorization(found)

    def do_many(self, command: Command) -> Any:
        client, arguments, count = self.client(command), protocol.asked(command), command["count"]
        threads = command.get("threads") or [command.get("thread", "")]
        return at_once(
            lambda number: client.authorization(**{**arguments, "thread": threads[number % len(threads)]}), count
        )

    def do_cancel_after(self, command: Command) -> Any:
        # A thread that waits cannot be cancelled from outside in Python: how long it is ready to wait is its own means.
        try:
            return self.do_authorization({**command, "timeout": command["seconds"]})
        except BrokerError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise protocol.CancelledByUserError from None
            raise

    def do_report_rejected(self, command: Command) -> Any:
        client, held, detail = self.client(command), self.held[command["held"]], command.get("detail", "")
        if command.get("count", 1) > 1:
            return at_once(lambda _: client.report_rejected(held, detail), command["count"])
        better = client.report_rejected(held, detail)
        self.held[command["id"]] = better
        return protocol.authorization(better)

    def do_register_task(self, command: Command) -> Any:
        return protocol.task(self.client(command).register_task(**protocol.options(command, "thread", "identity")))

    def do_end_task(self, command: Command) -> Any:
        return protocol.task(self.client(command).end_task(**protocol.options(command, "thread", "identity")))

    def do_state(self, command: Command) -> Any:
        return protocol.state(self.client(command).state())

    def do_http(self, command: Command) -> Any:
        client, count = self.client(command), command.get("count", 1)
        about = protocol.options(command, "origin", "scope", "thread", "identity")
        if command["adapter"] == "httpx":
            auth = httpx_auth.BrokerAuth(client, **about)
            follow = bool(command.get("follow_redirects"))
            with httpx.Client(auth=auth, follow_redirects=follow, trust_env=False, timeout=HTTP_SECONDS) as http:
                return one_or_many(lambda: self.with_httpx(http, command), count)
        with requests.Session() as session:
            session.trust_env = False
            session.auth = requests_auth.BrokerAuth(client, **about)
            return one_or_many(lambda: self.with_requests(session, command), count)

    def with_httpx(self, http: httpx.Client, command: Command) -> Any:
        headers = command.get("headers") or {}
        answer = http.request(command["method"], command["url"], content=body(command), headers=headers)
        return {"status": answer.status_code, "body": answer.text, "location": answer.headers.get("location")}

    def with_requests(self, session: requests.Session, command: Command) -> Any:
        answer = session.request(
            command["method"],
            command["url"],
            data=body(command),
            headers=command.get("headers") or {},
            allow_redirects=bool(command.get("follow_redirects")),
            timeout=HTTP_SECONDS,
        )
        return {"status": answer.status_code, "body": answer.text, "location": answer.headers.get("location")}

    def do_grpc_echo(self, command: Command) -> Any:
        about = protocol.options(command, "scope", "thread", "identity")
        with grpc.secure_channel(
            command["target"],
            grpc.composite_channel_credentials(
                grpc.ssl_channel_credentials(protocol.read(command["ca_file"])),
                grpc.metadata_call_credentials(BrokerPlugin(self.client(command), **about)),
            ),
            options=echo_options(command),
        ) as channel:
            stub = CredentialBrokerStub(channel)
            answers = [
                stub.ListScopes(pb2.ListScopesRequest(), timeout=HTTP_SECONDS) for _ in range(command.get("count", 1))
            ]
        return {"results": [echoed(answer) for answer in answers]}

    def do_connect(self, command: Command) -> Any:
        connection = self.client(command).connection(**protocol.asked(command))
        self.connections[command["connection"]] = connection
        return {"headers": [list(pair) for pair in connection.headers], "connection_tag": connection.connection_tag}

    def do_changed(self, command: Command) -> Any:
        connection, wait = self.connections[command["connection"]], command.get("wait", 0)
        return {"changed": connection.wait_changed(wait) if wait else connection.changed()}

    def do_disconnect(self, command: Command) -> Any:
        self.connections[command["connection"]].close()
        return {}

    def do_traffic_start(self, command: Command) -> Any:
        client, traffic, stop = self.client(command), Traffic(), threading.Event()
        names, lock = itertools.cycle(command["threads"]), threading.Lock()
        pause = command.get("workers", 1) / command["rate"]

        def work() -> None:
            while not stop.wait(pause):
                with lock:
                    name = next(names)
                started, found = time.monotonic(), attempt(lambda: client.authorization(command["scope"], name))  # noqa: B023 - called at once
                with lock:
                    traffic.count(found, started)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(command.get("workers", 1))]
        self.traffic[command["traffic"]] = traffic, stop, threads
        for thread in threads:
            thread.start()
        return {}

    def do_traffic_stop(self, command: Command) -> Any:
        traffic, stop, threads = self.traffic.pop(command["traffic"])
        stop.set()
        for thread in threads:
            thread.join()
        return traffic.report()

    def do_burn(self, command: Command) -> Any:
        client, scope, thread = self.client(command), command["scope"], command.get("thread", "")
        started = time.perf_counter_ns()
        for _ in range(command["count"]):
            client.authorization(scope, thread)
        took = time.perf_counter_ns() - started
        return {"seconds": took / 1e9, "nanoseconds_each": took / command["count"]}

    def do_show(self, command: Command) -> Any:
        client, held = self.client(command), self.held[command["held"]]
        with client.connection(held.key.scope, held.key.thread, identity=held.key.identity) as connection:
            return {"texts": protocol.texts(held, client, connection, client.state())}

    def do_fork(self, command: Command) -> Any:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            found = attempt(lambda: self.client(command).authorization(**protocol.asked(command)))
            os.write(writing, json.dumps(protocol.outcome(found)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            told = json.load(answer)
        os.waitpid(child, 0)
        return told

    def do_threads(self, _: Command) -> Any:
        return {"count": protocol.threads()}


def body(command: Command) -> Any:
    """Return the body as text, or as something that can be read only once."""
    text = command.get("body")
    if text is None or not command.get("stream_body"):
        return text

    def once() -> Iterator[bytes]:
        yield text.encode()

    return once()


def echo_options(command: Command) -> list[tuple[str, str]]:
    """Return the channel's options for the name in the echo's certificate."""
    name = command.get("server_name")
    return [("grpc.ssl_target_name_override", name)] if name else []


def echoed(answer: pb2.ListScopesResponse) -> Any:
    """Return what the echo says it got."""
    return {"metadata": [[scope.scope, scope.description] for scope in answer.scopes]}


def attempt(work: Callable[[], Any]) -> Any:
    """Return what comes of it, an exception too."""
    try:
        return work()
    except Exception as problem:  # noqa: BLE001 - told to the suite
        return problem


def at_once(work: Callable[[int], Any], count: int) -> Any:
    """Do something so many times at once, each in a thread."""
    started = time.monotonic()
    gate = threading.Barrier(count)

    def one(number: int) -> Any:
        gate.wait()
        return attempt(lambda: work(number))

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    return {"results": [protocol.outcome(each) for each in found], "seconds": time.monotonic() - started}


def one_or_many(work: Callable[[], Any], count: int) -> Any:
    """Do something once, or so many times at once."""
    return work() if count == 1 else at_once(lambda _: work(), count)


def run() -> None:
    """Do what standard input says, until it ends."""
    driver = Driver()

    def answer(command: Command) -> None:
        try:
            protocol.say(command["id"], {"ok": driver.do(command)})
        except Exception as problem:  # noqa: BLE001 - told to the suite
            protocol.say(command["id"], {"error": protocol.error(problem)})

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()
    for client in driver.clients.values():
        client.close()
