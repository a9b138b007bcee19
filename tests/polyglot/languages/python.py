"""Python: one package with stubs, both clients and their adapters; a driver with a variant for each client."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT, Command, Language

PACKAGE: Final = "stubs/python"
TRY: Final = """
import asyncio

import grpc
from credentialbroker.aio import AsyncClient
from credentialbroker.client import Client
from credentialbroker.errors import BrokerError
from credentialbroker.httpx_auth import AsyncBrokerAuth, BrokerAuth
from credentialbroker.v1 import credential_broker_pb2

with Client("127.0.0.1:1") as client:
    try:
        client.authorization("inference", "t", timeout=0.05)
    except BrokerError as error:
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED, error


async def main():
    async with AsyncClient("127.0.0.1:1") as client:
        AsyncBrokerAuth(client, "https://example.com", "inference")


asyncio.run(main())
"""


def describe(tree: Path) -> Language:
    """Describe Python, for a tree."""
    # The checkout's environment has what the package needs; the path has the tree's package come first.
    path = {"PYTHONPATH": str(tree / PACKAGE)}
    beside = Path(sys.executable).parent
    driver = str(tree / "tests/polyglot/drivers/python/driver.py")
    tests = str(ROOT / "tests/unit/client")
    own = [f"{PACKAGE}/credentialbroker", f"{PACKAGE}/examples", f"{PACKAGE}/benchmark.py"]
    return Language(
        name="python",
        programs=(),
        checks=(
            Command(words=(str(beside / "ruff"), "format", "--check", "-q", PACKAGE)),
            Command(words=(str(beside / "ruff"), "check", "-q", PACKAGE)),
            Command(words=(str(beside / "mypy"), "--strict", *own), variables={"MYPYPATH": PACKAGE}),
            Command(
                words=(str(beside / "pytest"), "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), tests),
                variables=path,
            ),
        ),
        build=(Command(words=(sys.executable, "-m", "compileall", "-q", f"{PACKAGE}/credentialbroker")),),
        drivers={
            "python": Command(words=(sys.executable, driver), variables=path),
            "python-aio": Command(words=(sys.executable, driver, "--aio"), variables=path),
        },
        example=Command(words=(sys.executable, "examples/quickstart.py"), folder=PACKAGE, variables=path),
        benchmark=Command(words=(sys.executable, "benchmark.py"), folder=PACKAGE, variables=path),
        prove_install=prove_install,
    )


def prove_install(tree: Path, folder: Path) -> None:
    """Make a virtual environment, install the package by its path with pip, and run a program with it."""
    (folder / "try.py").write_text(TRY, encoding="utf-8")
    python = str(folder / "venv" / "bin" / "python")
    for words in (
        (sys.executable, "-m", "venv", str(folder / "venv")),
        (python, "-m", "pip", "--disable-pip-version-check", "-q", "install", f"{tree / PACKAGE}[httpx,requests]"),
        (python, "-I", "try.py"),
    ):
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
