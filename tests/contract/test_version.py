"""One version names everything that is released together."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import broker

ROOT = Path(__file__).parents[2]


def manifest(folder: Path) -> dict[str, object]:
    """Return the `[project]` table of a folder's manifest."""
    project: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def test_one_version_everywhere() -> None:
    """The manifest, the package, what is installed, the stubs, the dependency on them and the changelog agree."""
    server, stubs = manifest(ROOT), manifest(ROOT / "stubs/python")
    version = server["version"]
    dependencies = server["dependencies"]
    assert isinstance(dependencies, list)
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    said = {
        "broker.__version__": broker.__version__,
        "installed credential-broker": metadata.version("credential-broker"),
        "installed credentialbroker": metadata.version("credentialbroker"),
        "stubs/python/pyproject.toml": stubs["version"],
        "dependency on the stubs": next(
            d.partition("==")[2] for d in dependencies if d.startswith("credentialbroker=")
        ),
        "CHANGELOG.md": newest[1],
    }
    assert dict.fromkeys(said, version) == said


def test_every_manifest_of_stubs_has_it() -> None:
    """A manifest of stubs for another language cannot be added with a version of its own."""
    version = str(manifest(ROOT)["version"])
    manifests = [
        path
        for pattern in ("pyproject.toml", "package.json", "Cargo.toml", "pom.xml", "build.gradle*", "VERSION")
        for path in (ROOT / "stubs").glob(f"*/{pattern}")
    ]
    assert ROOT / "stubs/python/pyproject.toml" in manifests
    assert [path for path in manifests if version not in path.read_text(encoding="utf-8")] == []


def test_the_command_line_says_it() -> None:
    """`--version` prints it."""
    program = Path(sys.executable).parent / "credential-broker"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[-1] == broker.__version__


def test_the_readme_says_it() -> None:
    """The README's status is that of this version."""
    assert f"## Status: {broker.__version__}" in (ROOT / "README.md").read_text(encoding="utf-8")
