"""The page on outages says what its test finds."""

import re
from pathlib import Path

from tests.integration import test_outages
from tests.integration.test_outages import OUTAGES

PAGE = (Path(__file__).parents[2] / "docs/outages.md").read_text(encoding="utf-8")


def test_every_cell_has_the_words_of_its_proof() -> None:
    """Row by row and column by column the page is the table that the tests go by."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|")][2:]
    shown = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    proven = [
        (name, kind.issuer.says, kind.backend.says, kind.store.says, kind.restart.says)
        for name, kind in OUTAGES.items()
    ]
    assert shown == proven


def test_the_tests_that_the_page_names_exist() -> None:
    """Each is a test of that module, and each of its tests is named."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named == {name for name in vars(test_outages) if name.startswith("test_")}
