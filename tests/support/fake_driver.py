"""
A driver for tests of the conformance suite: `python -m tests.support.fake_driver [FAULT]`.

It speaks the drivers' protocol with a client of a few lines, which keeps what it was given for ever. A fault makes it
misbehave in one way: `forget` (asks each time), `hang` (never answers an authorization), `crash` (exits instead),
`babble` (says what is not JSON), `linger` (does not end when its input does), `late` (answers an authorization when it
is told to do `http`, before that).
"""

import json
import os
import sys
import threading
import time
from typing import Any

import grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""
_SPEAKING = threading.Lock()
LATE, SAID = threading.Event(), threading.Event()


class Client:
    """Asks a broker, and keeps what it was given."""

    def __init__(self, address: str, identity: str) -> None:
        self._channel = grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),))
        self._stub = credential_broker_pb2_grpc.CredentialBrokerStub(self._channel)
        self._identity = identity
        self._kept: dict[Any, dict[str, Any]] = {}

    def authorization(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer the command of this name."""
        identity = command.get("identity", self._identity)
        key = identity, command["scope"], command.get("thread", "")
        if key not in self._kept or FAULT == "forget":
            request = pb2.GetAuthorizationRequest(scope=key[1], thread_id=key[2], identity=identity)
            metadata = (("x-credential-broker", "1"),)
            given = self._stub.GetAuthorization(request, metadata=metadata, timeout=10).authorization
            self._kept[key] = {
                "headers": [[header.name, header.value] for header in given.headers],
                "kind": pb2.CredentialKind.Name(given.kind).removeprefix("CREDENTIAL_KIND_"),
                "revision": given.revision,
                "identity": given.identity,
            }
        return self._kept[key]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


CLIENTS: dict[str, Client] = {}


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """Do what is told."""
    match command["do"]:
        case "hello":
            return {"language": "fake", "adapters": {"http": ["one", "two"]}}
        case "open":
            CLIENTS[command["client"]] = Client(command["address"], command.get("identity", ""))
            return {}
        case "close":
            CLIENTS.pop(command["client"]).close()
            return {}
        case "http":
            if FAULT == "late":
                LATE.set()
                SAID.wait()
            return {"status": 200, "body": command["adapter"]}
    if FAULT == "crash":
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)
    if FAULT == "hang":
        time.sleep(3600)
    if FAULT == "late":
        LATE.wait()
        return {}
    if FAULT == "babble":
        say("this is no answer")
    return CLIENTS[command["client"]].authorization(command)


def serve(line: str) -> None:
    """Answer a command."""
    command = json.loads(line)
    try:
        reply = {"ok": answer(command)}
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        reasons = [info.reason for packed in status.details if packed.Unpack(info)] if status is not None else []
        reply = {
            "error": {
                "type": "broker",
                "reason": reasons[0] if reasons else "UNSPECIFIED",
                "code": error.code().name,  # type: ignore[attr-defined]
                "message": "",
            }
        }
    say(json.dumps({"id": command["id"], **reply}))
    if command["do"] == "authorization":
        SAID.set()


def say(line: str) -> None:
    """Write a line."""
    with _SPEAKING:
        print(line, flush=True)


def main() -> None:
    """Serve until the end of the input."""
    for line in sys.stdin:
        threading.Thread(target=serve, args=(line,), daemon=True).start()
    if FAULT == "linger":
        time.sleep(3600)
    for client in CLIENTS.values():
        client.close()


if __name__ == "__main__":
    main()
