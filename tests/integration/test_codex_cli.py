"""A real Codex CLI against the emulator, with nothing between them but what the emulator's banner says to do.

The program is the one that `CODEX_CLI` names, or the `codex` that is there; with `CODEX_CLI_INSTALL` or `CI` set npm
installs it into a temporary folder. Otherwise this is skipped. Seen working with `@openai/codex` 0.169.0.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

VERSION = "0.169.0"


@pytest.fixture(scope="module")
def codex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, or a skip."""
    if named := os.environ.get("CODEX_CLI"):
        return Path(named)
    if found := shutil.which("codex"):
        return Path(found)
    if not (os.environ.get("CODEX_CLI_INSTALL") or os.environ.get("CI")):
        pytest.skip("needs Codex CLI: name it in CODEX_CLI, or set CODEX_CLI_INSTALL to have npm install it")
    npm = shutil.which("npm")
    assert npm is not None, "npm is needed to install the Codex CLI"
    folder = tmp_path_factory.mktemp("codex")
    install = (npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"@openai/codex@{VERSION}")
    subprocess.run(install, check=True, timeout=300, capture_output=True)
    return folder / "node_modules" / ".bin" / "codex"


@pytest.mark.slow
@pytest.mark.needs("codex")
@pytest.mark.timeout(300)
def test_codex_registers_its_task_and_its_calls_verify(codex: Path, tmp_path: Path) -> None:
    """Following the banner as printed, Codex registers tasks, has its calls verified, and completes a run."""
    run = "from broker.cli.emulator import command; command()"
    emulator = subprocess.Popen((sys.executable, "-c", run, "--port", "0"), stdout=subprocess.PIPE, text=True)
    try:
        assert emulator.stdout is not None
        banner = [emulator.stdout.readline()]
        while "ledger" not in banner[-1]:
            banner.append(emulator.stdout.readline())
        url = banner[0].split()[1]
        steps = "".join(banner[_index(banner, "Point a real") + 1 : _index(banner, "See what it verified")])
        done = _paste(steps, codex, tmp_path)
        ledger = httpx.get(f"{url}/_emulator/ledger", trust_env=False).json()
        tasks = httpx.get(f"{url}/_emulator/tasks", trust_env=False).json()
    finally:
        emulator.terminate()
        emulator.communicate(timeout=30)
    assert done.returncode == 0, done.stderr
    assert "the emulator verified this call" in done.stdout
    registrations = [entry for entry in ledger["entries"] if entry["operation"] == "task_register"]
    assert registrations
    assert {entry["verdict"] for entry in registrations} == {"verified"}
    assert tasks["count"] == len(registrations)
    asserted = [entry for entry in ledger["entries"] if entry["credential_kind"] == "agent_assertion"]
    assert {entry["verdict"] for entry in asserted} == {"verified"}, json.dumps(ledger["by_refusal"])
    streamed = [entry for entry in asserted if (entry["method"], entry["status"]) == ("POST", 200)]
    assert "/backend-api/codex/responses" in {entry["path"] for entry in streamed}


def _index(lines: list[str], start: str) -> int:
    return next(number for number, line in enumerate(lines) if line.startswith(start))


def _paste(steps: str, codex: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the banner's steps in a shell that has `credential-broker` and `codex` and reaches loopback only."""
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    (tmp_path / ".codex").mkdir()
    (programs / "codex").symlink_to(codex.resolve())
    shim = programs / "credential-broker"
    run = "import sys; del sys.argv[1]; from broker.cli.emulator import command; command()"
    shim.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{run}' \"$@\"\n")
    shim.chmod(0o755)
    node = shutil.which("node")
    path = [str(programs), *([str(Path(node).parent)] if node else []), os.environ["PATH"]]
    nowhere = "http://127.0.0.1:9"
    return subprocess.run(
        ("bash", "-euc", steps),
        cwd=work,
        env={
            "PATH": os.pathsep.join(path),
            "HOME": str(tmp_path),
            "CODEX_HOME": str(tmp_path / ".codex"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
