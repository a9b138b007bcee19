"""Checking, building and installing a language's package: `python -m tests.polyglot.suite.builds check build install`."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT, Command, Language
from tests.polyglot.suite import toolchains

SECONDS: Final = 900.0
"""For one command with cold caches."""
_SHOWN: Final = 6000


def run(command: Command, *, tree: Path = ROOT, seconds: float = SECONDS) -> str | None:
    """Run a command; return what to say of its failure, None when it did well."""
    words = " ".join(command.words)
    try:
        done = subprocess.run(
            command.words,
            cwd=tree / command.folder,
            env=command.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words}: {error}"
    if done.returncode == 0:
        return None
    said = done.stdout.decode(errors="replace").strip()[-_SHOWN:]
    return f"{words} (in {command.folder}) ended with {done.returncode}:\n{said}"


def check(language: Language) -> str | None:
    """Run formatter, linter and unit tests of a language; return what to say of the first failure."""
    return next(filter(None, map(run, language.checks)), None)


def build(language: Language, tree: Path = ROOT) -> str | None:
    """Make its driver, example and benchmark ready; return what to say of the first failure."""
    return next((failure for command in language.build if (failure := run(command, tree=tree))), None)


def install(language: Language) -> str | None:
    """Install its package by path in an empty project outside the repository, and use it there."""
    with tempfile.TemporaryDirectory(prefix=f"install-{language.name}-") as folder:
        try:
            language.prove_install(ROOT, Path(folder))
        except subprocess.CalledProcessError as error:
            said = "\n".join(
                one.decode(errors="replace") if isinstance(one, bytes) else one
                for one in (error.stdout, error.stderr)
                if one
            )
            return f"{error}\n{said[-_SHOWN:]}"
    return None


_STEPS: Final[dict[str, Callable[[Language], str | None]]] = {"build": build, "check": check, "install": install}


def main() -> int:
    """Do what is named for all languages that are asked for; returns 0 when all went well."""
    parser = argparse.ArgumentParser(prog="python -m tests.polyglot.suite.builds", description=__doc__)
    parser.add_argument("steps", nargs="*", default=list(_STEPS), metavar="STEP", help=f"of {', '.join(_STEPS)}")
    options = parser.parse_args()

    def work(languages: list[Language]) -> bool:
        well = True
        for language in languages:
            for step in options.steps:
                began = time.monotonic()
                failure = _STEPS[step](language)
                well = well and failure is None
                print(
                    f"{language.name:12}{step:9}{time.monotonic() - began:7.1f} s  {'FAILED' if failure else 'ok'}",
                    flush=True,
                )
                if failure:
                    print(failure, flush=True)
        return well

    return toolchains.run_for_wanted(work)


if __name__ == "__main__":
    sys.exit(main())
