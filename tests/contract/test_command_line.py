"""The command line starts fast because it loads little, and its page in docs/ is what its help says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("grpc", "google.protobuf", "httpx", "sqlalchemy", "pydantic", "rich", "uvicorn", "starlette", "cryptography")


def loaded_by(*arguments: str) -> set[str]:
    """Run the command line in a process of its own and return the modules it loaded."""
    script = (
        "import sys, json, atexit; atexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))));"
        "from broker.__main__ import main; sys.argv[0] = 'credential-broker'; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_root_help_loads_nothing_heavy(argument: str) -> None:
    """`--help` and `--version` load neither gRPC nor a web server, a database or a validator, nor any command."""
    loaded = loaded_by(argument)
    assert not {name for name in loaded if name in HEAVY}
    assert {name for name in loaded if name.startswith("broker")} == {"broker", "broker.__main__", "broker.cli"}


@pytest.mark.parametrize("command", ["serve", "get", "check-config"])
def test_no_command_but_dev_and_emulator_loads_the_emulator(command: str) -> None:
    """The serving program never loads the emulated backend."""
    assert not {name for name in loaded_by(command, "--help") if "emulator" in name}


def test_completion_offers_commands_without_loading_them() -> None:
    """Completing a command's name loads no command."""
    environment = {
        "_CREDENTIAL_BROKER_COMPLETE": "bash_complete",
        "COMP_WORDS": "credential-broker e",
        "COMP_CWORD": "1",
    }
    script = "import sys; from broker.__main__ import main\ntry: main()\nfinally: print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()[:-1]] == ["emulator", "explain", "end-task"]
    assert done.stdout.splitlines()[-1] == "False"


def test_the_page_in_docs_is_current() -> None:
    """docs/cli.md is what docs/build_cli.py writes from the commands' help."""
    done = subprocess.run(
        [sys.executable, "docs/build_cli.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
