# ruff: noqa: INP001 - beside the .proto files, not a package
"""What the generators of all languages need: places, how a tool is run, environments made from pins."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROTOS: Final = ROOT / "protos"
BUILD: Final = ROOT / ".build"


@dataclass(frozen=True, slots=True)
class Language:
    """
    One language's stubs.

    Attributes:
        folder: where they are checked in.
        patterns: globs of the generated files in it; files that match and are no longer generated are removed.
        generate: writes them into the folder it is given.
    """

    folder: Path
    patterns: tuple[str, ...]
    generate: Callable[[Path], None]


def proto_files() -> list[str]:
    """Return every .proto file as protoc names it, sorted, relative to protos/."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def run_tool(command: Sequence[str | Path], *, cwd: Path = PROTOS, env: Mapping[str, str] | None = None) -> None:
    """
    Run a program of the build.

    Args:
        command: it and its arguments.
        cwd: where. By default protos/, so that .proto files are named relatively and no path of this machine can reach
            a generated file.
        env: variables laid over those of this process.

    Raises:
        SystemExit: it is not there, or failed.
    """
    words = [str(word) for word in command]
    # The hash seed could order a set in a Python plugin; fixing it keeps the output the same in every run.
    environment = {**os.environ, "PYTHONHASHSEED": "0", **(env or {})}  # noqa: TID251 - a build script
    try:
        code = subprocess.run(words, cwd=cwd, env=environment, check=False).returncode  # noqa: S603 - fixed programs
    except FileNotFoundError:
        sys.exit(f"generate: {words[0]} is not installed")
    if code:
        sys.exit(f"generate: {' '.join(words)} failed")


def pinned(name: str, pins: bytes, install: Callable[[Path], None]) -> Path:
    """
    Make the folder `.build/<name>` with `install`, unless it is there and was made from these very pins.

    Args:
        name: the folder's name under .build/.
        pins: what says which versions it holds; other pins make it anew.
        install: fills the folder, which is empty.

    Returns:
        The folder.
    """
    folder = BUILD / name
    stamp = folder / "pins.sha256"
    wanted = hashlib.sha256(pins).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="ascii") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(folder)
        stamp.write_text(wanted, encoding="ascii")
    return folder


def python_tools() -> Path:
    """
    Make the environment of the Python generators from the hashed pins in requirements/generate.txt.

    Returns:
        The folder of its programs. Its `python -m grpc_tools.protoc` is a protoc that runs the plugins of any language.

    Raises:
        SystemExit: uv is not there, or the pins cannot be installed.
    """
    requirements = ROOT / "requirements" / "generate.txt"

    def install(folder: Path) -> None:
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
        uv = shutil.which("uv", path=beside) or shutil.which("uv")
        if uv is None:
            sys.exit("generate: uv is needed to make the generators' environment; install the dev dependencies first")
        # Any Python from 3.11 on gives the same output; the running one is the one that surely exists.
        run_tool([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], cwd=ROOT)
        run_tool([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", folder, requirements], cwd=ROOT)

    return pinned("generate", requirements.read_bytes(), install) / ("Scripts" if os.name == "nt" else "bin")


def protoc() -> list[str]:
    """Return the command of a protoc that runs plugins and writes descriptor sets (and Python, but no Java)."""
    return [str(python_tools() / "python"), "-m", "grpc_tools.protoc", "--proto_path=."]
