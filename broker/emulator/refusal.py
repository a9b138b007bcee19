"""The one way the emulator says no."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818  an answer of the protocol, not a failure of the program
    """A request the backend does not accept.

    Attributes:
        status: The HTTP status answered.
        code: The precise cause, a stable word that tests may compare.
        message: One sentence for a person; never contains a value that was sent.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
