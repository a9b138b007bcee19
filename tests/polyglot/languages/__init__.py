"""
How each language's package is checked, built, run and installed: one module a language, all of this shape.

Everything is built from a tree, which is this repository or a copy of the parts that matter (`TREE_PARTS`), with a
defect put in on purpose. What a build may share between trees (downloaded packages, compiled dependencies) it shares.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
BUILD: Final = ROOT / ".build" / "polyglot"
TREE_PARTS: Final = ("protos", "stubs", "tests/polyglot/drivers")
"""What a copied tree holds of the repository."""
NAMES: Final = ("python", "go", "typescript", "java", "rust")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """
    A program to run.

    Attributes:
        words: it and its arguments.
        folder: where, relative to the tree.
        variables: laid over the environment.
    """

    words: tuple[str, ...]
    folder: str = "."
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the whole environment to run it with."""
        return {**os.environ, **self.variables}


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """
    One language.

    Attributes:
        name: as its folder in stubs/ is called.
        programs: what must be on PATH, e.g. `("go",)`; a missing one skips the language (under CI=true: fails).
        checks: formatting, lint and the unit tests of the client itself, one after the other.
        build: makes driver, example and benchmark ready to run; run again after a change it is incremental.
        drivers: name of a variant to the command of its driver. Most languages have one variant, named as the language.
        example: the quickstart. It runs beside a broker (CREDENTIAL_BROKER_ADDRESS) and gets as its one argument the URL
            of a protected resource; it prints the kind of credential and the status, `AGENT_ASSERTION 200`.
        benchmark: the language's own benchmark tool, beside a broker (CREDENTIAL_BROKER_ADDRESS). Its last line of
            standard output is `{"cached_ns": ..., "rpc_ns": ..., "ratio": ...}`, nanoseconds a call of both, from one run.
        prove_install: in the empty folder that it is given, outside the repository, makes a project of the language,
            adds the package of the given tree by local path with the language's usual command, builds and runs a program
            that imports stub and client. Raises `subprocess.CalledProcessError` with the output when that fails.
    """

    name: str
    programs: tuple[str, ...]
    checks: tuple[Command, ...]
    build: tuple[Command, ...]
    drivers: Mapping[str, Command]
    example: Command
    benchmark: Command
    prove_install: Callable[[Path, Path], None]


def language(name: str, tree: Path = ROOT) -> Language:
    """
    Return a language, for a tree.

    Args:
        name: one of `NAMES`.
        tree: the repository, or a copy of its `TREE_PARTS`.
    """
    module = importlib.import_module(f"tests.polyglot.languages.{name}")
    made: Language = module.describe(tree)
    return made
