"""Which languages are asked for."""

import pytest

from tests.polyglot.suite import toolchains


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ("python", "go", "typescript", "java", "rust")),
        ("rust go", ("go", "rust")),
        ("python,java", ("python", "java")),
    ],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    """All unless some are named; always in the order of the matrix."""
    assert toolchains.wanted(None, {"LANGS": text}) == names
    assert toolchains.wanted(text, {"LANGS": "python"}) == names


def test_no_such_language() -> None:
    """Is told with those that there are."""
    with pytest.raises(toolchains.UnknownLanguageError, match="no language cobol; there are: python, go"):
        toolchains.wanted("go cobol")


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, for each language that needs it."""
    monkeypatch.setattr(toolchains.shutil, "which", lambda *_: None)
    present, missing = toolchains.present(("go",))
    assert present == []
    assert "go" in missing[0].reason
    assert "is not installed" in missing[0].reason
