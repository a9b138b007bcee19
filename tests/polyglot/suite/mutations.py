"""
Proving that cases can turn red: for each group a defect that is put into each client on purpose, in a copy of the tree.

`mutations/<language>.toml` holds them, one `[[mutation]]` each:

```toml
[[mutation]]
group = "cache"                          # of the cases
file = "stubs/go/client.go"              # in the repository
find = "exact text, there once"
replace = "the defect"
red = ["cache-hit"]                      # cases of the group that must fail with it
why = "A client that asks for each use."
variant = "go"                           # optional: whose driver; the language's first
```

A defect is killed when each of its cases fails while a case that it does not concern stays green. One that is not killed,
that does not build, or whose text is not there once is a failure of the run.
"""

import fnmatch
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.polyglot.languages import BUILD, ROOT, TREE_PARTS, language
from tests.polyglot.suite import builds, lanes
from tests.polyglot.suite.cases import Case
from tests.polyglot.suite.matrix import Outcome

FOLDER: Final = Path(__file__).resolve().parents[1] / "mutations"
SAMPLE: Final = "cache,withdrawal"
"""The groups that make test tries: one of what every use goes through, one of what must never fail."""
CONTROLS: Final = ("cache-members", "tasks-of-an-identity")
"""Cases one of which must stay green, so that a driver that is broken altogether proves nothing; both are quick."""


class MutationError(Exception):
    """A file of mutations cannot be used as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One defect, as the file has it."""

    group: str
    file: str
    find: str
    replace: str
    red: tuple[str, ...]
    why: str
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a mutation: `problem` is empty when it was killed."""

    language: str
    mutation: Mutation
    problem: str
    seconds: float


def load(name: str, cases: Sequence[Case], folder: Path = FOLDER) -> list[Mutation]:
    """
    Read a language's mutations.

    Raises:
        MutationError: all that is wrong with them, a group without any too.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        raise MutationError(f"{path.name}: is not there")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("mutation", [])
        mutations = [Mutation(**{**table, "red": tuple(table.get("red", ()))}) for table in tables]
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise MutationError(f"{path.name}: {error}") from error
    groups = {case.name: case.group for case in cases}
    problems = [
        f"{path.name}: {mutation.group}: {problem}" for mutation in mutations for problem in _wrong(mutation, groups)
    ]
    missing = set(groups.values()) - {mutation.group for mutation in mutations}
    problems += [f"{path.name}: there is no defect for the group {group}" for group in sorted(missing)]
    if problems:
        raise MutationError("\n".join(problems))
    return mutations


def _wrong(mutation: Mutation, groups: dict[str, str]) -> Iterator[str]:
    if not mutation.red:
        yield "names no case that turns red"
    for name in mutation.red:
        if groups.get(name) != mutation.group:
            yield f"{name} is no case of the group"
    path = ROOT / mutation.file
    if not any(path.is_relative_to(ROOT / part) for part in TREE_PARTS):
        yield f"{mutation.file} is not of a part that is copied: {', '.join(TREE_PARTS)}"
    elif not path.is_file():
        yield f"{mutation.file} is not there"
    elif (times := path.read_text(encoding="utf-8").count(mutation.find)) != 1:
        yield f"its text is {times} times in {mutation.file}: {mutation.find!r}"
    if mutation.find == mutation.replace:
        yield "replaces a text by itself"


def chosen(mutations: Iterable[Mutation], patterns: str | None) -> list[Mutation]:
    """Return those of the groups that are like one of the patterns, which are apart by commas."""
    wanted = [one.strip() for one in (patterns or "*").split(",")]
    return [one for one in mutations if any(fnmatch.fnmatchcase(one.group, pattern) for pattern in wanted)]


@contextmanager
def copied_tree(name: str) -> Iterator[Path]:
    """Copy what matters of the repository, without what builds left in it, for as long as the block lasts."""
    folder = BUILD / "mutations"
    folder.mkdir(parents=True, exist_ok=True)
    # Of its own, as two may be trying the same language.
    tree = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *TREE_PARTS],
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        for relative in filter(None, listed.stdout.decode().split("\0")):
            source = ROOT / relative
            if source.is_file():
                target = tree / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)


async def run(name: str, mutations: Sequence[Mutation], cases: Sequence[Case]) -> list[Verdict]:
    """Try each mutation of a language, one after the other, printing each verdict as it comes."""
    verdicts = []
    with copied_tree(name) as tree:
        for mutation in mutations:
            began = time.monotonic()
            problem = await _tried(name, tree, mutation, cases)
            verdict = Verdict(language=name, mutation=mutation, problem=problem, seconds=time.monotonic() - began)
            verdicts.append(verdict)
            print(as_line(verdict), flush=True)
    return verdicts


def as_line(verdict: Verdict) -> str:
    """Say what came of a mutation in a line, and in more where it was not killed."""
    mutation = verdict.mutation
    word = "SURVIVED" if verdict.problem else "killed"
    line = f"{word:9}{verdict.language:12}{mutation.group:12}{verdict.seconds:6.1f} s  {mutation.why}"
    return f"{line}\n{verdict.problem}" if verdict.problem else line


async def _tried(name: str, tree: Path, mutation: Mutation, cases: Sequence[Case]) -> str:
    """Return why a mutation counts as not killed; nothing when it was."""
    path = tree / mutation.file
    original = path.read_bytes()
    text = original.decode()
    if text.count(mutation.find) != 1:
        return f"  its text is not there once: {mutation.find!r}"
    path.write_text(text.replace(mutation.find, mutation.replace), encoding="utf-8")
    try:
        described = language(name, tree)
        if failure := builds.build(described, tree):
            return f"  it does not build, so it proves nothing:\n{failure}"
        controls = [one for one in CONTROLS if one not in mutation.red]
        wanted = [case for case in cases if case.name in {*mutation.red, *controls}]
        variant = mutation.variant or next(iter(described.drivers))
        command = described.drivers[variant]
        matrix = await lanes.run_all([lanes.Variant(variant, command, tree)], wanted, lambda _: None)
    finally:
        path.write_bytes(original)
    reds = {result.case for result in matrix.results if result.outcome is Outcome.RED}
    problems = [f"  {case} stays green" for case in mutation.red if case not in reds]
    if reds.issuperset(controls):
        said = next(result.text for result in matrix.results if result.case in controls)
        problems.append(f"  {' and '.join(controls)} fail too, so it is not the defect that they found: {said}")
    return "\n".join(problems)
