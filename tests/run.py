"""
Runs the parts of the test suite one after the other and prints the seconds of each: `python -m tests.run [PART ...]`.

A part that fails does not stop the others; the exit code tells. What the tests need beside Python is installed first
where that is possible (as root on Debian); what is missing is skipped with its reason, and fails under CI=true.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Two at a time: most tests wait for processes and sockets, and these machines have two cores.
PYTEST = [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider"]

PYTHON_MODULE = [sys.executable, "-m"]

PARTS: dict[str, list[list[str]]] = {
    "format": [
        [str(BIN / "ruff"), "format", "--check", "-q", "."],
        [str(BIN / "buf"), "format", "-d", "--exit-code", "protos"],
    ],
    "lint": [[str(BIN / "ruff"), "check", "-q", "."], [str(BIN / "buf"), "lint", "protos"]],
    "types": [[str(BIN / "mypy")]],
    "layers": [[str(BIN / "lint-imports")]],
    "unit": [[*PYTEST, "-n", "2", "tests/unit", "tests/fuzz"]],
    "contract": [[*PYTEST, "-n", "2", "tests/contract"]],
    "integration": [[*PYTEST, "-n", "2", "--dist", "loadfile", "tests/integration"]],
    # What is built of other languages, and what is proven with it; LANGS chooses some of them.
    "polyglot-build": [[*PYTHON_MODULE, "tests.polyglot.suite.builds"]],
    "conformance": [
        [*PYTHON_MODULE, "tests.polyglot", "--no-build", "--check-page"],
        [*PYTHON_MODULE, "tests.polyglot", "--mutations", "--sample"],
        [*PYTHON_MODULE, "tests.polyglot.suite.restarts", "--runs", "5"],
    ],
    "examples": [[*PYTHON_MODULE, "tests.polyglot.suite.examples"]],
    "dev": [
        [
            str(BIN / "credential-broker"),
            "dev",
            "--once",
            "--port",
            "0",
            "--admin-port",
            "0",
            "--http-port",
            "0",
            "--emulator-port",
            "0",
        ]
    ],
}
APT_TOOLS = {"strace": "strace", "ip": "iproute2", "curl": "curl"}


def install_tools() -> None:
    """Install the programs that tests call and that are not there."""
    missing = [package for program, package in APT_TOOLS.items() if shutil.which(program) is None]
    if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print(f"installing {', '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", "-qq", *command], stdout=subprocess.DEVNULL, env=environment, check=False)


def main() -> int:
    """Run the parts that are named, or all of them."""
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    install_tools()
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}
    results: list[tuple[str, float, bool]] = []
    for name in wanted:
        print(f"\n=== {name}", flush=True)
        started = time.monotonic()
        passed = all(
            subprocess.run(command, cwd=ROOT, env=environment, check=False, stdin=subprocess.DEVNULL).returncode == 0
            for command in PARTS[name]
        )
        results.append((name, time.monotonic() - started, passed))
    print("\n=== seconds of each part")
    for name, seconds, passed in results:
        print(f"{name:12} {seconds:7.1f}  {'passed' if passed else 'FAILED'}")
    print(f"{'all':12} {sum(seconds for _, seconds, _ in results):7.1f}")
    failed = sum(not passed for _, _, passed in results)
    print(f"parts: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
