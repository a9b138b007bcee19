"""`docs/emulator.md` names everything the emulator can say."""

import re
from dataclasses import fields
from pathlib import Path

from broker.emulator import (
    PROFILES,
    Action,
    ClientAuth,
    EmulatorSettings,
    ErrorStyle,
    Operation,
    TaskAnswer,
    TokenFormat,
)

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "emulator.md").read_text()


def test_every_refusal_code_is_documented() -> None:
    """Each code the backend can answer stands in the page (those of the controls explain themselves)."""
    ways = r"(?:Refusal\(\s*(?:\d+|status),|_bad\(|_unauthorized\(|_refusal\(|SubjectTokenError\()"
    raised = re.compile(ways + r"""\s*"(\w+)\"""")
    sources = [path for path in (ROOT / "broker" / "emulator").glob("*.py") if path.stem != "controls"]
    codes = {code for path in sources for code in raised.findall(path.read_text())}
    assert len(codes) > 40, "the pattern no longer finds the codes"
    assert sorted(code for code in codes if f"`{code}`" not in DOCS) == []


def test_every_profile_action_operation_and_shape_is_documented() -> None:
    """The page names each word a control or a command takes."""
    words = [
        *PROFILES,
        *Action,
        *TaskAnswer,
        *TokenFormat,
        *ErrorStyle,
        *ClientAuth,
        *(set(Operation) - {Operation.UNKNOWN}),
        *(field.name for field in fields(EmulatorSettings) if field.name not in ("host", "port")),
    ]
    assert [word for word in words if f"`{word}`" not in DOCS] == []
