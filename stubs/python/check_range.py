# ruff: noqa: INP001 - a script beside the package, not part of it
"""
Proves that the package works at both ends of the runtime range that their pyproject.toml declares.

Installs the package twice into small environments under .build/, once with the oldest versions it declares and once
with the newest that exist, and makes it import everything, encode a message and call a server, with warnings as
errors. Prints what was installed and how long it took; exits 1 when an end does not work.
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
import importlib, importlib.metadata, pkgutil
from concurrent import futures

import grpc
import credentialbroker.v1
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
        return messages.GetAuthorizationResponse(authorization={"revision": request.thread_id})


server = grpc.server(futures.ThreadPoolExecutor(1))
services.add_CredentialBrokerServicer_to_server(Broker(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    answer = services.CredentialBrokerStub(channel).GetAuthorization(request, timeout=20)
assert answer.authorization.revision == "thread-1"

from credentialbroker.aio import AsyncClient  # imports at least
from credentialbroker.client import Client

with Client(f"127.0.0.1:{port}", watch=False) as client:
    assert client.authorization("inference", "thread-2").revision == "thread-2"
server.stop(None).wait()
names = ("googleapis-common-protos", "grpcio", "protobuf")
print(*(f"{name}=={importlib.metadata.version(name)}" for name in names))
"""


def declared_floors() -> dict[str, str]:
    """Return the oldest version of each runtime that the package declares, by name."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+),<\d+", line).groups() for line in project["dependencies"])  # type: ignore[union-attr, misc]  # a line of another form must fail


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
    python = environment / "bin" / "python"
    commands: tuple[list[str], ...] = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--resolution", resolution, str(PACKAGE)],
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
