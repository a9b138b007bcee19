from base64 import b64encode

import pytest
from nacl.public import SealedBox
from nacl.signing import SigningKey as NaClSigningKey

from broker import sealed_box
from broker.keys import SigningKey

SEED = b"\x07" * 32
KEY = SigningKey.from_seed(SEED)


def seal(content: bytes, *, seed: bytes = SEED) -> str:
    """Seal as a backend does, from the public key alone."""
    public_key = NaClSigningKey(seed).verify_key.to_curve25519_public_key()
    return b64encode(SealedBox(public_key).encrypt(content)).decode()


@pytest.mark.parametrize("task_id", ["task-123", "", "tâche", "t" * 10_000])
def test_a_sealed_task_id_opens(task_id: str) -> None:
    """What was sealed to the identity's public key comes out unchanged."""
    assert sealed_box.open_task_id(KEY, seal(task_id.encode())) == task_id


@pytest.mark.parametrize("sealed", ["***", "é", "AAA", " AAAA", "AAAA\n", "AB=="])
def test_text_that_is_not_base64_is_named_so(sealed: str) -> None:
    """Foreign characters, white space, missing padding and stray bits are not base64."""
    with pytest.raises(sealed_box.SealedTaskIdNotBase64Error):
        sealed_box.open_task_id(KEY, sealed)


@pytest.mark.parametrize(
    "sealed",
    ["", "AAAA", b64encode(bytes(47)).decode(), b64encode(bytes(48)).decode(), b64encode(bytes(100)).decode()],
)
def test_bytes_that_are_no_box_do_not_open(sealed: str) -> None:
    """Bytes that are too short or were never sealed are undecryptable."""
    with pytest.raises(sealed_box.SealedTaskIdUndecryptableError):
        sealed_box.open_task_id(KEY, sealed)


def test_a_box_for_another_key_does_not_open() -> None:
    """A task id that was sealed to another identity stays closed."""
    with pytest.raises(sealed_box.SealedTaskIdUndecryptableError):
        sealed_box.open_task_id(KEY, seal(b"task-123", seed=b"\x08" * 32))


def test_content_that_is_not_text_is_named_so() -> None:
    """A box that opens to bytes which are not UTF-8 has its own error."""
    with pytest.raises(sealed_box.SealedTaskIdNotUtf8Error):
        sealed_box.open_task_id(KEY, seal(b"task-\xff"))


@pytest.mark.parametrize(
    "sealed",
    ["c2VjcmV0*", b64encode(b"secret").decode(), seal(b"secret\xff")],
    ids=["not base64", "no box", "not text"],  # a box is another one each time
)
def test_every_error_is_one_family_and_carries_nothing(sealed: str) -> None:
    """All three errors can be caught as one, and none holds the text or the opened bytes."""
    with pytest.raises(sealed_box.SealedTaskIdError) as refused:
        sealed_box.open_task_id(KEY, sealed)
    assert "secret" not in str(refused.value)
    assert sealed not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
