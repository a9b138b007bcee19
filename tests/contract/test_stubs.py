"""The stubs: exactly what the .proto files give; those of Python typed, and usable with every runtime they declare."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.polyglot.suite import toolchains

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "stubs" / "python"
GENERATED = STUBS / "credentialbroker" / "v1"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """protos/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("stub_generator", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)  # the first run makes the generators
@pytest.mark.parametrize("language", toolchains.wanted())
def test_checked_in_stubs_are_current(language: str) -> None:
    """Generating again changes no byte of what is checked in; the languages are those of LANGS."""
    reason = toolchains.missing_reason(language)
    if reason is not None and not toolchains.in_ci():
        pytest.skip(reason)
    command = [sys.executable, "protos/generate.py", "--check", "--languages", language]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=590)
    assert result.returncode == 0, result.stdout[:4000] + result.stderr


def test_check_sees_any_difference(generator: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A changed byte, a missing file and a file too many each make `--check` fail and name the file."""
    language = generator.LANGUAGES["python"]
    target = tmp_path / "stubs"
    generator.write(generator.Language(target, language.patterns, language.generate), generated(generator, tmp_path))
    changed, missing, extra = (
        target / "credentialbroker/v1" / name
        for name in ("broker_admin_pb2.py", "error_reason_pb2.pyi", "gone_pb2_grpc.py")
    )
    for spoil, name in (
        (lambda: changed.write_bytes(changed.read_bytes()[:-1]), changed.name),
        (missing.unlink, missing.name),
        (lambda: extra.write_bytes(b""), extra.name),
    ):
        generator.LANGUAGES["python"] = generator.Language(target, language.patterns, language.generate)
        try:
            assert generator.main([]) == 0
            assert generator.main(["--check"]) == 0
            spoil()
            capsys.readouterr()
            assert generator.main(["--check"]) == 1
        finally:
            generator.LANGUAGES["python"] = language
        assert name in capsys.readouterr().out


def generated(generator: ModuleType, folder: Path) -> dict[str, bytes]:
    """Generate the Python stubs below `folder` and return them."""
    target = folder / "fresh"
    target.mkdir()
    generator.LANGUAGES["python"].generate(target)
    files: dict[str, bytes] = generator.read_generated(generator.LANGUAGES["python"], target)
    return files


def test_output_depends_on_nothing_of_the_machine(generator: ModuleType, tmp_path: Path) -> None:
    """Two runs into different folders give the same bytes, and no path of this machine stands in them."""
    folders = tmp_path / "one", tmp_path / "another-place"
    for folder in folders:
        folder.mkdir()
    first, second = (generated(generator, folder) for folder in folders)
    assert first == second
    assert len(first) == 12  # four files for each of the three .proto files
    for name, content in first.items():
        for place in (ROOT, tmp_path, Path.home()):
            assert str(place).encode() not in content, name


def test_declared_floors_are_those_of_the_generated_code() -> None:
    """pyproject.toml declares the oldest runtimes that the generated code itself accepts, no newer and no older."""
    project = tomllib.loads((STUBS / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    demanded: dict[str, set[str]] = {"grpcio": set(), "protobuf": set()}
    for path in GENERATED.glob("*_pb2_grpc.py"):
        demanded["grpcio"] |= set(re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", path.read_text(encoding="utf-8")))
    for path in GENERATED.glob("*_pb2.py"):
        demanded["protobuf"] |= set(
            re.findall(r"# Protobuf Python Version: ([\d.]+)", path.read_text(encoding="utf-8"))
        )
    declared = {re.split(r"[>=<]", line)[0]: {re.split(r">=|,", line)[1]} for line in project["dependencies"]}
    del declared["googleapis-common-protos"]  # which generated code does not use
    assert declared == demanded


@pytest.mark.slow
def test_both_ends_of_the_declared_range_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Installed with the oldest and with the newest runtime it declares, the package imports, encodes and calls."""
    command = [sys.executable, str(STUBS / "check_range.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    with capsys.disabled():
        sys.stdout.write(f"\n{result.stdout}")  # what was tried, and how many seconds it took
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^oldest: .* works \([\d.]+ s\)\nnewest: .* works \([\d.]+ s\)$", result.stdout, re.MULTILINE)


TYPED_PROGRAM = """
from collections.abc import AsyncIterator
from typing import assert_type

import grpc
import grpc.aio
from credentialbroker.v1 import credential_broker_pb2 as pb, credential_broker_pb2_grpc as services


class Broker(services.CredentialBrokerServicer):
    async def GetAuthorization(
        self,
        request: pb.GetAuthorizationRequest,
        context: grpc.aio.ServicerContext[pb.GetAuthorizationRequest, pb.GetAuthorizationResponse],
    ) -> pb.GetAuthorizationResponse:
        return pb.GetAuthorizationResponse(authorization=pb.Authorization(kind=pb.CREDENTIAL_KIND_BEARER))


async def call(channel: grpc.aio.Channel) -> str:
    stub = services.CredentialBrokerStub(channel)
    answer = await stub.GetAuthorization(pb.GetAuthorizationRequest(scope="inference"))
    assert_type(answer, pb.GetAuthorizationResponse)
    return answer.authorization.revision


def call_sync(channel: grpc.Channel) -> str:
    answer = services.CredentialBrokerStub(channel).GetAuthorization(pb.GetAuthorizationRequest(scope="inference"))
    assert_type(answer, pb.GetAuthorizationResponse)
    answer.authorization.revison
    return answer.authorization.revision
"""


@pytest.mark.slow
def test_types_reach_the_user(tmp_path: Path) -> None:
    """Strict mypy knows servicer, sync and aio stub, and finds the one misspelt field of the program."""
    program = tmp_path / "program.py"
    program.write_text(TYPED_PROGRAM, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\nmypy_path = {STUBS}\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "program.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110)
    errors = [line.partition("error: ")[2] for line in result.stdout.splitlines() if "error: " in line]
    assert len(errors) == 1, result.stdout + result.stderr
    assert errors[0].startswith('"Authorization" has no attribute "revison"')
