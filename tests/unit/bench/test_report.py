"""Figures for people and for programs, and the exit code they come to."""

import json

import pytest

from tests.bench.report import Figure, Verdict, as_json, as_table, exit_code


def figure(verdict: Verdict = Verdict.MET, **changes: object) -> Figure:
    """Make a figure."""
    return Figure(name="calls in flight", value="0 errors", goal="none", verdict=verdict, **changes)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        ([Verdict.MET, Verdict.MET], 0),
        ([Verdict.MET, Verdict.VOID], 75),
        ([Verdict.VOID, Verdict.MISSED], 1),
        ([Verdict.INVALID, Verdict.VOID], 1),
    ],
)
def test_the_worst_verdict_is_the_exit_code(verdicts: list[Verdict], code: int) -> None:
    """A missed or invalid figure fails; a void one asks to be tried again; only met ones succeed."""
    assert code == exit_code([figure(verdict) for verdict in verdicts])


def test_a_table_holds_each_figure_and_its_notes() -> None:
    """Columns line up and notes stand under the name of their figure."""
    lines = as_table([figure(notes=["one call failed"]), figure(Verdict.VOID)]).splitlines()
    assert lines[1:3] == ["calls in flight  0 errors  none  met", "calls in flight  0 errors  none  void"]
    assert lines[4:6] == ["calls in flight", "  one call failed"]


def test_json_holds_everything() -> None:
    """Programs get the details too, and what machine it was."""
    read = json.loads(as_json([figure(details={"seed": 7})]))
    assert read["figures"][0]["details"] == {"seed": 7}
    assert read["figures"][0]["verdict"] == "met"
    assert {"python", "grpcio", "uvloop", "system", "processor"} == set(read["machine"])
