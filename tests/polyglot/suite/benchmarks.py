"""
Measures what a cached call costs in each language, by its own tool: `python -m tests.polyglot.suite.benchmarks`.

Each runs beside a real, warm broker and prints nanoseconds of an authorization from memory and of the RPC, from one run.
Being less than `LEAST_RATIO` times cheaper is a failure.
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Final

from tests.polyglot.languages import ROOT, Language
from tests.polyglot.suite import processes, toolchains
from tests.polyglot.suite.dev import Dev, dev_broker

LEAST_RATIO: Final = 100
_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds of a call of both kinds, and how many times cheaper the cached one is."""

    cached_ns: float
    rpc_ns: float
    ratio: float


class BenchmarkError(Exception):
    """A benchmark failed; the text holds what it printed."""


async def measure(language: Language, dev: Dev) -> Measured:
    """
    Run a language's benchmark.

    Raises:
        BenchmarkError: it failed, or its last line is not what it must be.
    """
    command = language.benchmark
    code, said, complained = await processes.output(
        command.words,
        folder=ROOT / command.folder,
        environment=processes.clean_environment({**command.variables, **dev.environment()}),
        seconds=_SECONDS,
    )
    try:
        figures = json.loads(said.strip().splitlines()[-1])
        measured = Measured(*(float(figures[name]) for name in ("cached_ns", "rpc_ns", "ratio")))
    except (ValueError, KeyError, IndexError, TypeError):
        measured = None
    if code != 0 or measured is None:
        raise BenchmarkError(f"ended with {code} and printed\n{said[-2000:]}{complained[-2000:]}")
    return measured


async def run_all(languages: list[Language]) -> bool:
    """Measure all, one after the other; say whether each is as cheap as it must be."""
    well = True
    async with dev_broker() as dev:
        print(f"{'language':12}{'cached, ns':>12}{'RPC, ns':>12}{'ratio':>9}")
        for language in languages:
            try:
                measured = await measure(language, dev)
            except BenchmarkError as error:
                well = False
                print(f"{language.name:12}{error}", flush=True)
                continue
            cheap = measured.ratio >= LEAST_RATIO
            well = well and cheap
            text = f"{language.name:12}{measured.cached_ns:12,.0f}{measured.rpc_ns:12,.0f}{measured.ratio:9,.0f}"
            print(text + ("" if cheap else f"  less than {LEAST_RATIO}"), flush=True)
    return well


def main() -> int:
    """Measure the languages that are asked for; returns 0 when all are as cheap as they must be."""
    processes.heed_sigterm()
    return toolchains.run_for_wanted(lambda languages: asyncio.run(run_all(languages)))


if __name__ == "__main__":
    sys.exit(main())
