# ruff: noqa: INP001 - a script beside the package, not part of it
"""
Proves that the package works at both ends of the runtime range that their pyproject.toml declares.

Installs the package with its extras twice into small environments under .build/, once with the oldest versions it
declares and once with the newest that exist, and makes it import everything, encode a message, call a server with both
clients and attach their headers with each adapter, with warnings as errors. Prints what was installed and how long it
took; exits 1 when an end does not work.
"""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent
ROOT: Final = PACKAGE.parent.parent

# Runs inside the small environment, which holds nothing but the package and its runtimes.
PROBE: Final = """
import asyncio, importlib, importlib.metadata, pkgutil, threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import httpx
import requests
import credentialbroker.v1
from credentialbroker import grpc_auth, httpx_auth, requests_auth
from credentialbroker.aio import AsyncClient
from credentialbroker.client import Client
from google.protobuf import json_format

modules = {
    module.name: importlib.import_module(f"credentialbroker.v1.{module.name}")
    for module in pkgutil.iter_modules(credentialbroker.v1.__path__)
}
messages, services = modules["credential_broker_pb2"], modules["credential_broker_pb2_grpc"]
typed = {file.name for file in importlib.metadata.files("credentialbroker")}
assert {"py.typed", "service_config.json", *(f"{name}.pyi" for name in modules)} <= typed, typed

request = messages.GetAuthorizationRequest(scope="inference", thread_id="thread-1")
assert messages.GetAuthorizationRequest.FromString(request.SerializeToString()) == request
assert json_format.MessageToDict(request, preserving_proto_field_name=True)["thread_id"] == "thread-1"


class Broker(services.CredentialBrokerServicer):
    def GetAuthorization(self, request, context):
        header = {"name": "authorization", "value": request.thread_id}
        return messages.GetAuthorizationResponse(authorization={"revision": request.thread_id, "headers": [header]})

    def ReportRejected(self, request, context):
        header = {"name": "authorization", "value": "better"}
        return messages.ReportRejectedResponse(authorization={"revision": "better", "headers": [header]})


class Backend(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["authorization"] == "better" else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = grpc.server(futures.ThreadPoolExecutor(1))
services.add_CredentialBrokerServicer_to_server(Broker(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    answer = services.CredentialBrokerStub(channel).GetAuthorization(request, timeout=20)
assert answer.authorization.revision == "thread-1"

backend = HTTPServer(("127.0.0.1", 0), Backend)
threading.Thread(target=backend.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
origin = f"http://127.0.0.1:{backend.server_port}"
with Client(f"127.0.0.1:{port}", watch=False) as client:
    assert client.authorization("inference", "thread-2").revision == "thread-2"
    with httpx.Client(auth=httpx_auth.BrokerAuth(client, origin, "inference", "httpx"), trust_env=False) as http:
        assert http.get(origin).status_code == 200
    with requests.Session() as session:
        session.trust_env = False
        auth = requests_auth.BrokerAuth(client, origin, "inference", "requests")
        assert session.get(origin, auth=auth).status_code == 200
    told = []
    grpc_auth.BrokerPlugin(client, "inference", "plugin")(None, lambda *answer: told.append(answer))
    assert told == [((("authorization", "plugin"),), None)]


async def with_tasks():
    async with AsyncClient(f"127.0.0.1:{port}", watch=False) as client:
        auth = httpx_auth.AsyncBrokerAuth(client, origin, "inference", "tasks")
        async with httpx.AsyncClient(auth=auth, trust_env=False) as http:
            assert (await http.get(origin)).status_code == 200


asyncio.run(with_tasks())
backend.shutdown()
backend.server_close()
server.stop(None).wait()
names = ("googleapis-common-protos", "grpcio", "httpx", "protobuf", "requests")
print(*(f"{name}=={importlib.metadata.version(name)}" for name in names))
"""


def declared_floors() -> dict[str, str]:
    """Return the oldest version of each runtime that the package declares, by name."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+", line).groups() for line in lines)  # type: ignore[union-attr, misc]  # a line of another form must fail


def check_end(end: str, resolution: str) -> str:
    """
    Install the package into a new environment and run the probe there.

    Args:
        end: `oldest` or `newest`; names the environment.
        resolution: which versions uv chooses within the declared range.

    Returns:
        What was installed, for example `grpcio==1.78.0 protobuf==6.31.1`.

    Raises:
        subprocess.CalledProcessError: the package cannot be installed or does not work.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    environment = ROOT / ".build" / f"stubs-python-{end}"
    python, wanted = environment / "bin" / "python", f"{PACKAGE}[httpx,requests]"
    commands: tuple[list[str], ...] = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--resolution", resolution, wanted],
        # -I: neither this checkout nor an environment variable can stand in for what was installed.
        [str(python), "-I", "-W", "error", "-c", PROBE],
    )
    output = ""
    for command in commands:
        output = subprocess.run(command, cwd=environment.parent, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - fixed programs
    return output.strip()


def main() -> int:
    """Check both ends. Returns the exit code."""
    (ROOT / ".build").mkdir(exist_ok=True)
    floors = " ".join(f"{name}=={version}" for name, version in sorted(declared_floors().items()))
    for end, resolution in (("oldest", "lowest-direct"), ("newest", "highest")):
        started = time.perf_counter()
        try:
            installed = check_end(end, resolution)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"stubs/python does not work with the {end} runtime it declares: {error}\n")
            return 1
        sys.stdout.write(f"{end}: {installed} works ({time.perf_counter() - started:.1f} s)\n")
        if end == "oldest" and installed != floors:
            sys.stderr.write(f"the declared floors are {floors}, but {installed} was installed\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
