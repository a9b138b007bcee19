"""
Ed25519 keys of agent identities: reading, writing, naming and signing.

Pure: randomness comes in as an argument, nothing is read or written. What is signed is decided by
`broker.assertion`; sealed messages to a key are opened by `broker.sealed_box`.
"""

import hashlib
from base64 import b64decode, b64encode
from enum import StrEnum
from typing import Final, NoReturn, Self

from nacl.public import PrivateKey
from nacl.signing import SigningKey as _NaClSigningKey

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEED_MATERIAL_BYTES: Final = 64

# DER is canonical and every field has a fixed size, so each of the two accepted forms has exactly one encoding: a
# constant head, the seed, and in the second form a constant joint and the public key. Comparing with these constants
# is the whole reader; there is no length field to trust. (`cryptography` 50 and OpenSSL 3.0 refuse the second form.)
_ED25519_OID_FIELD: Final = bytes.fromhex("300506032b6570")
_V1_HEAD: Final = bytes.fromhex("302e020100300506032b657004220420")
_V2_HEAD: Final = bytes.fromhex("3051020101300506032b657004220420")
_V2_JOINT: Final = bytes.fromhex("812100")
_OID_FIELD_AT: Final = 5
_V1_BYTES: Final = 48
_V2_BYTES: Final = 83

_SSH_ALGORITHM: Final = "ssh-ed25519"
# RFC 8709 section 4: string "ssh-ed25519", then the key as a string of 32 bytes.
_SSH_BLOB_HEAD: Final = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"

# openai/codex codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 425 to 439.
_SEED_LABEL: Final = b"codex-agent-identity-ed25519-v1"


class KeyProblem(StrEnum):
    """Why key material was refused; constant texts that are safe to show and to log."""

    NOT_BASE64 = "it is not canonical base64"
    WRONG_SIZE = "it is neither the 48 bytes of a PKCS#8 v1 nor the 83 bytes of a v2 Ed25519 key"
    NOT_ED25519 = "its algorithm is not Ed25519"
    NOT_PKCS8 = "it is not the DER of a PKCS#8 Ed25519 key"
    PUBLIC_KEY_MISMATCH = "its embedded public key belongs to another private key"
    SEED_SIZE = "an Ed25519 seed has 32 bytes"
    NOT_SSH_ED25519 = "it is not the text of an ssh-ed25519 public key"


class InvalidKeyError(ValueError):
    """
    Key material that cannot be used.

    Neither the text nor the exception chain ever holds a piece of the material.
    """

    def __init__(self, reason: KeyProblem) -> None:
        super().__init__(f"the key cannot be used: {reason.value}")
        self.reason: Final = reason


class SigningKey:
    """
    An agent identity's Ed25519 private key.

    It hides from `repr`, `str`, `format`, pickle and copy: they name the public key's fingerprint or fail. Two objects
    are equal only when they are the same object; compare `public_key_bytes` to compare keys.
    """

    __slots__ = ("_key", "public_key_bytes")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise InvalidKeyError(KeyProblem.SEED_SIZE)
        # The expanded key is kept, so that a signature costs one libsodium call: 15 us here, 20 us with `cryptography`.
        self._key: Final = _NaClSigningKey(seed)
        self.public_key_bytes: Final = bytes(self._key.verify_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """
        Make the key of a 32-byte RFC 8032 seed.

        Raises:
            InvalidKeyError: the seed has another length.
        """
        return cls(seed)

    @classmethod
    def from_pkcs8_base64(cls, text: str) -> Self:
        """
        Read the form in which keys travel: canonical, padded standard base64 of PKCS#8 DER.

        Raises:
            InvalidKeyError: anything else, surrounding white space included.
        """
        der = decode_base64(text)
        if der is None:
            raise InvalidKeyError(KeyProblem.NOT_BASE64)
        return cls.from_pkcs8_der(der)

    @classmethod
    def from_pkcs8_der(cls, der: bytes) -> Self:
        """
        Read PKCS#8 v1 (RFC 5208, 48 bytes) or v2 (RFC 5958 with the public key, 83 bytes).

        The public key of a v2 form must belong to the private key, as upstream's decoder demands.

        Raises:
            InvalidKeyError: anything but the exact bytes of one of the two forms.
        """
        if len(der) not in (_V1_BYTES, _V2_BYTES):
            raise InvalidKeyError(KeyProblem.WRONG_SIZE)
        if not der.startswith(_ED25519_OID_FIELD, _OID_FIELD_AT):
            raise InvalidKeyError(KeyProblem.NOT_ED25519)
        head, seed, rest = der[: len(_V1_HEAD)], der[len(_V1_HEAD) : _V1_BYTES], der[_V1_BYTES:]
        if len(der) == _V1_BYTES:
            if head != _V1_HEAD:
                raise InvalidKeyError(KeyProblem.NOT_PKCS8)
            return cls(seed)
        if head != _V2_HEAD or not rest.startswith(_V2_JOINT):
            raise InvalidKeyError(KeyProblem.NOT_PKCS8)
        key = cls(seed)
        if rest.removeprefix(_V2_JOINT) != key.public_key_bytes:
            raise InvalidKeyError(KeyProblem.PUBLIC_KEY_MISMATCH)
        return key

    def to_pkcs8_der(self) -> bytes:
        """Return the private key as PKCS#8 v2 (83 bytes), the form upstream writes. Secret."""
        return _V2_HEAD + bytes(self._key) + _V2_JOINT + self.public_key_bytes

    def to_pkcs8_base64(self) -> str:
        """Return `to_pkcs8_der` as padded standard base64. Secret."""
        return encode_base64(self.to_pkcs8_der())

    @property
    def ssh_public_key(self) -> str:
        """The public key as it is registered: `ssh-ed25519 <base64>` without a comment."""
        return format_ssh_public_key(self.public_key_bytes)

    @property
    def fingerprint(self) -> str:
        """The public key's fingerprint, as `ssh-keygen -l` prints it."""
        return fingerprint(self.public_key_bytes)

    def sign(self, message: bytes) -> bytes:
        """
        Return the 64-byte pure Ed25519 signature of a message.

        Only `broker.assertion` should call this: it alone decides which messages an identity's key may sign.
        """
        return self._key.sign(message).signature

    def to_x25519(self) -> PrivateKey:
        """
        Return the X25519 key that messages sealed to this identity open with.

        Use it and drop it: `str` of a PyNaCl key is the secret itself.
        """
        return self._key.to_curve25519_private_key()

    def __repr__(self) -> str:
        return f"<SigningKey {self.fingerprint}>"

    def __reduce__(self) -> NoReturn:
        message = "a SigningKey is never pickled or copied"
        raise TypeError(message)


def derive_seed(material: bytes) -> bytes:
    """
    Derive a new key's seed from 64 random bytes.

    The rule is upstream's (openai/codex codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 425 to 439): the
    first 32 bytes of SHA-512(label || material).

    Raises:
        ValueError: the material has another length.
    """
    if len(material) != SEED_MATERIAL_BYTES:
        message = "key generation takes 64 random bytes"
        raise ValueError(message)
    return hashlib.sha512(_SEED_LABEL + material).digest()[:SEED_BYTES]


def format_ssh_public_key(public_key: bytes) -> str:
    """
    Return a 32-byte Ed25519 public key as OpenSSH writes it, without a comment.

    Raises:
        InvalidKeyError: the key has another length.
    """
    return f"{_SSH_ALGORITHM} {encode_base64(_ssh_blob(public_key))}"


def parse_ssh_public_key(text: str) -> bytes:
    """
    Read `ssh-ed25519 <base64>` with an optional comment, as in a `.pub` file, and return the 32 key bytes.

    That the bytes are a point of the curve is not checked; no signature is verified with them here.

    Raises:
        InvalidKeyError: anything else.
    """
    words = text.split(maxsplit=2)
    if len(words) < len(("algorithm", "key")) or words[0] != _SSH_ALGORITHM:
        raise InvalidKeyError(KeyProblem.NOT_SSH_ED25519)
    blob = decode_base64(words[1])
    if blob is None or not blob.startswith(_SSH_BLOB_HEAD):
        raise InvalidKeyError(KeyProblem.NOT_SSH_ED25519)
    public_key = blob.removeprefix(_SSH_BLOB_HEAD)
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidKeyError(KeyProblem.NOT_SSH_ED25519)
    return public_key


def fingerprint(public_key: bytes) -> str:
    """
    Return `SHA256:...` of a 32-byte public key, as `ssh-keygen -l` prints it.

    Raises:
        InvalidKeyError: the key has another length.
    """
    digest = hashlib.sha256(_ssh_blob(public_key)).digest()
    return "SHA256:" + encode_base64(digest).rstrip("=")


def decode_base64(text: str) -> bytes | None:
    """
    Decode canonical, padded standard base64; None for anything else.

    As strict as upstream's decoder: no white space, no missing padding, no stray bits behind the last byte. The answer
    is None instead of an exception because Python's would carry the (possibly secret) text along.
    """
    try:
        decoded = b64decode(text)
    except ValueError:
        return None
    # Python skips foreign characters and stray bits; demanding the one text of these bytes refuses them all.
    return decoded if encode_base64(decoded) == text else None


def encode_base64(data: bytes) -> str:
    """Return padded standard base64, the one text that `decode_base64` takes for these bytes."""
    return b64encode(data).decode("ascii")


def _ssh_blob(public_key: bytes) -> bytes:
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidKeyError(KeyProblem.NOT_SSH_ED25519)
    return _SSH_BLOB_HEAD + public_key
