"""The layers hold, and each rule is one that can be broken: a violation of it turns the check red."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> tuple[int, str]:
    """Check the layers of the tree in `folder`; return the exit code and what was said."""
    done = subprocess.run([LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """The packages and the rules, to be spoilt."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "broker", tmp_path / "broker", ignore=ignore)
    shutil.copytree(ROOT / "stubs/python/credentialbroker", tmp_path / "credentialbroker", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_layers_hold() -> None:
    """No module knows one that stands above or beside it, and every module has its place."""
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        pytest.param("model.py", "import broker.errors", "data flows one way", id="upwards"),
        pytest.param("authorization.py", "import broker.tasks", "data flows one way", id="sideways"),
        pytest.param("utils.py", "", "data flows one way", id="without-a-place"),
        pytest.param("policy.py", "import time", "pure modules", id="clock-in-a-pure-module"),
        pytest.param("scopes.py", "import os", "pure modules", id="system-in-a-pure-module"),
        pytest.param("registration.py", "import grpc", "protobuf and grpc stay at the edge", id="grpc-inside"),
        pytest.param(
            "errors.py", "import credentialbroker.v1", "protobuf and grpc stay at the edge", id="protobuf-inside"
        ),
        pytest.param("app.py", "import grpc", "the composition root", id="grpc-in-the-root"),
        pytest.param("app.py", "import broker.emulator", "serving never loads the emulator", id="emulator-in-serve"),
        pytest.param("emulator/verify.py", "import broker.keys", "code of its own", id="keys-in-the-emulator"),
        pytest.param("emulator/verify.py", "import broker.model", "code of its own", id="words-in-the-emulator"),
        pytest.param("rpc/admin.py", "import broker.store.sqlite", "only app opens", id="driver-in-a-servicer"),
        pytest.param("snapshots.py", "import sqlalchemy", "only app opens", id="statements-in-the-snapshots"),
    ],
)
def test_a_violation_is_seen(copied_tree: Path, module: str, line: str, contract: str) -> None:
    """Each rule, broken once, is the one that is reported."""
    path = copied_tree / "broker" / module
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{line}\n", encoding="utf-8")
    code, said = lint(copied_tree)
    assert code == 1, said
    broken = [reported.removesuffix(" BROKEN") for reported in said.splitlines() if reported.endswith(" BROKEN")]
    assert any(contract in name for name in broken), said


def test_the_copied_tree_is_what_is_checked(copied_tree: Path) -> None:
    """The copy is clean before it is spoilt, so that what is seen then is what was put in."""
    code, said = lint(copied_tree)
    assert code == 0, said


def test_lists_of_modules_are_complete() -> None:
    """A new module cannot slip past a rule that lists modules: the emulator's and the wire's name all that they must."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    modules = {
        f"broker.{path.stem}"
        for path in (ROOT / "broker").iterdir()
        if path.name not in {"__init__.py", "__main__.py", "__pycache__"}
        if path.suffix == ".py" or path.is_dir()
    }
    (emulator,) = (rule for rule in rules if "code of its own" in rule["name"])
    assert set(emulator["forbidden_modules"]) == modules - {"broker.emulator"}
    (wire,) = (rule for rule in rules if "at the edge" in rule["name"])
    assert set(wire["source_modules"]) == modules - {"broker.app", "broker.cli", "broker.rpc"}
