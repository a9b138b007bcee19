"""The results: cases by variants of languages, in a terminal, as JSON, and kept in docs/conformance.md."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tests.polyglot.suite.cases import Case

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "conformance.md"
CONTRACT: Final = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
COLUMNS: Final = ("python", "python-aio", "go", "typescript", "java", "rust")
_SHORT: Final = {"python": "Python", "python-aio": "Python, asyncio", "go": "Go", "typescript": "TypeScript",
                 "java": "Java", "rust": "Rust"}  # fmt: skip


class Outcome(StrEnum):
    """What came of a case."""

    GREEN = "green"
    RED = "red"
    SKIPPED = "skipped"
    NONE = "none"
    """The language has no such thing."""


_SIGNS: Final = {Outcome.GREEN: "✔", Outcome.RED: "✘", Outcome.SKIPPED: "-", Outcome.NONE: "○"}
_NOT_RUN: Final = " "
_SUPPLIED: Final = "¹"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    One case of one variant, for one adapter where it has some.

    Attributes:
        text: why it is not green.
        seconds: how long it took.
        first_try: why it was red before it was tried again; empty where it was not.
    """

    case: str
    variant: str
    adapter: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0
    first_try: str = ""

    def as_json(self) -> dict[str, Any]:
        """All fields under their own names."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Matrix:
    """
    What came of everything.

    Attributes:
        cases: in the order of the page.
        variants: that were run, in the order of the page.
        problems: what went wrong beside the cases: drivers that did not end, languages that are missing in CI.
    """

    cases: Sequence[Case]
    variants: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped_languages: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def cell(self, case: str, variant: str) -> Outcome | None:
        """Return what came of a case with all its adapters; None when it was not run."""
        outcomes = {one.outcome for one in self.results if (one.case, one.variant) == (case, variant)}
        return next(
            (one for one in (Outcome.RED, Outcome.SKIPPED, Outcome.NONE, Outcome.GREEN) if one in outcomes), None
        )

    def count(self, outcome: Outcome, variant: str | None = None) -> int:
        """Count the results of a kind."""
        return sum(one.outcome is outcome and variant in {None, one.variant} for one in self.results)

    @property
    def is_green(self) -> bool:
        """Whether nothing failed; what is skipped with its reason has not."""
        return not self.problems and not self.count(Outcome.RED) and bool(self.results)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "variants": self.variants,
            "seconds": round(self.seconds, 1),
            "green": self.count(Outcome.GREEN),
            "red": self.count(Outcome.RED),
            "skipped": self.count(Outcome.SKIPPED),
            "second_tries": sum(bool(one.first_try) for one in self.results),
            "problems": self.problems,
            "skipped_languages": self.skipped_languages,
            "results": [one.as_json() for one in self.results],
        }

    def as_text(self) -> str:
        """Return the matrix for a terminal, with what is not green at its end."""
        lines = []
        width = max((len(case.name) for case in self.cases), default=4)
        lines.append(" " * width + "  " + "  ".join(self.variants))
        group = None
        for case in self.cases:
            cells = [self.cell(case.name, variant) for variant in self.variants]
            if not any(cells):
                continue
            if case.group != group:
                group = case.group
                lines.append(f"-- {group}")
            signs = (
                (_SIGNS[cell] if cell else " ").center(len(name))
                for cell, name in zip(cells, self.variants, strict=True)
            )
            lines.append(f"{case.name:{width}}  {'  '.join(signs)}")
        totals = (
            f"{name}: {self.count(Outcome.GREEN, name)} green, {self.count(Outcome.RED, name)} red, "
            f"{self.count(Outcome.SKIPPED, name)} skipped, "
            f"{sum(one.seconds for one in self.results if one.variant == name):.0f} s of cases"
            for name in self.variants
        )
        lines += ["", *totals]
        for one in self.results:
            if one.outcome in {Outcome.RED, Outcome.SKIPPED}:
                of = f" ({one.adapter})" if one.adapter else ""
                lines.append(f"\n{_SIGNS[one.outcome]} {one.case}{of}, {one.variant}, {one.seconds:.1f} s\n{one.text}")
        for one in self.results:
            if one.first_try and one.outcome is Outcome.GREEN:
                of = f" ({one.adapter})" if one.adapter else ""
                lines.append(
                    f"\ngreen at the second try: {one.case}{of}, {one.variant}; at the first:\n{one.first_try}"
                )
        lines += [f"skipped: {name}: {reason}" for name, reason in self.skipped_languages.items()]
        lines += [f"problem: {problem}" for problem in self.problems]
        again = sum(bool(one.first_try) for one in self.results)
        lines.append(f"{len(self.cases)} cases, {len(self.results)} runs, {again} tried again, {self.seconds:.1f} s")
        return "\n".join(lines)


# --- the page ---------------------------------------------------------------------------------------------------------

_ROW: Final = re.compile(r"^\| `(?P<case>[a-z0-9-]+)` \| (?P<behaviour>.*?) \| (?P<cells>.*) \|$", re.MULTILINE)


def supplied_by_client(contract: str) -> dict[str, set[str]]:
    """Return, for each row of the table at the end of docs/clients.md, the languages whose clients do it themselves."""
    table = contract.rpartition("## Where a language needs help")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    header = [name.lower() for name in rows[0]]
    return {
        row[0]: {name for name, cell in zip(header[1:], row[1:], strict=True) if cell == "client"} for row in rows[2:]
    }


def page(cases: Sequence[Case], cells: Mapping[tuple[str, str], str], contract: str) -> str:
    """
    Return the text of docs/conformance.md.

    Args:
        cases: all of them.
        cells: sign by case and variant.
        contract: the text of docs/clients.md.
    """
    supplied = supplied_by_client(contract)
    lines = [
        "# Conformance",
        "",
        "<!-- Written by `python -m tests.polyglot --write`; change the cases in tests/polyglot/cases instead. -->",
        "",
        f"What [every client does](clients.md), proven: {len(cases)} cases, each run with each language's client against a real",
        "broker and the emulator, or where those cannot be made to misbehave so, against a scripted broker. What the broker, the",
        "emulator or a server saw decides, not what the client says of itself. [How it works](../tests/polyglot/README.md).",
        "",
        f"✔ green, ✘ red, - skipped, ○ the language has no such thing; {_SUPPLIED} the language's gRPC has no such thing, its client does it itself.",
        "",
    ]
    groups: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    heads = " | ".join(_SHORT[name] for name in COLUMNS)
    lines += [f"| group | cases | {heads} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for group, own_cases in groups.items():
        columns = (Counter(cells.get((case.name, column), _NOT_RUN) for case in own_cases) for column in COLUMNS)
        counts = (", ".join(f"{counts[sign]} {sign}" for sign in _SIGNS.values() if counts[sign]) for counts in columns)
        lines.append(f"| [{group}](#{group}) | {len(own_cases)} | {' | '.join(counts)} |")
    lines.append("")
    for group, own_cases in groups.items():
        lines += [f"## {group}", "", f"| case | behaviour | {heads} |", f"|---|---|{'---|' * len(COLUMNS)}"]
        for case in own_cases:
            own = supplied[case.supplies] if case.supplies is not None else set()
            signs = [
                cells.get((case.name, name), _NOT_RUN) + (_SUPPLIED if name.partition("-")[0] in own else "")
                for name in COLUMNS
            ]
            lines.append(f"| `{case.name}` | {case.behaviour} | {' | '.join(signs)} |")
        lines.append("")
    return "\n".join(lines)


def cells_of(text: str) -> dict[tuple[str, str], str]:
    """Return the cells of a page by case and variant."""
    return {
        (row["case"], name): sign.replace(_SUPPLIED, "").strip() or _NOT_RUN
        for row in _ROW.finditer(text)
        for name, sign in zip(COLUMNS, row["cells"].split(" | "), strict=True)
    }


def updated(matrix: Matrix, all_cases: Iterable[Case], before: str, contract: str) -> str:
    """
    Return the page with what was run put in the place of what stood there.

    Args:
        matrix: what was run.
        all_cases: also those that were not.
        before: the page as it is; empty when there is none.
        contract: the text of docs/clients.md.
    """
    cells = cells_of(before)
    for case in matrix.cases:
        for variant in matrix.variants:
            cell = matrix.cell(case.name, variant)
            if cell is not None:
                cells[case.name, variant] = _SIGNS[cell]
    return page(list(all_cases), cells, contract)
