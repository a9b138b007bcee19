"""
What `credential-broker dev` prints to be pasted next: data, so that a test runs each of them exactly as printed.

Each snippet is one command line of a POSIX shell, or several. Addresses are left out where they are the defaults.
"""

import shlex
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

CALLER_ADDRESS: Final = "127.0.0.1:50051"
ADMIN_ADDRESS: Final = "127.0.0.1:50052"
EMULATOR_URL: Final = "http://127.0.0.1:8089"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    Where a broker runs, and which programs reach it.

    Attributes:
        caller_address: HOST:PORT of the callers' listener.
        admin_address: HOST:PORT of the operators' listener.
        emulator_url: where the emulated backend is.
        program: how `credential-broker` is called from here.
        python: how a Python with the stubs is called from here.
        buf: how `buf` is called from here.
        checkout: the folder of the sources, as named from here; None where there is none.
    """

    caller_address: str
    admin_address: str
    emulator_url: str
    program: str = "credential-broker"
    python: str = "python"
    buf: str = "buf"
    checkout: str | None = None


@dataclass(frozen=True, slots=True)
class Snippet:
    """
    Something to paste.

    Attributes:
        title: what it shows, in a few words.
        text: what to paste, without a line end.
    """

    title: str
    text: str


def snippets(place: Place) -> tuple[Snippet, ...]:
    """Return what to try beside the broker at `place`, in an order that builds up."""
    program, url = shlex.quote(place.program), place.emulator_url
    caller = "" if place.caller_address == CALLER_ADDRESS else f" --address {place.caller_address}"
    admin = "" if place.admin_address == ADMIN_ADDRESS else f" --admin-address {place.admin_address}"
    emulator = "" if url == EMULATOR_URL else f" --url {url}"
    return (
        Snippet("one authorization", f"{program} get --scope inference --thread t1{caller}"),
        Snippet(
            "attached to a call, which the backend verifies",
            f"{program} get --scope inference --thread t1{caller} \\\n"
            f"  | curl -sS -H @- {url}/backend-api/codex/models",
        ),
        Snippet("why it is of this kind", f"{program} explain --scope inference --thread t1{caller}"),
        Snippet(
            "what the operator sees",
            f"{program} status{admin}\n{program} identity list{admin}\n{program} task list{admin}",
        ),
        Snippet(
            "kept current; without --count, until Ctrl-C",
            f"{program} watch --scope inference --thread t1 --count 1{caller}",
        ),
        Snippet("another key, while calls go on", f"{program} identity rotate dev{admin}"),
        Snippet("what the backend saw", f"{program} emulator ledger{emulator}"),
        Snippet("with buf, or any other gRPC client", _buf_curl(place)),
        *_quickstarts(place),
    )


def _buf_curl(place: Place) -> str:
    return f"""\
{shlex.quote(place.buf)} curl --protocol grpc --http2-prior-knowledge \\
  -H 'x-credential-broker: 1' --reflect-header 'x-credential-broker: 1' \\
  -d '{{"scope": "inference", "thread_id": "t1"}}' \\
  http://{place.caller_address}/credentialbroker.v1.CredentialBroker/GetAuthorization"""


def _quickstarts(place: Place) -> tuple[Snippet, ...]:
    """Return the example of each language, run against this broker as people of that language run one."""
    if place.checkout is None:
        return (
            Snippet(
                "from Python, Go, TypeScript, Java or Rust",
                "# stubs/README.md says how: it comes with the sources, which this installation is without",
            ),
        )
    folder = shlex.quote(str(PurePath(place.checkout, "stubs")))
    caller = "" if place.caller_address == CALLER_ADDRESS else f"CREDENTIAL_BROKER_ADDRESS={place.caller_address} "
    url = "" if place.emulator_url == EMULATOR_URL else f"{place.emulator_url}/backend-api/codex/models"
    last = f" {url}" if url else ""
    only = f" -- {url}" if url else ""
    return (
        Snippet("from Python", f"{caller}{shlex.quote(place.python)} {folder}/python/examples/quickstart.py{last}"),
        Snippet("from Go", f"(cd {folder}/go && {caller}go run ./examples/quickstart{last})"),
        Snippet(
            "from TypeScript",
            f"(cd {folder}/typescript && npm install --silent && {caller}npm run --silent quickstart{only})",
        ),
        Snippet(
            "from Java",
            f"(cd {folder}/java && {caller}mvn -q -B -pl examples/quickstart -am compile exec:java"
            + (f" -Dexec.args={url})" if url else ")"),
        ),
        Snippet(
            "from Rust",
            f"(cd {folder}/rust && {caller}cargo run --quiet --example quickstart --features tower{only})",
        ),
    )
