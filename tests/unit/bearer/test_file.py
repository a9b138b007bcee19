"""A bearer in a file: what is read, when a change is seen, and what stays when the file is bad."""

import asyncio
import base64
import json
import os
import threading
from pathlib import Path

import pytest

from broker.bearer import EXPIRY_MARGIN_SECONDS, Phase, Standing, file
from broker.bearer.file import LARGEST_TOKEN_BYTES, LOOK_SECONDS, BearerFileError, FileSource, read_token
from broker.errors import IssuerDownError
from broker.model import Secret
from tests.support.clocks import SetClock

NOW = 1_800_000_000.0


def jwt(expire_time: float, name: str = "a") -> str:
    """Build a JWT whose signature nobody checks."""
    parts = ({"alg": "none"}, {"exp": int(expire_time), "sub": name})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2ln"])


def write(path: Path, text: str) -> None:
    """Write a file that only its owner can write."""
    path.write_text(text)
    path.chmod(0o600)


@pytest.mark.parametrize("raw", [b"sk-token", b"  sk-token\n", b"sk-token\r\n", b"\tsk-token\n\n"])
def test_one_token_is_read_without_the_space_around_it(tmp_path: Path, raw: bytes) -> None:
    """A trailing newline, as editors and `echo` leave it, does not become a part of the token."""
    (tmp_path / "token").write_bytes(raw)
    assert read_token(tmp_path / "token").reveal() == "sk-token"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"two tokens", b"one\ntwo", b"caf\xc3\xa9", b"\xff\xfe", b"nul\x00", b"a" * (LARGEST_TOKEN_BYTES + 1)],
)
def test_anything_else_than_one_token_is_refused_without_being_quoted(tmp_path: Path, raw: bytes) -> None:
    """A file that holds no single printable token is refused, and the text shows none of it."""
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(BearerFileError, match="must hold one token") as caught:
        read_token(tmp_path / "file")
    assert raw.strip() == b"" or raw.strip()[:8].decode("latin-1") not in str(caught.value)


def test_the_largest_token_is_read(tmp_path: Path) -> None:
    """The size limit counts the last byte that is allowed."""
    write(tmp_path / "token", "a" * LARGEST_TOKEN_BYTES)
    assert len(read_token(tmp_path / "token").reveal()) == LARGEST_TOKEN_BYTES


def test_a_file_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    """Whoever may write the file chooses the credential, so the world may not; reading is not refused."""
    write(tmp_path / "token", "sk-token")
    (tmp_path / "token").chmod(0o644)
    assert read_token(tmp_path / "token").reveal() == "sk-token"
    (tmp_path / "token").chmod(0o602)
    with pytest.raises(BearerFileError, match="chmod o-w"):
        read_token(tmp_path / "token")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, a missing file and a pipe that nobody writes to are refused; the pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(BearerFileError, match="not a regular file"):
        read_token(tmp_path / "pipe")
    with pytest.raises(BearerFileError, match="cannot be read"):
        read_token(tmp_path)
    with pytest.raises(BearerFileError, match="cannot be read"):
        read_token(tmp_path / "missing")


async def test_every_kind_of_change_is_seen(tmp_path: Path) -> None:
    """A rename over the file, a rewrite in place with the same size and times, and a swapped link bring the new token."""
    path = tmp_path / "token"
    write(path, "sk-1")
    source = FileSource(path, SetClock(NOW))
    assert source.current() is None
    assert (await source.refresh()).token.reveal() == "sk-1"
    # 1. Renamed over.
    write(tmp_path / "next", "sk-2")
    (tmp_path / "next").rename(path)
    assert (await source.refresh()).token.reveal() == "sk-2"
    # 2. Rewritten in place: same size, same times.
    before = path.stat()
    path.write_text("sk-3")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await source.refresh()).token.reveal() == "sk-3"
    # 3. A link swapped, as mounted secrets change.
    for version in ("4", "5"):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "token", f"sk-{version}")
    (tmp_path / "data").symlink_to("4")
    linked = FileSource(tmp_path / "data" / "token", SetClock(NOW))
    assert (await linked.refresh()).token.reveal() == "sk-4"
    (tmp_path / "data_next").symlink_to("5")
    (tmp_path / "data_next").rename(tmp_path / "data")
    refreshed = await linked.refresh()
    assert refreshed.token.reveal() == "sk-5"
    assert linked.current() == refreshed


@pytest.mark.parametrize("damage", ["removed", "emptied", "garbage", "opened to the world"])
async def test_the_last_good_token_stays_until_it_expires(tmp_path: Path, damage: str) -> None:
    """A file that went bad does not take the token away; when that has expired there is none, and a new one heals."""
    path, clock = tmp_path / "token", SetClock(NOW)
    write(path, jwt(NOW + 100))
    source = FileSource(path, clock)
    good = await source.refresh()
    match damage:
        case "removed":
            path.unlink()
        case "emptied":
            path.write_text("")
        case "garbage":
            path.write_text("not a token")
        case _:
            path.chmod(0o666)
    assert await source.refresh() == good
    clock.wall = NOW + 100 - EXPIRY_MARGIN_SECONDS - 1
    assert await source.refresh() == good
    clock.wall = NOW + 100 - EXPIRY_MARGIN_SECONDS
    with pytest.raises(IssuerDownError) as caught:
        await source.refresh()
    assert str(path) in caught.value.note
    path.unlink(missing_ok=True)
    write(path, jwt(NOW + 500))
    assert (await source.refresh()).expire_time == NOW + 500


async def test_a_token_that_has_expired_is_not_a_token(tmp_path: Path) -> None:
    """A file that holds an expired token, and a file that never held one, give ISSUER_DOWN."""
    write(tmp_path / "token", jwt(NOW - 1))
    with pytest.raises(IssuerDownError):
        await FileSource(tmp_path / "token", SetClock(NOW)).refresh()
    with pytest.raises(IssuerDownError):
        await FileSource(tmp_path / "missing", SetClock(NOW)).refresh()


async def test_the_end_comes_from_the_token_else_from_the_lifetime(tmp_path: Path) -> None:
    """A JWT's own `exp` wins; another token lives as long as the setting says from when it was first read."""
    path, clock = tmp_path / "token", SetClock(NOW)
    write(path, jwt(NOW + 100))
    assert (await FileSource(path, clock, lifetime=7.0).refresh()).expire_time == NOW + 100
    write(path, "sk-opaque")
    assert (await FileSource(path, clock).refresh()).expire_time is None
    source = FileSource(path, clock, lifetime=60.0)
    assert (await source.refresh()).expire_time == NOW + 60
    clock.wall = NOW + 30
    path.touch()
    assert (await source.refresh()).expire_time == NOW + 60
    write(path, "sk-other")
    assert (await source.refresh()).expire_time == NOW + 90


async def test_a_bad_file_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While the last good token lives on, the operator hears of the file's trouble, once and without its content."""
    path = tmp_path / "token"
    write(path, "sk-good-token")
    source = FileSource(path, SetClock(NOW))
    await source.refresh()
    path.write_text("sk-spoiled token")
    await source.refresh()
    await source.refresh()
    said = capsys.readouterr().out
    assert said.count("bearer_file_unusable") == 1
    assert "sk-spoiled" not in said


async def test_no_text_of_a_bearer_shows_the_token(tmp_path: Path) -> None:
    """The repr of a bearer hides its token."""
    write(tmp_path / "token", "sk-hidden-token")
    assert "hidden" not in repr(await FileSource(tmp_path / "token", SetClock(NOW)).refresh())


async def test_a_file_is_looked_into_every_so_often(tmp_path: Path) -> None:
    """What was read is FRESH for a moment, then it is time to look again; without a live token there is none."""
    path, clock = tmp_path / "token", SetClock(NOW)
    source = FileSource(path, clock)
    assert source.phase(NOW) is Phase.ABSENT
    write(path, jwt(NOW + 100))
    await source.refresh()
    assert source.phase(NOW + LOOK_SECONDS - 0.01) is Phase.FRESH
    assert source.phase(NOW + LOOK_SECONDS) is Phase.ADVISORY
    assert source.phase(NOW + 100) is Phase.ABSENT
    # It says in what trouble it is, and is out of it once the file is good again.
    path.unlink()
    await source.refresh()
    assert source.standing == Standing(trouble=IssuerDownError, retry_time=NOW + LOOK_SECONDS)
    write(path, jwt(NOW + 200, "b"))
    source.refresh_soon()
    assert await source.refresh(beyond=source.current()) == source.current()
    assert source.standing == Standing()
    await source.close()


async def test_all_who_ask_together_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while the file is read waits for the next read, as its news may be younger; all of them share that."""
    path = tmp_path / "token"
    write(path, "sk-1")
    source = FileSource(path, SetClock(NOW))
    has_read, may_end = threading.Event(), threading.Event()
    reads = 0

    def slow(path: Path) -> Secret:
        nonlocal reads
        reads += 1
        token = read_token(path)
        has_read.set()
        assert may_end.wait(30)
        return token

    monkeypatch.setattr(file, "read_token", slow)
    source.refresh_soon()
    await asyncio.to_thread(has_read.wait, 30)
    write(path, "sk-2")
    asking = [asyncio.create_task(source.refresh()) for _ in range(50)]
    await asyncio.sleep(0)
    may_end.set()
    assert {bearer.token.reveal() for bearer in await asyncio.gather(*asking)} == {"sk-2"}
    assert reads == 2
    # One who gives up takes nothing from the others.
    write(path, "sk-3")
    impatient = asyncio.create_task(source.refresh())
    patient = asyncio.create_task(source.refresh())
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).token.reveal() == "sk-3"
