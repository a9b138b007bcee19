"""The matrix and the page that is kept of it."""

from typing import Any

import pytest

from tests.polyglot.suite.cases import Case
from tests.polyglot.suite.matrix import CONTRACT, Matrix, Outcome, Result, cells_of, page, supplied_by_client, updated

TABLE = """
## Where a language needs help

| | Python | Go | TypeScript | Java | Rust |
|---|---|---|---|---|---|
| retry | gRPC | gRPC | gRPC | gRPC | client |
"""


def a_case(name: str, **fields: Any) -> Case:
    """Return a case of the group `cache`."""
    return Case(name=name, group="cache", behaviour=f"Of {name}.", catches="", open=None, steps=(), **fields)


def a_result(case: str, variant: str, outcome: Outcome, adapter: str = "") -> Result:
    """Return a result."""
    return Result(case=case, variant=variant, adapter=adapter, outcome=outcome, text="why not")


def test_a_cell_is_green_when_all_its_adapters_are() -> None:
    """One that is red makes it red."""
    matrix = Matrix([a_case("one")], ["go"])
    matrix.results += [a_result("one", "go", Outcome.GREEN, "a"), a_result("one", "go", Outcome.RED, "b")]
    assert matrix.cell("one", "go") is Outcome.RED
    assert matrix.cell("one", "rust") is None
    assert not matrix.is_green
    assert "✘ one (b), go" in matrix.as_text()


@pytest.mark.parametrize(
    ("outcome", "green"), [(Outcome.GREEN, True), (Outcome.SKIPPED, True), (Outcome.NONE, True), (Outcome.RED, False)]
)
def test_what_counts_as_green(outcome: Outcome, *, green: bool) -> None:
    """What is skipped with a reason does; nothing at all does not, nor does a problem beside the cases."""
    matrix = Matrix([a_case("one")], ["go"], [a_result("one", "go", outcome)])
    assert matrix.is_green is green
    assert not Matrix([a_case("one")], ["go"]).is_green
    matrix.problems.append("the driver hung")
    assert not matrix.is_green


def test_the_page_keeps_what_was_not_run() -> None:
    """Cells of other languages stay, those of cases that are gone go, and new cases have empty ones."""
    cases = [a_case("one"), a_case("two")]
    before = page([a_case("gone"), cases[0]], {("one", "rust"): "✔", ("gone", "rust"): "✔"}, TABLE)
    matrix = Matrix(cases, ["go"], [a_result("one", "go", Outcome.GREEN)])
    cells = cells_of(updated(matrix, cases, before, TABLE))
    assert (cells["one", "rust"], cells["one", "go"], cells["two", "go"]) == ("✔", "✔", " ")
    assert ("gone", "rust") not in cells


def test_the_page_marks_what_a_client_does_itself() -> None:
    """By the table of the contract; the mark is no part of the cell."""
    cases = [a_case("one", supplies="retry")]
    text = page(cases, {("one", "rust"): "✔", ("one", "go"): "✔"}, TABLE)
    assert "| ✔¹ |" in text
    assert text.count("¹") == 2  # the legend's
    assert cells_of(text)["one", "rust"] == "✔"


def test_the_page_begins_with_a_count_by_group_and_language() -> None:
    """What is not green is told apart there."""
    cases = [a_case("one"), a_case("two"), a_case("three")]
    text = page(cases, {("one", "go"): "✔", ("two", "go"): "✔", ("three", "go"): "○", ("one", "rust"): "✘"}, TABLE)
    assert "| [cache](#cache) | 3 |  |  | 2 ✔, 1 ○ |  |  | 1 ✘ |" in text


def test_a_page_that_is_read_is_written_the_same() -> None:
    """So that checking it is a comparison."""
    cases = [a_case("one"), a_case("two")]
    text = page(cases, {("one", "go"): "✔", ("two", "python-aio"): "○"}, TABLE)
    assert page(cases, cells_of(text), TABLE) == text


def test_the_contract_has_the_table() -> None:
    """Rust's gRPC retries nothing, so its client does."""
    assert supplied_by_client(CONTRACT.read_text(encoding="utf-8"))["retry after UNAVAILABLE"] == {"rust"}
