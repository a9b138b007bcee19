"""
Where a SQLite file may lie, whose it must be, and how it is made.

Nothing here opens a database file that exists: closing any descriptor of it would drop the locks that SQLite holds on
it in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker.errors import StartupError

_NETWORK_FILE_SYSTEMS: Final = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|orangefs|pvfs2|ncpfs|coda"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|rclone|davfs\d?|smbnetfs|juicefs|gcsfuse|blobfuse\d?|mount-s3)"
)
_MOUNT_POINT_FIELD: Final = 4


def make_or_check(path: Path) -> None:
    """
    Make an empty file (0600) and its folder (0700) where there is none; check what is there.

    SQLite gives the `-wal` and `-shm` files the mode of the database file, whatever the umask.

    Raises:
        StartupError: it cannot be used; says why and what to do.
    """
    try:
        _make_folder(path.parent)
        _refuse_network_file_system(path.parent)
        if not _made(path):
            _refuse_unsafe(path)
    except OSError as error:
        raise StartupError(
            f"the database {path} cannot be made or looked at ({error.strerror}); "
            "name a folder that this user may write to"
        ) from error


def file_system_type(path: Path, mountinfo: str) -> str | None:
    """
    Return the type of the file system a resolved path lies on, None when no mount covers it.

    Args:
        path: absolute and without symbolic links.
        mountinfo: the content of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    """
    best = Path()
    found = None
    for mount_point, kind in _mounts(mountinfo):
        # Of mounts on the same place the last one is seen.
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= len(best.parts):
            best, found = mount_point, kind
    return found


def _mounts(mountinfo: str) -> Iterator[tuple[Path, str]]:
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) > _MOUNT_POINT_FIELD:
            mount_point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[_MOUNT_POINT_FIELD])
            yield Path(mount_point), after.split(" ")[0]


def _refuse_network_file_system(folder: Path) -> None:
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return  # not Linux: development only
    kind = file_system_type(folder.resolve(), mountinfo)
    if kind is not None and _NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise StartupError(
            f"{folder} lies on the network file system {kind}, on which SQLite's locks and shared log do not work; "
            "use a local disk, or a postgresql:// database for several hosts"
        )


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process that starts with us
            each.mkdir(mode=0o700)
            _sync_folder(each.parent)


def _made(path: Path) -> bool:
    """Make the file, durably; return False when it exists."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)
    return True


def _refuse_unsafe(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise StartupError(f"{path} is not a plain file (a link, a folder or a device); name the database file itself")
    if found.st_uid != os.geteuid():
        raise StartupError(f"{path} belongs to another user; start as that user or name another file")
    if found.st_nlink != 1:
        raise StartupError(f"{path} has other hard links, which SQLite cannot share safely; copy it instead")
    if found.st_mode & 0o077:
        raise StartupError(f"{path} is open to other users (mode {found.st_mode & 0o777:04o}); run: chmod 600 {path}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
