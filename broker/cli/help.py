"""How commands teach: the examples that stand below their options."""


def examples(*lines: str) -> str:
    """
    Return the EXAMPLES section of a command's help, to be given as its `epilog`.

    Args:
        lines: command lines as they are pasted; a remark begins with `#`, as it would in a shell.
    """
    # \b keeps Click from filling the lines of a paragraph.
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
