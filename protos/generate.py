# ruff: noqa: INP001 - a script beside the .proto files, not a package
"""
Writes the checked-in stubs from the .proto files, or checks that they are what the .proto files give.

    python protos/generate.py                       write every language
    python protos/generate.py --languages python    write some
    python protos/generate.py --check               write nothing; exit 1 with a diff where files are not current

Generators live in environments of their own under .build/, made on first use from the hashed pins in requirements/,
so that neither the machine nor the broker's own dependencies can change what is written.
"""

import argparse
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
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


def tool_environment(name: str, requirements: Path) -> Path:
    """
    Make the environment `.build/<name>` from hashed pins, unless it is there and made from these very pins.

    Args:
        name: folder of the environment under .build/.
        requirements: file of pins with hashes.

    Returns:
        The folder of its programs.

    Raises:
        SystemExit: uv is not there, or the pins cannot be installed.
    """
    environment = BUILD / name
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    stamp = environment / "pins.sha256"
    pins = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii") == pins:
        return programs
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath])) or shutil.which("uv")
    if uv is None:
        sys.exit("generate: uv is needed to make the generators' environment; install the dev dependencies first")
    for command in (
        # Any Python from 3.11 on gives the same output; the running one is the one that surely exists.
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(environment), str(requirements)],
    ):
        if subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603 - fixed programs, no shell
            sys.exit(f"generate: {' '.join(command)} failed")
    stamp.write_text(pins, encoding="ascii")
    return programs


def generate_python(target: Path) -> None:
    """Write messages and services (grpcio-tools) and their types (mypy-protobuf) into `target`."""
    programs = tool_environment("generate", ROOT / "requirements" / "generate.txt")
    command = [
        str(programs / "python"),
        "-m",
        "grpc_tools.protoc",
        # Relative to the working folder, so that no path of this machine can reach a generated file.
        "--proto_path=.",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{target}",
        f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out=quiet:{target}",
        *proto_files(),
    ]
    # The hash seed could order a set in a plugin; fixing it keeps the output the same in every run.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # noqa: TID251 - a build script, no settings of the broker
    if subprocess.run(command, cwd=PROTOS, env=environment, check=False).returncode:  # noqa: S603 - fixed program
        sys.exit("generate: the Python generator failed")


LANGUAGES: Final = {
    "python": Language(
        folder=ROOT / "stubs" / "python",
        patterns=("**/*_pb2.py", "**/*_pb2_grpc.py", "**/*_pb2.pyi", "**/*_pb2_grpc.pyi"),
        generate=generate_python,
    ),
}


def read_generated(language: Language, folder: Path) -> dict[str, bytes]:
    """Return the generated files below `folder`, by name relative to it."""
    paths = {path for pattern in language.patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}


def differences(wanted: dict[str, bytes], present: dict[str, bytes], label: str) -> Iterator[str]:
    """Yield the lines of a unified diff from the files that are present to those that should be; none if all equal."""
    for name in sorted(wanted.keys() | present.keys()):
        if wanted.get(name) == present.get(name):
            continue
        before, after = (
            files.get(name, b"").decode("utf-8", "backslashreplace").splitlines(keepends=True)
            for files in (present, wanted)
        )
        yield f"{label}/{name} differs\n"  # also where the difference is one that a diff of lines does not show
        yield from difflib.unified_diff(before, after, f"checked in: {label}/{name}", f"generated: {label}/{name}")


def write(language: Language, wanted: dict[str, bytes]) -> None:
    """Put the wanted files in place and remove generated files that are no longer made."""
    for name in read_generated(language, language.folder).keys() - wanted.keys():
        (language.folder / name).unlink()
    for name, content in wanted.items():
        path = language.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 written or current, 1 not current."""
    parser = argparse.ArgumentParser(prog="generate.py", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff where not current")
    parser.add_argument(
        "--languages", nargs="+", choices=sorted(LANGUAGES), default=sorted(LANGUAGES), metavar="LANGUAGE",
        help=f"which stubs (default all: {', '.join(sorted(LANGUAGES))})",
    )  # fmt: skip
    options = parser.parse_args(arguments)

    current = True
    for name in options.languages:
        language = LANGUAGES[name]
        with tempfile.TemporaryDirectory(prefix="stubs-") as scratch:
            language.generate(Path(scratch))
            wanted = read_generated(language, Path(scratch))
        if not options.check:
            write(language, wanted)
            continue
        lines = list(differences(wanted, read_generated(language, language.folder), f"stubs/{name}"))
        sys.stdout.writelines(lines)
        if lines:
            current = False
            sys.stderr.write(f"stubs/{name} is not what protos/ gives; run: python protos/generate.py\n")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
