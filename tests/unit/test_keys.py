import copy
import pickle
import traceback
from base64 import b64decode, b64encode

import pytest
from nacl.signing import VerifyKey

from broker import keys
from broker.keys import InvalidKeyError, KeyProblem, SigningKey

SEED = b"\x07" * 32
SSH_PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOpKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs"
# As `ssh-keygen -l` of OpenSSH prints it for the public key above.
FINGERPRINT = "SHA256:z/fSv0Z0RZS+Lccbc6ZoOWwt/fbj1VFJGSBKQbo4icE"
V1 = b64decode("MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH")
V2 = SigningKey.from_seed(SEED).to_pkcs8_der()


def problem_of(der: bytes) -> KeyProblem:
    """Return why these bytes are refused."""
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_pkcs8_der(der)
    return refused.value.reason


def test_both_pkcs8_forms_give_the_same_key() -> None:
    """A v1 and a v2 form of one seed are the same key, and v2 is what is written."""
    from_v1 = SigningKey.from_pkcs8_der(V1)
    from_v2 = SigningKey.from_pkcs8_der(V2)
    assert from_v1.public_key_bytes == from_v2.public_key_bytes
    assert from_v1.to_pkcs8_der() == V2
    assert len(V2) == 83


@pytest.mark.parametrize("form", [V1, V2], ids=["v1", "v2"])
def test_a_changed_bit_outside_of_the_seed_is_refused(form: bytes) -> None:
    """No bit of the encoding is ignored: only the seed of a v1 form may differ."""
    for position in range(len(form)):
        if form is V1 and 16 <= position < 48:
            continue
        for bit in range(8):
            changed = bytearray(form)
            changed[position] ^= 1 << bit
            with pytest.raises(InvalidKeyError):
                SigningKey.from_pkcs8_der(bytes(changed))


@pytest.mark.parametrize(
    ("der", "problem"),
    [
        (b"", KeyProblem.WRONG_SIZE),
        (V1 + b"\x00", KeyProblem.WRONG_SIZE),
        (V1[:-1], KeyProblem.WRONG_SIZE),
        (V2 + b"\x00", KeyProblem.WRONG_SIZE),
        (V2[:-1], KeyProblem.WRONG_SIZE),
        (V1.replace(b"\x2b\x65\x70", b"\x2b\x65\x6e"), KeyProblem.NOT_ED25519),
        (V2.replace(b"\x2b\x65\x70", b"\x2b\x65\x6e"), KeyProblem.NOT_ED25519),
        (V1.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1), KeyProblem.NOT_PKCS8),
        (V2.replace(b"\x02\x01\x01", b"\x02\x01\x00", 1), KeyProblem.NOT_PKCS8),
        (V2.replace(b"\x81\x21\x00", b"\xa1\x21\x00"), KeyProblem.NOT_PKCS8),
        (V2[:-1] + b"\x2d", KeyProblem.PUBLIC_KEY_MISMATCH),
    ],
    ids=[
        "empty",
        "v1 trailing byte",
        "v1 cut",
        "v2 trailing byte",
        "v2 cut",
        "v1 X25519",
        "v2 X25519",
        "v1 says v2",
        "v2 says v1",
        "public key with another tag",
        "another public key",
    ],
)
def test_a_refused_form_says_why(der: bytes, problem: KeyProblem) -> None:
    """Each way of being wrong has its own reason."""
    assert problem_of(der) == problem


@pytest.mark.parametrize(
    "text",
    [
        "MFECAQEw***",
        "*",
        "é",
        b64encode(V1).decode() + "\n",
        b64encode(V1).decode() + "=",
        b64encode(V1 + b"0").decode()[:-1],
    ],
)
def test_text_that_is_not_canonical_base64_is_refused(text: str) -> None:
    """White space, foreign characters and wrong padding are refused as not base64."""
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_pkcs8_base64(text)
    assert refused.value.reason == KeyProblem.NOT_BASE64


def test_stray_bits_behind_the_last_byte_are_refused() -> None:
    """One key has one text: base64 whose last character carries ignored bits is refused."""
    text = b64encode(V2).decode()
    assert text.endswith("iw=")
    assert b64decode(text[:-2] + "x=", validate=True) == V2
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_pkcs8_base64(text[:-2] + "x=")
    assert refused.value.reason == KeyProblem.NOT_BASE64


def test_base64_comes_back_as_it_was() -> None:
    """Reading and writing the base64 form changes nothing."""
    text = b64encode(V2).decode()
    assert SigningKey.from_pkcs8_base64(text).to_pkcs8_base64() == text


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_seed_has_32_bytes(length: int) -> None:
    """A seed of any other length is refused."""
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_seed(bytes(length))
    assert refused.value.reason == KeyProblem.SEED_SIZE


def test_a_signature_verifies_with_the_public_key() -> None:
    """What is signed verifies under the public key with an independent call, and nothing else does."""
    key = SigningKey.from_seed(SEED)
    signature = key.sign(b"message")
    assert VerifyKey(key.public_key_bytes).verify(b"message", signature) == b"message"
    assert key.sign(b"other message") != signature


def test_a_key_hides_itself() -> None:
    """No way of printing a key shows its seed; the fingerprint is shown instead."""
    secret = bytes(range(65, 97))
    key = SigningKey.from_seed(secret)
    shown = f"{key} {key!r} {key!s} {[key]} {traceback.format_exception(ValueError(key))}"
    assert secret.decode() not in shown
    assert secret.hex() not in shown
    assert b64encode(secret).decode().rstrip("=") not in shown
    assert key.fingerprint in shown


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_is_never_pickled_or_copied(take: object) -> None:
    """Pickle and copy fail instead of spreading the key."""
    assert callable(take)
    with pytest.raises(TypeError, match="never pickled"):
        take(SigningKey.from_seed(SEED))


def test_keys_compare_by_identity() -> None:
    """Two objects of one seed are not equal, so no comparison depends on secret bytes."""
    assert SigningKey.from_seed(SEED) != SigningKey.from_seed(SEED)


@pytest.mark.parametrize("text", [b64encode(V2[:40]).decode() + "\x00", b64encode(b"\x30" + V2[:-1]).decode()])
def test_an_error_carries_no_key_material(text: str) -> None:
    """Neither the text of an error nor an exception behind it holds what was refused."""
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_pkcs8_base64(text)
    assert refused.value.args == (f"the key cannot be used: {refused.value.reason}",)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_the_public_key_is_named_as_openssh_does() -> None:
    """The ssh text and the fingerprint equal what OpenSSH prints for the same key."""
    key = SigningKey.from_seed(SEED)
    assert key.ssh_public_key == SSH_PUBLIC_KEY
    assert key.fingerprint == FINGERPRINT


@pytest.mark.parametrize("suffix", ["", " somebody@somewhere and more", "\n"])
def test_ssh_text_is_read_back(suffix: str) -> None:
    """A public key's text gives its bytes, with or without a comment."""
    assert keys.parse_ssh_public_key(SSH_PUBLIC_KEY + suffix) == SigningKey.from_seed(SEED).public_key_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-rsa " + SSH_PUBLIC_KEY.split()[1],
        "ssh-ed25519 " + b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(31)).decode(),
        "ssh-ed25519 " + b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(33)).decode(),
        "ssh-ed25519 " + b64encode(b"\x00\x00\x00\x0bssh-ed25518\x00\x00\x00\x20" + bytes(32)).decode(),
        "ssh-ed25519 " + b64encode(bytes(32)).decode(),
        "ssh-ed25519 AAAA*",
    ],
)
def test_other_ssh_text_is_refused(text: str) -> None:
    """Another algorithm, length or alphabet is not an ssh-ed25519 key."""
    with pytest.raises(InvalidKeyError) as refused:
        keys.parse_ssh_public_key(text)
    assert refused.value.reason == KeyProblem.NOT_SSH_ED25519


@pytest.mark.parametrize("name", [keys.fingerprint, keys.format_ssh_public_key])
def test_only_32_bytes_are_named(name: object) -> None:
    """Bytes of another length get no name that looks like a key's."""
    assert callable(name)
    with pytest.raises(InvalidKeyError):
        name(bytes(31))


def test_seed_derivation_is_upstreams() -> None:
    """The seed of 64 random bytes is the known one for this input, and the material's length is checked."""
    # Made with coreutils: sha512sum of the label and the bytes 0 to 63.
    assert (
        keys.derive_seed(bytes(range(64))).hex() == "0cfd871cb3f3fe583e0294410f5bef1781902cb95a360edb1af451da6823c53e"
    )
    with pytest.raises(ValueError, match="64 random bytes"):
        keys.derive_seed(bytes(63))
