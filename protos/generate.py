# ruff: noqa: INP001 - a script beside the .proto files, not a package
"""
Writes the checked-in stubs from the .proto files, or checks that they are what the .proto files give.

    python protos/generate.py                       write every language
    python protos/generate.py --languages python    write some
    python protos/generate.py --check               write nothing; exit 1 with a diff where files are not current

Each language's generator is a module of generators/. Their programs live under .build/, made on first use from pins in
this repository, so that neither the machine nor the broker's own dependencies can change what is written.
"""

import argparse
import difflib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generators import go, java, python, rust, typescript
from generators.tools import Language

LANGUAGES: Final = {
    "go": go.LANGUAGE,
    "java": java.LANGUAGE,
    "python": python.LANGUAGE,
    "rust": rust.LANGUAGE,
    "typescript": typescript.LANGUAGE,
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
