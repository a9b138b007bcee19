"""What is run for each language beside the cases: builds, quickstarts, benchmarks, and what counts as a leak."""

import sys
from pathlib import Path

import pytest

from tests.polyglot.languages import ROOT, Command, Language
from tests.polyglot.suite import builds, examples
from tests.polyglot.suite.benchmarks import BenchmarkError, Measured, measure
from tests.polyglot.suite.dev import Dev
from tests.polyglot.suite.restarts import SPARE, Held

DEV = Dev("127.0.0.1:1", "http://127.0.0.1:2/x")


def python(program: str) -> Command:
    """Return a command that runs a program of a line."""
    return Command(words=(sys.executable, "-c", program))


def language(program: str) -> Language:
    """Return a language whose every command is that program."""
    one = python(program)

    def installed(_tree: Path, _folder: Path) -> None:
        return

    return Language(
        name="one", programs=(), checks=(one,), build=(one,), drivers={}, example=one, benchmark=one,
        prove_install=installed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import sys; print('AGENT_ASSERTION', 200, file=sys.stdout)", None),
        ("print('hello'); print('AGENT_ASSERTION 200')", None),
        ("print('BEARER 200')", "BEARER 200"),
        ("print('AGENT_ASSERTION 200'); print('more')", "more"),
        ("print('AGENT_ASSERTION 200'); raise SystemExit(3)", "ended with 3"),
        ("import sys; sys.exit('no broker')", "no broker"),
    ],
)
async def test_what_a_quickstart_must_print(program: str, failure: str | None) -> None:
    """The kind and the status, as its last line, and an exit code of 0."""
    told = await examples.run(language(program), DEV)
    assert (told is None) if failure is None else (failure in (told or ""))


async def test_a_quickstart_is_told_where_everything_is() -> None:
    """The broker by its variable, the resource as its argument, and nothing of who runs it."""
    told = await examples.run(
        language("import os, sys; print(os.environ['CREDENTIAL_BROKER_ADDRESS'], sys.argv[1])"), DEV
    )
    assert told is not None
    assert "dns:///127.0.0.1:1 http://127.0.0.1:2/x" in told


async def test_what_a_benchmark_must_print() -> None:
    """Its figures, as its last line."""
    program = 'print(\'warming up\'); print(\'{"cached_ns": 200.5, "rpc_ns": 401000, "ratio": 2000}\')'
    assert await measure(language(program), DEV) == Measured(200.5, 401000.0, 2000.0)


@pytest.mark.parametrize("program", ["print('fast')", "print('{}')", "pass", "raise SystemExit(1)"])
async def test_a_benchmark_without_figures(program: str) -> None:
    """Has failed."""
    with pytest.raises(BenchmarkError, match=r"ended with [01] and printed"):
        await measure(language(program), DEV)


def test_a_build_that_fails_says_what_and_where() -> None:
    """With what it printed; one that does well says nothing, nor one whose program is not there goes unseen."""
    assert builds.run(python("pass")) is None
    failure = builds.run(python("print('what is wrong'); raise SystemExit(7)"))
    assert failure is not None
    assert "ended with 7:\nwhat is wrong" in failure
    missing = builds.run(Command(words=("no-such-compiler",)), tree=ROOT)
    assert missing is not None
    assert "no-such-compiler" in missing
    assert builds.check(language("raise SystemExit(1)")) is not None
    assert builds.build(language("pass")) is None


@pytest.mark.parametrize(
    ("files", "threads", "leaks"), [(8, 6, False), (8 + SPARE, 6, False), (9 + SPARE, 6, True), (8, 7 + SPARE, True)]
)
def test_what_is_a_leak(files: int, threads: int, *, leaks: bool) -> None:
    """More files or threads than come and go; fewer are none."""
    assert Held(files, threads).leaks_beside(Held(8, 6)) is leaks
