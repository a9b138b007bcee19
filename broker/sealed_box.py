"""
Opening the task ids that a backend seals to an agent identity's key.

Pure. The message is a libsodium sealed box to the X25519 form of the Ed25519 key (openai/codex
codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 411 to 423 and 542 to 550). The broker never seals one.
"""

from nacl.exceptions import CryptoError
from nacl.public import SealedBox

from broker.keys import SigningKey, decode_base64


class SealedTaskIdError(ValueError):
    """
    A sealed task id that yields no text: the backend broke the protocol or sealed to another key.

    Neither the text nor the exception chain holds what was sealed.
    """


class SealedTaskIdNotBase64Error(SealedTaskIdError):
    """The field is not canonical, padded standard base64."""

    def __init__(self) -> None:
        super().__init__("the sealed task id is not base64")


class SealedTaskIdUndecryptableError(SealedTaskIdError):
    """The bytes are no sealed box, were changed, or were sealed to another key."""

    def __init__(self) -> None:
        super().__init__("the sealed task id does not open with this identity's key")


class SealedTaskIdNotUtf8Error(SealedTaskIdError):
    """The box opened, but what was in it is not UTF-8."""

    def __init__(self) -> None:
        super().__init__("the opened task id is not UTF-8")


def open_task_id(key: SigningKey, sealed_base64: str) -> str:
    """
    Open an `encrypted_task_id` with the identity's key.

    Anybody can seal to a public key, so the result says nothing about who made it: check it with
    `broker.assertion.validate_backend_id` before it is used.

    Raises:
        SealedTaskIdNotBase64Error: the text is not base64.
        SealedTaskIdUndecryptableError: the box does not open with this key.
        SealedTaskIdNotUtf8Error: the opened bytes are not text.
    """
    sealed = decode_base64(sealed_base64)
    if sealed is None:
        raise SealedTaskIdNotBase64Error
    opened = _open(key, sealed)
    if opened is None:
        raise SealedTaskIdUndecryptableError
    task_id = _text(opened)
    if task_id is None:
        raise SealedTaskIdNotUtf8Error
    return task_id


def _open(key: SigningKey, sealed: bytes) -> bytes | None:
    try:
        return SealedBox(key.to_x25519()).decrypt(sealed)
    except CryptoError:
        return None


def _text(opened: bytes) -> str | None:
    # A UnicodeDecodeError would carry the opened bytes along in the exception chain.
    try:
        return opened.decode("utf-8")
    except UnicodeDecodeError:
        return None
