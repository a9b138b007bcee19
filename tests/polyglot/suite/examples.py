"""
Runs the quickstart of each language beside `credential-broker dev`: `python -m tests.polyglot.suite.examples`.

Each must print `AGENT_ASSERTION 200`: the kind of the credential, and what the emulator answered.
"""

import asyncio
import sys
import time
from typing import Final

from tests.polyglot.languages import ROOT, Language
from tests.polyglot.suite import processes, toolchains
from tests.polyglot.suite.dev import Dev, dev_broker

WANTED: Final = "AGENT_ASSERTION 200"
_SECONDS: Final = 120.0


async def run(language: Language, dev: Dev) -> str | None:
    """Run one; return what to say of its failure, None when it printed what it must."""
    command = language.example
    code, said, complained = await processes.output(
        [*command.words, dev.resource],
        folder=ROOT / command.folder,
        environment=processes.clean_environment({**command.variables, **dev.environment()}),
        seconds=_SECONDS,
    )
    if code == 0 and said.strip().splitlines()[-1:] == [WANTED]:
        return None
    return f"ended with {code} and printed\n{said}{complained[-3000:]}"


async def run_all(languages: list[Language]) -> bool:
    """Run those of all languages, one after the other; say whether all did well."""
    well = True
    async with dev_broker() as dev:
        for language in languages:
            began = time.monotonic()
            failure = await run(language, dev)
            well = well and failure is None
            print(f"{language.name:12}{time.monotonic() - began:7.1f} s  {failure or WANTED}", flush=True)
    return well


def main() -> int:
    """Run the examples of the languages that are asked for; returns 0 when all did well."""
    processes.heed_sigterm()
    return toolchains.run_for_wanted(lambda languages: asyncio.run(run_all(languages)))


if __name__ == "__main__":
    sys.exit(main())
