"""Runs the conformance suite: `python -m tests.polyglot` (`--help` says all)."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.polyglot.suite import builds, cases, lanes, matrix, mutations, processes, toolchains

_SAMPLE = "cache,withdrawal"
"""Of which groups `make test` tries the defects, in the first language alone."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0 when everything that was run is green."""
    parser = argparse.ArgumentParser(prog="python -m tests.polyglot", description=__doc__)
    parser.add_argument("--languages", metavar="NAMES", help="apart by commas; default: LANGS, else all")
    parser.add_argument("--cases", metavar="PATTERNS", help="names of cases or groups, as in a shell, apart by commas")
    parser.add_argument("--no-build", action="store_true", help="the drivers are built already")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    parser.add_argument("--check-page", action="store_true", help="fail when docs/conformance.md is not current")
    parser.add_argument("--once", action="store_true", help="do not try again, alone, what was red")
    parser.add_argument("--list", action="store_true", help="list the cases and run none")
    parser.add_argument("--mutations", action="store_true", help="put each defect of mutations/ into the clients")
    parser.add_argument("--groups", metavar="PATTERNS", help="with --mutations: of which groups, apart by commas")
    parser.add_argument(
        "--sample", action="store_true", help="with --mutations: of one language and of two groups, as in make test"
    )
    options = parser.parse_args(arguments)
    processes.heed_sigterm()
    try:
        every_case = cases.load()
        names = toolchains.wanted(options.languages)
    except (cases.CaseError, toolchains.UnknownLanguageError) as error:
        print(error, file=sys.stderr)
        return 2
    chosen = cases.selected(every_case, options.cases)
    if not chosen:
        print(f"no case is like {options.cases}", file=sys.stderr)
        return 2
    if options.list:
        for case in chosen:
            print(f"{case.group:12} {case.lane:9} {case.name:40} {case.behaviour}")
        print(f"{len(chosen)} cases")
        return 0
    if options.mutations:
        return _run_mutations(options, every_case, names)
    return _run(options, every_case, chosen, names)


def _run_mutations(options: argparse.Namespace, every_case: list[cases.Case], names: tuple[str, ...]) -> int:
    languages, missing = toolchains.present(names[:1] if options.sample else names)
    groups = _SAMPLE if options.sample else options.groups
    try:
        wanted = {one.name: mutations.chosen(mutations.load(one.name, every_case), groups) for one in languages}
    except mutations.MutationError as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = [
        verdict for name, some in wanted.items() for verdict in asyncio.run(mutations.run(name, some, every_case))
    ]
    survived = [verdict for verdict in verdicts if verdict.problem]
    for one in missing:
        print(f"skipped  {one.name}: {one.reason}")
    print(f"{len(verdicts) - len(survived)} of {len(verdicts)} defects were found")
    return 1 if survived or (missing and toolchains.in_ci()) else 0


def _run(
    options: argparse.Namespace, every_case: list[cases.Case], chosen: list[cases.Case], names: tuple[str, ...]
) -> int:
    languages, missing = toolchains.present(names)
    variants: list[lanes.Variant] = []
    problems: list[str] = []
    for language in languages:
        failure = None if options.no_build else builds.build(language)
        if failure is not None:
            problems.append(failure)
            continue
        variants += [lanes.Variant(name, command) for name, command in language.drivers.items()]

    def progress(result: matrix.Result) -> None:
        of = f" ({result.adapter})" if result.adapter else ""
        print(f"{result.outcome:8}{result.variant:12}{result.case}{of} {result.seconds:.1f} s", file=sys.stderr)

    async def run() -> matrix.Matrix:
        done = await lanes.run_all(variants, chosen, progress)
        if not options.once:
            await lanes.second_tries(variants, done, progress)
        return done

    done = asyncio.run(run())
    done.problems += problems
    if toolchains.in_ci():
        done.problems += [f"{one.name}: {one.reason}" for one in missing]
    done.skipped_languages = {one.name: one.reason for one in missing}
    print(json.dumps(done.as_json(), indent=1) if options.format == "json" else done.as_text())
    return 0 if _page_is_current(options, done, every_case) and done.is_green else 1


def _page_is_current(options: argparse.Namespace, done: matrix.Matrix, every_case: list[cases.Case]) -> bool:
    """Write docs/conformance.md, or compare it, as asked; say whether it is what was run."""
    if not options.write and not options.check_page:
        return True
    before = matrix.PAGE.read_text(encoding="utf-8") if matrix.PAGE.exists() else ""
    wanted = matrix.updated(done, every_case, before, matrix.CONTRACT.read_text(encoding="utf-8"))
    if options.write:
        Path(matrix.PAGE).write_text(wanted, encoding="utf-8")
        return True
    if before != wanted:
        print("docs/conformance.md is not current; run: python -m tests.polyglot --write", file=sys.stderr)
    return before == wanted


if __name__ == "__main__":
    sys.exit(main())
