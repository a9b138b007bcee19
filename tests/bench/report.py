"""Figures as people and programs read them."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final


class Verdict(StrEnum):
    """What a figure came to."""

    MET = "met"
    MISSED = "missed"
    INVALID = "invalid"
    """Something was wrong with what was measured, so its figure is none: a call failed, a control stayed green."""
    VOID = "void"
    """The machine was too noisy to say anything; run it again."""


EXIT_CODES: Final = {Verdict.MET: 0, Verdict.VOID: 75, Verdict.MISSED: 1, Verdict.INVALID: 1}
"""75 is what sysexits.h calls a failure to try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """
    One measured figure.

    Attributes:
        name: what was measured.
        value: what came out.
        goal: what it is held against.
        notes: why it is not met, or what to know about it.
        details: all that was measured, for programs.
    """

    name: str
    value: str
    goal: str
    verdict: Verdict
    notes: Sequence[str] = ()
    details: dict[str, Any] = field(default_factory=dict)


def exit_code(figures: Sequence[Figure]) -> int:
    """Return the worst exit code of all figures: a missed one counts more than a void one."""
    codes = {EXIT_CODES[figure.verdict] for figure in figures}
    return 1 if 1 in codes else max(codes, default=0)


def machine() -> dict[str, str]:
    """Return what figures depend on."""
    return {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "uvloop": version("uvloop"),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
    }


def as_json(figures: Sequence[Figure]) -> str:
    """Return everything, for programs."""
    return json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}, indent=2)


def as_table(figures: Sequence[Figure]) -> str:
    """Return the figures in columns, with the notes below, for people."""
    rows = [("figure", "measured", "goal", ""), *((f.name, f.value, f.goal, f.verdict.value) for f in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for figure in figures:
        if figure.notes:
            lines += ["", figure.name, *(f"  {note}" for note in figure.notes)]
    lines += ["", ", ".join(f"{name} {value}" for name, value in machine().items())]
    return "\n".join(lines)
