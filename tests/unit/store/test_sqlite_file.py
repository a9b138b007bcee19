"""Which file system a path lies on, as /proc/self/mountinfo tells it."""

from pathlib import Path

import pytest

from broker.store.sqlite_file import file_system_type

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /srv/state rw,relatime shared:12 master:3 - nfs4 server:/export rw,vers=4.2
31 30 0:27 / /srv/state/local rw - tmpfs tmpfs rw
32 22 0:28 / /mnt/with\040space rw - fuse.sshfs me@host: rw
33 22 0:29 / /twice rw - ext4 /dev/vdb rw
34 22 0:30 / /twice rw - cifs //server/share rw
a line that is no mount
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/broker", "ext4"),
        ("/srv/state", "nfs4"),
        ("/srv/state/broker", "nfs4"),
        ("/srv/stateful", "ext4"),
        ("/srv/state/local/broker", "tmpfs"),
        ("/mnt/with space/broker", "fuse.sshfs"),
        ("/twice/broker", "cifs"),
    ],
)
def test_the_innermost_and_latest_mount_decides(path: str, kind: str) -> None:
    """Whole path components count, escapes are read, and a later mount hides an earlier one."""
    assert kind == file_system_type(Path(path), MOUNTINFO)


def test_a_path_that_no_mount_covers_has_no_type() -> None:
    """An empty or unreadable table decides nothing."""
    assert file_system_type(Path("/var"), "") is None
