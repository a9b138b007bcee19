"""What is built is complete, and works where nothing of the repository is."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import broker

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
WAIT_SECONDS = 110
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""Runs what follows in a network of its own, in which there is nothing but loopback."""


def missing(what: str) -> None:
    """Skip, but fail where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI=true)")
    pytest.skip(what)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels and sdists of the server and the stubs; each wheel is built from its sdist."""
    if not UV.exists():
        missing("uv is not installed beside Python")
    folder = tmp_path_factory.mktemp("built")
    for source in (ROOT, ROOT / "stubs/python"):
        done = subprocess.run(
            [UV, "build", "-q", "--out-dir", folder, source],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    """The server's wheel."""
    return zipfile.ZipFile(built / f"credential_broker-{broker.__version__}-py3-none-any.whl")


def shipped(folder: Path) -> set[str]:
    """Return the files of the repository below `folder` that must be shipped, by their path in it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    if not files:
        missing("this is no git work tree")
    return {name for name in files if (ROOT / name).is_file()}


def test_the_wheel_is_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """The wheel has every file of the package, data files too, and neither tests nor the stubs."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped(Path("broker"))
    assert {
        "broker/py.typed",
        "broker/store/migrations/script.py.mako",
        "broker/store/migrations/versions/v0001_first_schema.py",
    } <= names


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    """The metadata names exactly this version of the stubs, the README, the licence and the command."""
    prefix = f"credential_broker-{broker.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{prefix}/METADATA").decode())
    assert f"credentialbroker=={broker.__version__}" in metadata.get_all("Requires-Dist", [])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert f"{prefix}/licenses/LICENSE" in wheel.namelist()
    assert b"credential-broker = broker.__main__:main" in wheel.read(f"{prefix}/entry_points.txt")


def test_the_sdist_has_what_is_needed_to_build_and_to_call(built: Path) -> None:
    """The sdist has the package, the API, the Python stubs and the documentation."""
    with tarfile.open(built / f"credential_broker-{broker.__version__}.tar.gz") as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    wanted = {
        name for folder in ("broker", "protos", "stubs/python", "docs", "deploy") for name in shipped(Path(folder))
    }
    assert wanted <= names
    assert {"README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "pyproject.toml"} <= names
    assert {name for name in names if name.startswith("tests/")} == set()


@pytest.mark.slow
def test_it_runs_installed_elsewhere_without_a_network(built: Path, tmp_path: Path) -> None:
    """Both wheels, installed into an empty environment, run `dev --once` in a network with nothing but loopback."""
    tried = shutil.which("unshare") and shutil.which("ip") and subprocess.run([*ALONE, "true"], check=False)
    if not tried or tried.returncode != 0:
        missing("a network of its own needs root, util-linux and iproute2")
    environment = tmp_path / "environment"
    wheels = sorted(built.glob("*.whl"))
    assert len(wheels) == 2
    install = [UV, "pip", "install", "-q", "--python", environment / "bin/python"]
    for command in (
        [UV, "venv", "-q", "--python", sys.executable, environment],
        [*install, "--constraints", ROOT / "requirements/runtime.txt", *wheels],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
        assert done.returncode == 0, done.stderr
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    home = subprocess.run(
        [environment / "bin/python", "-c", "import broker, credentialbroker; print(broker.__file__)"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(home).is_relative_to(environment)
    done = subprocess.run(
        [*ALONE, environment / "bin/credential-broker", "dev", "--once"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified (200)") == 3
