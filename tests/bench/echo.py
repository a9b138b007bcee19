"""
`python -m tests.bench.echo`: the least a `grpc.aio` server of the same method can do, the baseline of the broker's cost.

It answers every GetAuthorization with one and the same message, without looking at the request, on uvloop like the broker.
With `--bytes` there is not even a message class on either side: the least that any method of these sizes can cost.
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any, Final

import uvloop
from credentialbroker.v1 import credential_broker_pb2 as pb
from grpc import aio, unary_unary_rpc_method_handler

SERVICE: Final = pb.DESCRIPTOR.services_by_name["CredentialBroker"].full_name
METHOD: Final = "GetAuthorization"


async def serve(answer: bytes, *, as_bytes: bool) -> None:
    """
    Serve on a free port of the loopback until SIGTERM or SIGINT, and say on standard output where.

    Args:
        answer: the serialized answer.
        as_bytes: whether to leave out the messages' classes.
    """
    response = answer if as_bytes else pb.GetAuthorizationResponse.FromString(answer)

    async def echo(_request: Any, _context: aio.ServicerContext[Any, Any]) -> Any:
        return response

    coders: dict[str, Any] = {}
    if not as_bytes:
        coders = {
            "request_deserializer": pb.GetAuthorizationRequest.FromString,
            "response_serializer": pb.GetAuthorizationResponse.SerializeToString,
        }
    server = aio.server()
    server.add_registered_method_handlers(SERVICE, {METHOD: unary_unary_rpc_method_handler(echo, **coders)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(json.dumps({"event": "serving", "address": f"127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(1)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.echo", description=__doc__)
    parser.add_argument("--answer", type=Path, required=True, help="file of the serialized answer")
    parser.add_argument("--bytes", action="store_true", help="without message classes")
    options = parser.parse_args()
    uvloop.run(serve(options.answer.read_bytes(), as_bytes=options.bytes))


if __name__ == "__main__":
    main()
