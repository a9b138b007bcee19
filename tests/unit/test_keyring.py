import copy
import hashlib
import hmac
import itertools
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.keyring import (
    Keyring,
    KeyringError,
    KeyringInvalidError,
    KeyringMissingError,
    KeyringUnwritableError,
    SealBrokenError,
    SealContext,
    SealKeyUnknownError,
    SealPurpose,
)
from broker.model import IdentityId

ALICE = IdentityId("a" * 32)
BOB = IdentityId("b" * 32)
CONTEXT = SealContext(purpose=SealPurpose.PRIVATE_KEY, identity_id=ALICE, generation=1, record_id="key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ring would be."""
    return tmp_path / "keyring.json"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Set the umask, and put it back."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def make(path: Path) -> Keyring:
    """Make a ring, or load the one that is there."""
    return Keyring.load_or_create(path, may_create=True)


def mode_of(path: Path) -> int:
    """Return a file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def names_beside(path: Path) -> list[str]:
    """Return the names in the ring's directory, hidden ones included."""
    return sorted(os.listdir(path.parent))  # noqa: PTH208  names are compared, not paths


# Making and loading the file.


def test_a_ring_is_made_and_loaded_again(path: Path) -> None:
    """What the new ring sealed opens after loading it again, and the file alone is left in the directory."""
    sealed = make(path).seal(b"secret", context=CONTEXT)
    assert Keyring.load(path).open(sealed, context=CONTEXT) == b"secret"
    assert make(path).open(sealed, context=CONTEXT) == b"secret"
    assert names_beside(path) == ["keyring.json"]


def test_a_missing_ring_is_never_made_in_place_of_a_lost_one(path: Path) -> None:
    """Without permission to create, a missing file is an error that says so, and nothing is written."""
    with pytest.raises(KeyringMissingError, match="restore it from the backup") as missing:
        Keyring.load_or_create(path, may_create=False)
    assert str(path) in str(missing.value)
    with pytest.raises(KeyringMissingError):
        Keyring.load(path)
    assert names_beside(path) == []


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_the_file_is_0600_under_every_umask(path: Path, umask: Callable[[int], int], mask: int) -> None:
    """Neither an open nor a closed umask changes the mode of the file."""
    umask(mask)
    make(path)
    assert mode_of(path) == 0o600


def test_the_file_is_never_open_to_others_even_before_it_is_complete(
    path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under umask 000 the temporary file is made without bits for others, not narrowed afterwards."""
    umask(0)
    seen: list[int] = []
    monkeypatch.setattr(os, "fchmod", lambda descriptor, _: seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    make(path)
    assert seen == [0o600]


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o660, 0o644, 0o666, 0o777])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    """Any bit for group or others is refused with the mode and what to do."""
    make(path)
    path.chmod(mode)
    with pytest.raises(KeyringInvalidError, match=rf"mode {mode:04o}.*chmod 600"):
        make(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file_is_taken_with_any_owner_bits(path: Path, mode: int) -> None:
    """Bits of the owner do not matter."""
    made = make(path)
    path.chmod(mode)
    assert make(path).key_ids == made.key_ids


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private file that another user owns is refused, since that user can replace the keys."""
    make(path)
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyringInvalidError, match="belongs to user"):
        make(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")
def test_a_file_of_root_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may own the file of a broker that runs as somebody else."""
    make(path)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert Keyring.load(path).key_ids


def test_a_symbolic_link_is_refused(path: Path) -> None:
    """A link is refused even when it leads to a good ring, and so is one that leads nowhere."""
    target = path.with_name("elsewhere.json")
    make(target)
    path.symlink_to(target)
    with pytest.raises(KeyringInvalidError, match="it is a link"):
        make(path)
    target.unlink()
    with pytest.raises(KeyringInvalidError, match="it is a link"):
        make(path)
    assert not target.exists()


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_what_is_no_plain_file_is_refused_without_waiting(path: Path, put: Callable[..., None]) -> None:
    """A directory and a FIFO are refused at once."""
    put(path, 0o600)
    with pytest.raises(KeyringInvalidError, match="directory or a device"):
        make(path)


def test_a_file_that_cannot_be_opened_is_named(path: Path) -> None:
    """An error of the system other than absence is an invalid ring, not a missing one."""
    path.write_text("")
    with pytest.raises(KeyringInvalidError, match="cannot be opened"):
        make(path / "below-a-file.json")


def test_a_directory_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    """A missing state directory is named instead of made."""
    with pytest.raises(KeyringUnwritableError, match="state directory must exist"):
        make(tmp_path / "absent" / "keyring.json")


def document(path: Path) -> dict[str, Any]:
    """Return the ring's file as a dictionary."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def flip_key(entry: dict[str, str]) -> dict[str, str]:
    """Return a file entry with one character of the key changed."""
    first = "A" if entry["key"][0] != "A" else "B"
    return {**entry, "key": first + entry["key"][1:]}


def id_of(key: bytes) -> str:
    """Return the id that belongs to a key, by an HKDF of our own."""
    pseudo_random = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(pseudo_random, b"credential-broker key id v1\x01", hashlib.sha256)[:8].hex()


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no version": lambda ring: {name: ring[name] for name in ("current", "keys", "mac")},
    "a newer version": lambda ring: {**ring, "version": 2},
    "an unknown member": lambda ring: {**ring, "retired": []},
    "no keys": lambda ring: {**ring, "keys": []},
    "keys is no list": lambda ring: {**ring, "keys": ring["keys"][0]},
    "a key twice": lambda ring: {**ring, "keys": ring["keys"] * 2},
    "current is no key": lambda ring: {**ring, "current": "0" * 16},
    "current is no text": lambda ring: {**ring, "current": 1},
    "a changed key": lambda ring: {**ring, "keys": [flip_key(ring["keys"][0])]},
    "a changed MAC key": lambda ring: {**ring, "mac": flip_key(ring["mac"])},
    "a changed id": lambda ring: {**ring, "current": "0" * 16, "keys": [{**ring["keys"][0], "id": "0" * 16}]},
    "a short key": lambda ring: {**ring, "keys": [*ring["keys"], {"id": id_of(bytes(3)), "key": "AAAA"}]},
    "a key that is no base64": lambda ring: {**ring, "keys": [{**ring["keys"][0], "key": "*"}]},
    "an unknown member of a key": lambda ring: {**ring, "keys": [{**ring["keys"][0], "state": "new"}]},
    "no object": lambda ring: [ring],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_ring_is_refused(path: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    """Whatever is wrong inside, the file is refused, left as it is, and nothing of it is in the error."""
    make(path)
    secret = document(path)["keys"][0]["key"]
    path.write_text(json.dumps(damage(document(path))))
    before = path.read_bytes()
    with pytest.raises(KeyringInvalidError, match=r"damaged.*do not delete it") as refused:
        make(path)
    assert path.read_bytes() == before
    assert secret not in str(refused.value)
    assert refused.value.__context__ is None


def test_a_cut_ring_is_refused_wherever_it_is_cut(path: Path) -> None:
    """No prefix of the file is taken for a ring, the empty one included."""
    make(path)
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(KeyringInvalidError):
            make(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 60_000, b" " * 100_000], ids=["bytes", "deep", "long"])
def test_what_is_no_json_is_refused(path: Path, content: bytes) -> None:
    """Bytes, endless nesting and files of absurd size are refused like any damage."""
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyringInvalidError, match="damaged"):
        make(path)


def test_the_limit_of_size_is_beyond_any_real_ring(path: Path) -> None:
    """A ring of a hundred keys still loads."""
    make(path)
    whole = document(path)
    for number in range(100):
        other = path.with_name(f"{number}.json")
        make(other)
        whole["keys"].append(document(other)["keys"][0])
    path.write_text(json.dumps(whole))
    assert len(Keyring.load(path).key_ids) == 101


# One ring, whole and on disk, whatever happens.


def test_everything_is_synced_before_it_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its name, and its directory after that, before the call returns."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def recording_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        steps.append("sync directory" if stat.S_ISDIR(status.st_mode) else f"sync {status.st_size} bytes")
        fsync(descriptor)

    def recording_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "link", recording_link)
    make(path)
    assert steps == [f"sync {path.stat().st_size} bytes", "link", "sync directory"]
    steps.clear()
    Keyring.load(path)
    assert steps == ["sync directory"]


@pytest.mark.parametrize("winner_cleans_up", [True, False])
def test_the_loser_of_a_race_takes_the_winners_ring(
    path: Path, monkeypatch: pytest.MonkeyPatch, winner_cleans_up: bool
) -> None:
    """A ring that appears at the last moment is loaded, not replaced, with our temporary file there or gone."""
    link = os.link
    winners: list[Keyring] = []

    def link_too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        kept = source.read_bytes()
        winners.append(make(path))
        assert not source.exists()
        if not winner_cleans_up:
            source.write_bytes(kept)
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)
    loser = make(path)
    assert loser.key_ids == winners[0].key_ids
    assert Keyring.load(path).key_ids == winners[0].key_ids
    assert names_beside(path) == ["keyring.json"]


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full there is an error with a reason, and neither a ring nor a temporary file."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringUnwritableError, match="No space left"):
        make(path)
    assert names_beside(path) == []


def test_a_directory_that_cannot_be_synced_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring whose name may be lost is not returned."""
    make(path)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(KeyringUnwritableError, match="Input/output error"):
        Keyring.load(path)


RACER = """
import sys
from pathlib import Path
from broker.keyring import Keyring
for line in sys.stdin:
    ring = Keyring.load_or_create(Path(line.strip()), may_create=True)
    print(ring.current_key_id, ring.derive_mac_key("race").hex(), flush=True)
"""


def test_two_processes_that_start_at_once_have_one_ring(tmp_path: Path) -> None:
    """Two real processes, let go together thirty times, always hold the same keys, and no file is left over."""
    processes = [
        subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for number in range(30):
            folder = tmp_path / str(number)
            folder.mkdir()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{folder / 'keyring.json'}\n")
            for process in processes:
                assert process.stdin is not None
                process.stdin.flush()
            answers = {process.stdout.readline() for process in processes if process.stdout is not None}
            assert len(answers) == 1
            assert answers != {""}
            assert os.listdir(folder) == ["keyring.json"]  # noqa: PTH208
    finally:
        for process in processes:
            process.communicate()


VICTIM = """
import os, signal, sys
from pathlib import Path
from broker.keyring import Keyring

call, when = sys.argv[2:]
real = getattr(os, call)

def deadly(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, call, deadly)
Keyring.load_or_create(Path(sys.argv[1]), may_create=True)
"""


@pytest.mark.parametrize(
    ("call", "when", "made"),
    [
        ("fchmod", "before", False),
        ("fsync", "before", False),
        ("fsync", "after", False),
        ("link", "before", False),
        ("link", "after", True),
        ("unlink", "after", True),
    ],
)
def test_a_kill_leaves_a_whole_ring_or_none(path: Path, call: str, when: str, made: bool) -> None:
    """Killed at any step, the next start has a whole ring, the made one if it had its name, and cleans up."""
    victim = subprocess.run([sys.executable, "-c", VICTIM, str(path), call, when], check=False)
    assert victim.returncode == -signal.SIGKILL
    assert path.exists() == made
    left = Keyring.load(path).key_ids if made else None
    ring = make(path)
    assert left in (None, ring.key_ids)
    assert names_beside(path) == ["keyring.json"]
    assert mode_of(path) == 0o600


def test_only_temporary_files_of_this_ring_are_cleaned_up(path: Path) -> None:
    """Files that merely look alike stay."""
    others = [".keyring.json.new", "keyring.json.0.new", ".keyring.json.0.old", ".other.json.0.new", "broker.db"]
    for name in others:
        path.with_name(name).write_text("")
    path.with_name(".keyring.json.00.new").write_text("")
    make(path)
    assert names_beside(path) == sorted([*others, "keyring.json"])


# Sealing and opening.


def test_the_format_is_the_documented_one(path: Path) -> None:
    """A value sealed by the broker opens with an independent reading of the format, byte for byte."""
    sealed = make(path).seal(b"secret", context=CONTEXT)
    entry = document(path)["keys"][0]
    version, key_id, salt, nonce, rest = sealed[:1], sealed[1:9], sealed[9:41], sealed[41:53], sealed[53:]
    assert version == b"\x01"
    assert key_id.hex() == entry["id"] == document(path)["current"]
    pseudo_random = hmac.digest(salt, b64decode(entry["key"]), hashlib.sha256)
    record_key = hmac.digest(pseudo_random, b"credential-broker seal v1\x01", hashlib.sha256)
    fields = [version + key_id, b"private_key", b"a" * 32, (1).to_bytes(8, "big"), b"key"]
    associated = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert AESGCM(record_key).decrypt(nonce, rest, associated) == b"secret"
    assert len(sealed) == len(b"secret") + 69


def test_an_id_is_made_from_its_key(path: Path) -> None:
    """The ids in the file follow from the keys by HKDF, so a damaged key cannot go unnoticed."""
    make(path)
    for entry in [*document(path)["keys"], document(path)["mac"]]:
        assert id_of(b64decode(entry["key"])) == entry["id"]


def test_sealing_twice_differs(path: Path) -> None:
    """Equal secrets in equal places cannot be seen to be equal: no part but version and key id repeats."""
    ring = make(path)
    one, other = (ring.seal(b"secret", context=CONTEXT) for _ in range(2))
    assert one[:9] == other[:9]
    assert one[9:41] != other[9:41]
    assert one[41:53] != other[41:53]
    assert one[53:59] != other[53:59]


def test_salt_and_nonce_come_from_the_given_source(path: Path) -> None:
    """Randomness is an argument: a source that repeats itself makes the same ring and the same bytes."""

    def count() -> Callable[[int], bytes]:
        numbers = itertools.count()
        return lambda length: bytes([next(numbers)]) * length

    one = Keyring.load_or_create(path, may_create=True, random=count())
    other = Keyring.load_or_create(path.with_name("other.json"), may_create=True, random=count())
    assert path.read_bytes() == path.with_name("other.json").read_bytes()
    assert one.seal(b"secret", context=CONTEXT) == other.seal(b"secret", context=CONTEXT)


@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(83), bytes(100_000)])
def test_any_length_is_sealed(path: Path, plaintext: bytes) -> None:
    """Empty and long secrets come back unchanged."""
    ring = make(path)
    assert ring.open(ring.seal(plaintext, context=CONTEXT), context=CONTEXT) == plaintext


def test_every_changed_bit_is_noticed(path: Path) -> None:
    """No bit of a sealed value may differ: version, key id, salt, nonce, text and tag are all bound."""
    ring = make(path)
    sealed = ring.seal(b"secret", context=CONTEXT)
    for position in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(SealBrokenError):
            ring.open(bytes(changed), context=CONTEXT)


def test_every_cut_and_every_addition_is_noticed(path: Path) -> None:
    """A shorter or longer value does not open and raises nothing else."""
    ring = make(path)
    sealed = ring.seal(b"secret", context=CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(SealBrokenError):
            ring.open(sealed[:length], context=CONTEXT)
    with pytest.raises(SealBrokenError):
        ring.open(sealed + b"\x00", context=CONTEXT)


def test_a_value_opens_only_in_its_place(path: Path) -> None:
    """Moved to another purpose, identity, generation or record, a value stays closed."""
    ring = make(path)
    places = [
        SealContext(purpose=purpose, identity_id=identity, generation=generation, record_id=record)
        for purpose in SealPurpose
        for identity in (ALICE, BOB)
        for generation in (0, 1, 2**63 - 1)
        for record in ("", "key", "other")
    ]
    for place in places:
        sealed = ring.seal(b"secret", context=place)
        assert ring.open(sealed, context=place) == b"secret"
        for other in places:
            if other != place:
                with pytest.raises(SealBrokenError):
                    ring.open(sealed, context=other)


def test_no_two_places_join_to_the_same_bytes(path: Path) -> None:
    """Fields that would read the same when simply joined are still different places."""
    ring = make(path)
    one, other = (
        SealContext(
            purpose=SealPurpose.BEARER,
            identity_id=IdentityId(identity),
            generation=int.from_bytes(generation, "big"),
            record_id=record,
        )
        for identity, generation, record in [("a", b"bbbbbbbb", "cccccccc"), ("abbbbbbbb", b"cccccccc", "")]
    )
    with pytest.raises(SealBrokenError):
        ring.open(ring.seal(b"secret", context=one), context=other)


def test_a_value_of_a_newer_format_says_so(path: Path) -> None:
    """A replica of an older version names the format instead of calling the value damaged."""
    ring = make(path)
    sealed = ring.seal(b"secret", context=CONTEXT)
    with pytest.raises(SealBrokenError, match="format 2"):
        ring.open(b"\x02" + sealed[1:], context=CONTEXT)


@pytest.mark.parametrize("generation", [-1, 2**63])
def test_a_generation_fits_a_database_integer(generation: int) -> None:
    """A generation no row could hold is refused before anything is sealed."""
    with pytest.raises(ValueError, match="63 bits"):
        SealContext(purpose=SealPurpose.TASK_ID, identity_id=ALICE, generation=generation, record_id="")


def test_another_ring_is_told_from_a_broken_value(path: Path) -> None:
    """A value of another ring names the key that is missing, so that an operator can find the right backup."""
    ring, stranger = make(path), make(path.with_name("other.json"))
    with pytest.raises(SealKeyUnknownError, match=ring.current_key_id) as unknown:
        stranger.open(ring.seal(b"secret", context=CONTEXT), context=CONTEXT)
    assert unknown.value.key_id == ring.current_key_id
    assert unknown.value.__context__ is None


def test_a_ring_of_two_keys_opens_with_both_and_seals_with_the_current(path: Path) -> None:
    """After a key was added and made current, old values still open and new ones name the new key."""
    old_ring, new = make(path), path.with_name("new.json")
    new_ring = make(new)
    old_value = old_ring.seal(b"old", context=CONTEXT)
    both = document(path)
    both["keys"].append(document(new)["keys"][0])
    both["current"] = document(new)["current"]
    path.write_text(json.dumps(both))
    ring = Keyring.load(path)
    assert ring.key_ids == (old_ring.current_key_id, new_ring.current_key_id)
    assert ring.current_key_id == new_ring.current_key_id
    assert ring.open(old_value, context=CONTEXT) == b"old"
    assert new_ring.open(ring.seal(b"new", context=CONTEXT), context=CONTEXT) == b"new"
    assert ring.derive_mac_key("revision") == old_ring.derive_mac_key("revision")
    assert ring.ring_id == old_ring.ring_id == document(path)["mac"]["id"]
    assert ring.ring_id != new_ring.ring_id


def test_mac_keys_differ_by_purpose_and_agree_between_replicas(path: Path) -> None:
    """Each purpose has a key of its own, the same wherever the ring is loaded, and none is a key of the file."""
    ring = make(path)
    keys = [ring.derive_mac_key(purpose) for purpose in ("revision", "connection_tag", "page_token", "")]
    assert [len(key) for key in keys] == [32] * 4
    assert len(set(keys)) == 4
    assert Keyring.load(path).derive_mac_key("revision") == keys[0]
    assert make(path.with_name("other.json")).derive_mac_key("revision") != keys[0]
    mac = document(path)["mac"]
    assert mac["key"] != document(path)["keys"][0]["key"]
    pseudo_random = hmac.digest(bytes(32), b64decode(mac["key"]), hashlib.sha256)
    assert keys[0] == hmac.digest(pseudo_random, b"credential-broker mac v1\0revision\x01", hashlib.sha256)


def test_a_ring_hides_itself(path: Path) -> None:
    """Printing a ring shows ids only, and it is never pickled or copied."""
    ring = make(path)
    shown = f"{ring} {ring!r} {[ring]}"
    for entry in [*document(path)["keys"], document(path)["mac"]]:
        key = b64decode(entry["key"])
        assert entry["key"] not in shown
        assert key.hex() not in shown
        assert repr(key) not in shown
    assert ring.current_key_id in shown
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            take(ring)


def test_every_error_of_the_file_is_one_family(path: Path) -> None:
    """Who starts the broker can catch all of them as one, and each names the file."""
    for error in (KeyringMissingError, KeyringInvalidError, KeyringUnwritableError):
        assert issubclass(error, KeyringError)
    with pytest.raises(KeyringError) as missing:
        Keyring.load(path)
    assert missing.value.path == path
