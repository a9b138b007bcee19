"""
Sealing secrets at rest: private keys, task ids and bearers, with keys from one file beside the store.

A sealed value is bound to its place (purpose, identity, generation, record): moved anywhere else it does not open.
What a reader of the database learns is its size and which key of the ring sealed it. The ring is made once, never
made anew while anything sealed exists, and must be backed up with the store.

The file is JSON: `{"version": 1, "current": id, "keys": [{"id", "key"}, ...], "mac": {"id", "key"}}`. An id is derived
from its key, so a damaged key is noticed before anything is sealed with it, and ids are never reused.
"""

import contextlib
import errno
import glob
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.keys import decode_base64, encode_base64
from broker.model import IdentityId

RandomBytes = Callable[[int], bytes]
"""Gives that many bytes nobody can guess; `os.urandom` outside of tests."""

_FILE_VERSION: Final = 1
_FILE_LIMIT: Final = 64 * 1024

# A sealed value is: format version, key id, salt, nonce, AES-256-GCM ciphertext and tag.
_SEAL_VERSION: Final = 1
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 8
_SALT_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_SALT_AT: Final = 1 + _KEY_ID_BYTES
_NONCE_AT: Final = _SALT_AT + _SALT_BYTES
_CIPHERTEXT_AT: Final = _NONCE_AT + _NONCE_BYTES

_KEY_ID_INFO: Final = b"credential-broker key id v1"
_SEAL_INFO: Final = b"credential-broker seal v1"
_MAC_INFO: Final = b"credential-broker mac v1\0"

_LARGEST_GENERATION: Final = 2**63 - 1


class KeyringError(Exception):
    """
    The key ring's file cannot be used; the broker must not start.

    The text names the file, what is wrong with it and what to do, and never holds a piece of a key.
    """

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"key ring {path}: {problem}; {remedy}")
        self.path: Final = path


class KeyringMissingError(KeyringError):
    """There is no key ring and none may be made."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            "there is no such file",
            "what was sealed with it opens with nothing else, so restore it from the backup made with the store",
        )


class KeyringInvalidError(KeyringError):
    """The file is open to others, not a plain file of ours, or not a key ring."""


class KeyringUnwritableError(KeyringError):
    """The file or its directory could not be written and synced."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            path,
            f"it could not be written ({error.strerror})",
            "the state directory must exist, belong to the broker and lie on a local disk with free space",
        )


class SealBrokenError(Exception):
    """A sealed value was changed, cut, moved to another place, or never sealed by this ring."""

    def __init__(self, text: str = "the sealed value was changed or belongs to another place") -> None:
        super().__init__(text)


class SealKeyUnknownError(SealBrokenError):
    """The value names a key that the ring does not hold: another ring, or a changed value."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"the value was sealed with key {key_id}, which this key ring does not hold")
        self.key_id: Final = key_id


class SealPurpose(StrEnum):
    """What is sealed. The words are part of what is authenticated: never change one."""

    PRIVATE_KEY = "private_key"
    TASK_ID = "task_id"
    BEARER = "bearer"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105  the name of a purpose, not a token


@dataclass(frozen=True, slots=True, kw_only=True)
class SealContext:
    """
    The place a sealed value belongs to; it opens nowhere else.

    Args:
        purpose: what the value is.
        identity_id: whose it is.
        generation: the identity's credential epoch it was sealed in, at least 0.
        record_id: which record of that purpose, unique within the identity and generation.

    Raises:
        ValueError: the generation is negative or has more than 63 bits.
    """

    purpose: SealPurpose
    identity_id: IdentityId
    generation: int
    record_id: str

    def __post_init__(self) -> None:
        if not 0 <= self.generation <= _LARGEST_GENERATION:
            message = "a generation is at least 0 and has at most 63 bits"
            raise ValueError(message)


class Keyring:
    """
    The keys of one state directory: seals with the current one, opens with any.

    Immutable, so it may be used from several threads. It hides from `repr`, `str` and pickle.
    """

    __slots__ = ("_current", "_keys", "_mac_key", "_random")

    def __init__(self, keys: dict[bytes, bytes], current: bytes, mac_key: bytes, random: RandomBytes) -> None:
        self._keys: Final = keys
        self._current: Final = current
        self._mac_key: Final = mac_key
        self._random: Final = random

    @classmethod
    def load_or_create(cls, path: Path, *, may_create: bool, random: RandomBytes = os.urandom) -> Self:
        """
        Load the ring, or make it when there is none.

        However many processes start at once, one ring is made and all return it. It is on disk, with its directory
        entry, before this returns.

        Args:
            path: the file; its directory must exist.
            may_create: False as soon as anything sealed exists; a missing ring is then an error.
            random: source of the new keys, and later of salts and nonces.

        Raises:
            KeyringMissingError: there is no ring and none may be made.
            KeyringInvalidError: the file is not a ring or may be read or changed by others.
            KeyringUnwritableError: the ring could not be written and synced.
        """
        try:
            ring = cls.load(path, random=random)
        except KeyringMissingError:
            if not may_create:
                raise
            _publish(path, _new_document(random), token=random(8).hex())
            ring = cls.load(path, random=random)
        _discard_leftovers(path)
        return ring

    @classmethod
    def load(cls, path: Path, *, random: RandomBytes = os.urandom) -> Self:
        """
        Load an existing ring.

        Raises:
            KeyringMissingError: there is no file.
            KeyringInvalidError: the file is not a ring or may be read or changed by others.
            KeyringUnwritableError: the directory could not be synced.
        """
        parsed = _parse(_read(path))
        if parsed is None:
            raise KeyringInvalidError(
                path,
                "it is damaged, or was written by a newer version",
                "restore it from the backup made with the store; do not delete it",
            )
        # Another process may have made the file a moment ago. Nothing may be sealed before its name is safe on disk.
        _sync_directory(path)
        return cls(*parsed, random)

    @property
    def ring_id(self) -> str:
        """
        The id of the ring as a whole, which stays when the sealing key is replaced.

        A store that remembers it can refuse another ring before anything is sealed with that.
        """
        return _key_id(self._mac_key).hex()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, in the order of the file."""
        return tuple(key_id.hex() for key_id in self._keys)

    @property
    def current_key_id(self) -> str:
        """The id of the key that seals."""
        return self._current.hex()

    def seal(self, plaintext: bytes, *, context: SealContext) -> bytes:
        """
        Seal a secret to its place.

        Each value has a key of its own (HKDF-SHA256 of the current key and a random salt), so the number of values a
        ring can seal is not bounded by AES-GCM's nonce.

        Returns:
            69 bytes more than the plaintext, different each time.
        """
        header = bytes([_SEAL_VERSION]) + self._current
        salt, nonce = self._random(_SALT_BYTES), self._random(_NONCE_BYTES)
        cipher = AESGCM(_hkdf(self._keys[self._current], salt, _SEAL_INFO))
        return header + salt + nonce + cipher.encrypt(nonce, plaintext, _associated_data(header, context))

    def open(self, sealed: bytes, *, context: SealContext) -> bytes:
        """
        Open a sealed value in its place.

        Raises:
            SealKeyUnknownError: it was sealed with a key that the ring does not hold.
            SealBrokenError: a bit of it changed, it was sealed for another place, or its format is not known.
        """
        header, salt, nonce = sealed[:_SALT_AT], sealed[_SALT_AT:_NONCE_AT], sealed[_NONCE_AT:_CIPHERTEXT_AT]
        if len(sealed) < _CIPHERTEXT_AT + _TAG_BYTES:
            raise SealBrokenError
        if header[0] != _SEAL_VERSION:
            raise SealBrokenError(f"the value has format {header[0]}, which this version of the broker does not know")
        key = self._keys.get(header[1:])
        if key is None:
            raise SealKeyUnknownError(header[1:].hex())
        cipher = AESGCM(_hkdf(key, salt, _SEAL_INFO))
        try:
            return cipher.decrypt(nonce, sealed[_CIPHERTEXT_AT:], _associated_data(header, context))
        except InvalidTag:
            raise SealBrokenError from None

    def derive_mac_key(self, purpose: str) -> bytes:
        """
        Return the 32-byte key for authenticating values of one purpose (revisions, connection tags, page tokens).

        All replicas that share the ring derive the same key, and it stays when the sealing key is replaced.
        """
        return _hkdf(self._mac_key, None, _MAC_INFO + purpose.encode())

    def __repr__(self) -> str:
        return f"<Keyring current={self.current_key_id} keys={len(self._keys)}>"

    def __reduce__(self) -> NoReturn:
        message = "a Keyring is never pickled or copied"
        raise TypeError(message)


def _hkdf(key: bytes, salt: bytes | None, info: bytes, length: int = _KEY_BYTES) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def _key_id(key: bytes) -> bytes:
    return _hkdf(key, None, _KEY_ID_INFO, _KEY_ID_BYTES)


def _associated_data(header: bytes, context: SealContext) -> bytes:
    # Each field carries its length, so that no two contexts join to the same bytes.
    fields = (
        header,
        context.purpose.value.encode(),
        context.identity_id.encode(),
        context.generation.to_bytes(8, "big"),
        context.record_id.encode(),
    )
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _new_document(random: RandomBytes) -> bytes:
    sealing, mac = random(_KEY_BYTES), random(_KEY_BYTES)
    document = {
        "version": _FILE_VERSION,
        "current": _key_id(sealing).hex(),
        "keys": [{"id": _key_id(sealing).hex(), "key": encode_base64(sealing)}],
        "mac": {"id": _key_id(mac).hex(), "key": encode_base64(mac)},
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _parse(document: bytes) -> tuple[dict[bytes, bytes], bytes, bytes] | None:
    """Return keys by id, the current id and the MAC key; None when it is no ring (an exception would carry keys)."""
    try:
        match json.loads(document):
            case {"version": version, "current": str(current), "keys": [*entries], "mac": mac, **rest}:
                if version != _FILE_VERSION or rest:
                    return None
                keys = dict(_parse_key(entry) for entry in entries)
                _, mac_key = _parse_key(mac)
            case _:
                return None
    except (ValueError, RecursionError):
        return None
    current_id = next((key_id for key_id in keys if key_id.hex() == current), None)
    return None if current_id is None or len(keys) != len(entries) else (keys, current_id, mac_key)


def _parse_key(entry: Any) -> tuple[bytes, bytes]:
    match entry:
        case {"id": str(key_id), "key": str(text), **rest} if not rest:
            key = decode_base64(text)
            if key is not None and len(key) == _KEY_BYTES and _key_id(key).hex() == key_id:
                return _key_id(key), key
    raise ValueError


def _read(path: Path) -> bytes:
    """Return the file's bytes when nobody else can have read or changed them."""
    try:
        # Not through a symbolic link, which somebody else could point elsewhere, and without waiting on a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyringMissingError(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_a_plain_file(path) from None
        raise KeyringInvalidError(
            path, f"it cannot be opened ({error.strerror})", "the broker's user must be able to read it"
        ) from error
    try:
        _require_private(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_FILE_LIMIT)
    finally:
        os.close(descriptor)


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_a_plain_file(path)
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyringInvalidError(
            path,
            f"it belongs to user {status.st_uid}, who can read and replace the keys",
            f"it must belong to the broker's user ({os.geteuid()}) or to root",
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyringInvalidError(
            path,
            f"others may use it (mode {stat.S_IMODE(status.st_mode):04o})",
            "check who has read it, then run chmod 600 on it",
        )


def _not_a_plain_file(path: Path) -> KeyringInvalidError:
    return KeyringInvalidError(
        path, "it is a link, a directory or a device", "put the file itself there, not a link to it"
    )


def _publish(path: Path, document: bytes, *, token: str) -> None:
    """
    Make the file appear whole, once: of several processes the first wins, the others' documents are dropped.

    Steps, each of which may be the last one before a crash:
    1. write a temporary file that only we can read; 2. sync it; 3. link it to the final name, which fails when the
    name exists; 4. remove the temporary name. `Keyring.load` then syncs the directory, in winners and losers alike.
    """
    temporary = path.with_name(_temporary_name(path, token))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)  # whatever the umask took away
                file.write(document)
                file.flush()
                os.fsync(descriptor)
            path.hardlink_to(temporary)
        finally:
            temporary.unlink()
    except OSError as error:
        # Lost the race: the name exists, or its winner has already cleaned our temporary file away.
        if not path.exists():
            raise KeyringUnwritableError(path, error) from error


def _discard_leftovers(path: Path) -> None:
    """
    Remove temporary files of processes that died while making the ring.

    Called only when the ring exists. Then nobody needs a temporary file any more: one that a live process still holds
    loses the race for the name with it or without it.
    """
    # A leftover is unreadable to others and never read; that one cannot be removed is no reason not to start.
    with contextlib.suppress(OSError):
        for leftover in path.parent.glob(_temporary_name(Path(glob.escape(path.name)), "*")):
            leftover.unlink(missing_ok=True)


def _temporary_name(path: Path, token: str) -> str:
    return f".{path.name}.{token}.new"


def _sync_directory(path: Path) -> None:
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyringUnwritableError(path, error) from error
