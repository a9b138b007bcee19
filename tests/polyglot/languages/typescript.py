"""TypeScript: npm, tsc, node's test runner."""

import subprocess
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT, Command, Language

CLIENT: Final = "stubs/typescript"
DRIVER: Final = "tests/polyglot/drivers/typescript"
_TSC: Final = ("node", "node_modules/typescript/bin/tsc")
_PROGRAM: Final = """
import { BrokerClient, BrokerError, type Authorization } from "credentialbroker";
import { CredentialBrokerClient, ErrorReason } from "credentialbroker/v1";
import { BrokerAdminClient } from "credentialbroker/v1/admin";

using client = new BrokerClient({ address: "127.0.0.1:1", timeoutMs: 100 });
const ended: string = await client.authorization("inference", { thread: "t" }).then(
  (authorization: Authorization) => authorization.revision,
  (error: unknown) => (error instanceof BrokerError ? error.code : "another error"),
);
console.log(ended, ErrorReason.TASK_ENDED, CredentialBrokerClient.serviceName, BrokerAdminClient.serviceName);
"""
_CONFIG: Final = """
{
  "compilerOptions": {
    "module": "nodenext", "target": "es2022", "lib": ["es2023", "esnext.disposable"], "types": ["node"], "strict": true,
    "exactOptionalPropertyTypes": true
  },
  "include": ["main.ts"]
}
"""


def describe(tree: Path) -> Language:
    """Return how the TypeScript client of a tree is checked, built, run and installed."""
    place_modules = Command(words=("node", f"{DRIVER}/modules.mjs", str(ROOT / CLIENT)))
    package = Command(words=_TSC, folder=CLIENT)
    return Language(
        name="typescript",
        programs=("node", "npm"),
        checks=(
            place_modules,
            package,
            Command(words=("npm", "run", "--silent", "lint"), folder=CLIENT),
            Command(words=("npm", "test", "--silent"), folder=CLIENT),
        ),
        build=(
            place_modules,
            package,
            Command(words=(*_TSC, "-p", "tsconfig.dev.json"), folder=CLIENT),
            Command(words=("node", f"{tree / CLIENT}/node_modules/typescript/bin/tsc"), folder=DRIVER),
        ),
        drivers={"typescript": Command(words=("node", "build/driver.js"), folder=DRIVER)},
        example=Command(words=("node", "build/examples/quickstart.js"), folder=CLIENT),
        benchmark=Command(words=("node", "build/bench/authorization.js"), folder=CLIENT),
        prove_install=prove_install,
    )


def prove_install(tree: Path, folder: Path) -> None:
    """
    Make a TypeScript project, install the package by path as its README says, type-check and run a program of it.

    Raises:
        subprocess.CalledProcessError: it cannot be installed, checked or run.
    """

    def run(*words: str) -> str:
        return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout

    run("npm", "init", "-y", "--init-type=module")
    run("npm", "install", str(tree / CLIENT))
    run("npm", "install", "--save-dev", "typescript@6.0.3", "@types/node@20.19.43")
    (folder / "main.ts").write_text(_PROGRAM, encoding="utf-8")
    (folder / "tsconfig.json").write_text(_CONFIG, encoding="utf-8")
    run("npx", "tsc")
    said = run("node", "main.js").split()
    wanted = ["DEADLINE_EXCEEDED", "ERROR_REASON_TASK_ENDED"]
    if said[:2] != wanted:
        raise subprocess.CalledProcessError(1, "node main.js", " ".join(said))
