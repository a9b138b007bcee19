"""
What an authorization costs from memory, and what the call costs that it saves: `python benchmark.py`, beside a broker.

Prints nanoseconds of each, the best of several rounds of `timeit`; the last line is JSON for programs.
"""

import asyncio
import json
import os
import sys
import time
import timeit

import grpc
from credentialbroker.aio import AsyncClient
from credentialbroker.client import Client
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

ROUNDS = 5
CACHED, RPCS = 100_000, 200


def measure_memory() -> float:
    """Return nanoseconds of an authorization from memory, of the client for threads."""
    with Client() as client:
        client.authorization("inference", "benchmark")
        return (
            min(timeit.repeat(lambda: client.authorization("inference", "benchmark"), number=CACHED, repeat=ROUNDS))
            / CACHED
            * 1e9
        )


async def measure_memory_of_tasks() -> float:
    """Return the same of the client for asyncio, with the `await`."""
    async with AsyncClient() as client:
        best = float("inf")
        for _ in range(ROUNDS):
            await client.authorization("inference", "benchmark")
            started = time.perf_counter_ns()
            for _ in range(CACHED):
                await client.authorization("inference", "benchmark")
            best = min(best, (time.perf_counter_ns() - started) / CACHED)
        return best


def measure_rpc() -> float:
    """Return nanoseconds of the call that is saved, over a connection that is up."""
    request = pb2.GetAuthorizationRequest(scope="inference", thread_id="benchmark")
    with grpc.insecure_channel(os.environ.get("CREDENTIAL_BROKER_ADDRESS", "dns:///127.0.0.1:50051")) as channel:
        stub = CredentialBrokerStub(channel)

        def ask() -> None:
            stub.GetAuthorization(request, timeout=10, metadata=(("x-credential-broker", "1"),))

        ask()
        return min(timeit.repeat(ask, number=RPCS, repeat=ROUNDS)) / RPCS * 1e9


def main() -> None:
    """Measure and print."""
    cached, of_tasks, rpc = measure_memory(), asyncio.run(measure_memory_of_tasks()), measure_rpc()
    sys.stdout.write(f"from memory      {cached:9.0f} ns\n")
    sys.stdout.write(f"in a task        {of_tasks:9.0f} ns\n")
    sys.stdout.write(f"GetAuthorization {rpc:9.0f} ns\n")
    sys.stdout.write(json.dumps({"cached_ns": cached, "rpc_ns": rpc, "ratio": rpc / cached}) + "\n")


if __name__ == "__main__":
    main()
