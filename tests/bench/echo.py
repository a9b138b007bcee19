"""
`python -m tests.bench.echo`: the least a `grpc.aio` server can do, the baseline of the broker's cost.

It answers every call of one method with the same bytes, without looking at the request, on uvloop like the broker. There
is no message class on either side: nothing that could be left out is left in, so a ratio to it errs against the broker.
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop
from grpc import aio, unary_unary_rpc_method_handler


async def serve(path: str, answer: bytes, port: int) -> None:
    """
    Serve until SIGTERM or SIGINT, and say on standard output where.

    Args:
        path: `/package.Service/Method`, the only method there is.
        answer: the serialized answer.
        port: of the loopback; 0 lets the system choose.
    """
    service, _, method = path.removeprefix("/").partition("/")

    async def echo(_request: bytes, _context: aio.ServicerContext[Any, Any]) -> bytes:
        return answer

    server = aio.server()
    server.add_registered_method_handlers(service, {method: unary_unary_rpc_method_handler(echo)})
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(json.dumps({"event": "serving", "address": f"127.0.0.1:{bound}"}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(1)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.echo", description=__doc__)
    parser.add_argument("--path", required=True, help="/package.Service/Method")
    parser.add_argument("--answer", type=Path, required=True, help="file of the serialized answer")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(serve(options.path, options.answer.read_bytes(), options.port))


if __name__ == "__main__":
    main()
