"""The one way the emulator says no, and the shapes in which a token endpoint says it."""

from __future__ import annotations

import enum
from typing import Any


class Refusal(Exception):  # noqa: N818  an answer of the protocol, not a failure of the program
    """A request the backend does not accept.

    Attributes:
        status: The HTTP status answered.
        code: The precise cause, a stable word that tests may compare.
        message: One sentence for a person; never contains a value that was sent.
        headers: Headers of the answer beyond the usual ones.
    """

    def __init__(self, status: int, code: str, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


class ErrorStyle(enum.StrEnum):
    """Where a refused refresh names its cause.

    A client has to look in three places (codex-rs/login/src/auth/manager.rs at
    343074d4207d572809bd8cea15f4be1d09d98e0b) and must know the plain answer of RFC 6749, which names no cause at all.
    """

    NESTED_CODE = "nested_code"
    """`{"error": {"code": ...}}`"""
    ERROR_STRING = "error_string"
    """`{"error": ...}`"""
    TOP_LEVEL_CODE = "top_level_code"
    """`{"code": ...}`"""
    INVALID_GRANT = "invalid_grant"
    """400 `{"error": "invalid_grant"}`"""


class OAuthRefusal(Refusal):
    """A refusal of the token endpoint in the form of RFC 6749 section 5.2.

    `code` stays the precise cause, which the ledgers record; `error` is the word that the RFC has for it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        error: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(status, code, message, headers=headers)
        self.error = error or code

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": self.error, "error_description": self.message}


class RefreshRefusal(Refusal):
    """A refresh token that is not accepted, said in the style that the settings ask for."""

    def __init__(self, code: str, message: str, *, style: ErrorStyle) -> None:
        super().__init__(400 if style is ErrorStyle.INVALID_GRANT else 401, code, message)
        self.style = style

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        match self.style:
            case ErrorStyle.NESTED_CODE:
                return super().as_json()
            case ErrorStyle.ERROR_STRING:
                return {"error": self.code, "error_description": self.message}
            case ErrorStyle.TOP_LEVEL_CODE:
                return {"code": self.code, "message": self.message}
            case ErrorStyle.INVALID_GRANT:
                return {"error": "invalid_grant", "error_description": self.message}
