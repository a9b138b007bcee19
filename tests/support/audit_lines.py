"""Reading an audit log as an auditor does."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    """Read every line; each must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def grants_in(path: Path) -> Counter[str]:
    """Count the grants that a log accounts for, by scope."""
    counted: Counter[str] = Counter()
    for line in lines(path):
        if line["event"] == "grant":
            counted[line["scope"]] += 1
        elif line["event"] == "grant_repeated":
            counted[line["scope"]] += line["repeats"]
    return counted
