import contextlib
from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from broker import keys
from broker.keys import InvalidKeyError, SigningKey

seeds = st.binary(min_size=32, max_size=32)
HEADS = [bytes.fromhex("302e020100300506032b657004220420"), bytes.fromhex("3051020101300506032b657004220420")]
near_misses = st.builds(
    lambda head, rest, cut: (head + rest)[:cut],
    st.sampled_from(HEADS),
    st.binary(max_size=80),
    st.sampled_from([48, 83, 200]),
)

small = settings(max_examples=100, deadline=None)


@small
@given(st.one_of(st.binary(max_size=200), near_misses))
def test_the_reader_raises_only_its_own_error(der: bytes) -> None:
    """Arbitrary bytes are a key or an InvalidKeyError, and what is read is written back as itself or its v2 form."""
    try:
        key = SigningKey.from_pkcs8_der(der)
    except InvalidKeyError:
        return
    written = key.to_pkcs8_der()
    assert der in (written, HEADS[0] + written[16:48])


@small
@given(st.one_of(st.text(max_size=200), st.binary(max_size=100).map(lambda der: b64encode(der).decode())))
def test_the_text_readers_raise_only_their_own_error(text: str) -> None:
    """Arbitrary text is a key or an InvalidKeyError, for private and public keys."""
    for read in (SigningKey.from_pkcs8_base64, keys.parse_ssh_public_key):
        with contextlib.suppress(InvalidKeyError):
            read(text)


@small
@given(st.text(max_size=100))
def test_base64_has_one_text_for_each_byte_string(text: str) -> None:
    """Whatever is decoded encodes to the same text again."""
    decoded = keys.decode_base64(text)
    assert decoded is None or b64encode(decoded).decode() == text


@small
@given(seeds, st.binary(max_size=300))
def test_keys_and_signatures_hold_for_every_seed(seed: bytes, message: bytes) -> None:
    """Writing, reading, naming and signing agree for any seed."""
    key = SigningKey.from_seed(seed)
    again = SigningKey.from_pkcs8_base64(key.to_pkcs8_base64())
    assert keys.parse_ssh_public_key(again.ssh_public_key) == key.public_key_bytes
    assert VerifyKey(key.public_key_bytes).verify(message, again.sign(message)) == message
