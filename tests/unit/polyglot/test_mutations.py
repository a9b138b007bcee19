"""Defects that are put into clients: what is wrong with a file of them is told before anything is built."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.polyglot.languages import NAMES, ROOT, Command, Language
from tests.polyglot.suite import lanes, mutations
from tests.polyglot.suite.cases import Case
from tests.polyglot.suite.cases import load as load_cases
from tests.polyglot.suite.matrix import Matrix, Outcome, Result
from tests.polyglot.suite.mutations import Mutation, MutationError, chosen, load

MUTATION = """
[[mutation]]
group = "cache"
file = "protos/service_config.json"
find = '"waitForReady": true'
replace = '"waitForReady": false'
red = ["cache-hit"]
why = "Because."
"""


def case(name: str, group: str) -> Case:
    """Make a case of which only the name matters."""
    return Case(name=name, group=group, behaviour="b.", catches="c", open=None, steps=())


CASES = [case("cache-hit", "cache"), case("cache-members", "cache"), case("tasks-of-an-identity", "cache")]


@pytest.mark.parametrize("name", NAMES)
def test_each_language_has_a_defect_for_each_group_that_fits_its_client_as_it_is(name: str) -> None:
    """Whoever changes a line that one of them is put into learns it now, not when all are tried."""
    assert load(name, load_cases())


def written(folder: Path, text: str) -> Path:
    """Write the defects of a language `x`."""
    (folder / "x.toml").write_text(text, encoding="utf-8")
    return folder


def test_what_is_well_is_read(tmp_path: Path) -> None:
    """All members come through."""
    (mutation,) = load("x", CASES, written(tmp_path, MUTATION))
    assert (mutation.group, mutation.red, mutation.variant) == ("cache", ("cache-hit",), "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('red = ["cache-hit"]', "red = []", "names no case"),
        ('red = ["cache-hit"]', 'red = ["away-x"]', "away-x is no case of the group"),
        ("protos/service_config.json", "broker/app.py", "is not of a part that is copied"),
        ("protos/service_config.json", "protos/none.json", "is not there"),
        ("true'", "maybe'", "0 times"),
        ('"waitForReady": true\'', '"name"\'', "2 times"),
        ("false'", "true'", "by itself"),
        ("why = ", "reason = ", "unexpected keyword"),
        ('group = "cache"', 'group = "connect"', "no defect for the group cache"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A defect that cannot be made, or that proves nothing, is refused."""
    assert old in MUTATION
    with pytest.raises(MutationError, match=said):
        load("x", CASES, written(tmp_path, MUTATION.replace(old, new, 1)))


def test_a_language_without_any_is_told(tmp_path: Path) -> None:
    """It must not count as proven."""
    with pytest.raises(MutationError, match="is not there"):
        load("x", CASES, tmp_path)


def test_groups_are_chosen_by_pattern() -> None:
    """As cases are."""
    some = [Mutation(group=group, file="", find="", replace="", red=(), why="") for group in ("cache", "away")]
    assert [one.group for one in chosen(some, "c*,x")] == ["cache"]
    assert chosen(some, None) == some


@pytest.mark.parametrize(
    ("red", "green", "said"),
    [
        ({"cache-hit"}, {"cache-members", "tasks-of-an-identity"}, ""),
        ({"cache-hit", "cache-members"}, {"tasks-of-an-identity"}, ""),
        (set(), {"cache-hit", "cache-members", "tasks-of-an-identity"}, "cache-hit stays green"),
        (
            {"cache-hit", "cache-members", "tasks-of-an-identity"},
            set(),
            "cache-members and tasks-of-an-identity fail too",
        ),
    ],
)
def test_a_defect_counts_when_its_cases_fail_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red: set[str], green: set[str], said: str
) -> None:
    """The text is replaced while the cases run, and is back afterwards."""
    (mutation,) = load("x", CASES, written(tmp_path, MUTATION))
    seen: list[bool] = []

    def described(name: str, tree: Path = ROOT) -> Language:
        command = Command(words=("true",))
        nothing: Any = None
        return Language(
            name=name, programs=(), checks=(), build=(command,), drivers={"x": command}, example=command,
            benchmark=command, prove_install=nothing,
        )  # fmt: skip

    async def run_all(variants: Sequence[lanes.Variant], cases: Sequence[Case], progress: Any) -> Matrix:
        seen.append('"waitForReady": false' in (variants[0].tree / mutation.file).read_text())
        matrix = Matrix(list(cases), ["x"])
        for name, outcome in [*((one, Outcome.RED) for one in red), *((one, Outcome.GREEN) for one in green)]:
            matrix.results.append(Result(case=name, variant="x", adapter="", outcome=outcome, text="t", seconds=0))
        return matrix

    monkeypatch.setattr(mutations, "language", described)
    monkeypatch.setattr(lanes, "run_all", run_all)
    original = (ROOT / mutation.file).read_bytes()
    (verdict,) = asyncio.run(mutations.run("x", [mutation], CASES))
    assert (said in verdict.problem) if said else verdict.problem == ""
    assert seen == [True]
    assert (ROOT / mutation.file).read_bytes() == original
