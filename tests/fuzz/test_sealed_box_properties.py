from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import SealedBox
from nacl.signing import SigningKey as NaClSigningKey

from broker import sealed_box
from broker.keys import SigningKey

SEED = b"\x07" * 32
KEY = SigningKey.from_seed(SEED)
PUBLIC_KEY = NaClSigningKey(SEED).verify_key.to_curve25519_public_key()

small = settings(max_examples=100, deadline=None)


@small
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: b64encode(data).decode())))
def test_arbitrary_text_never_opens_and_raises_only_the_family(sealed: str) -> None:
    """What nobody sealed ends in one of the three errors."""
    with pytest.raises(sealed_box.SealedTaskIdError):
        sealed_box.open_task_id(KEY, sealed)


@small
@given(st.binary(max_size=300))
def test_sealed_bytes_open_as_text_or_say_they_are_none(content: bytes) -> None:
    """Any sealed bytes come back as the same UTF-8 text or as the not-UTF-8 error."""
    sealed = b64encode(SealedBox(PUBLIC_KEY).encrypt(content)).decode()
    try:
        opened = sealed_box.open_task_id(KEY, sealed)
    except sealed_box.SealedTaskIdNotUtf8Error:
        assert content.decode("utf-8", errors="replace").encode() != content
    else:
        assert opened.encode() == content


@small
@given(st.data())
def test_a_changed_bit_keeps_the_box_closed(data: st.DataObject) -> None:
    """Flipping any bit of a sealed id makes it undecryptable, never another id."""
    sealed = bytearray(SealedBox(PUBLIC_KEY).encrypt(b"task-123"))
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[position // 8] ^= 1 << position % 8
    # X25519 ignores the top bit of a public key, but the nonce hashes it, so even that one must not open.
    with pytest.raises(sealed_box.SealedTaskIdUndecryptableError):
        sealed_box.open_task_id(KEY, b64encode(bytes(sealed)).decode())
