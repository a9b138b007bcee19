# ruff: noqa: INP001 - beside the .proto files, not a package
"""Go: messages by protoc-gen-go, services by protoc-gen-go-grpc."""

from pathlib import Path
from typing import Final

from generators.tools import ROOT, Language, pinned, proto_files, protoc, run_tool

PLUGINS: Final = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
)
MODULE: Final = "credentialbroker.dev/stubs/go"


def go_tools() -> Path:
    """
    Install the plugins, which the checksums of Go's own database guard, with the Go that is on PATH.

    Returns:
        The folder of their programs.

    Raises:
        SystemExit: Go is not there, or they cannot be installed.
    """

    def install(folder: Path) -> None:
        for plugin in PLUGINS:
            # Away from any module, whose go.mod would have a say in the versions.
            run_tool(["go", "install", plugin], cwd=folder, env={"GOBIN": str(folder), "GOWORK": "off", "GOFLAGS": ""})

    return pinned("generate-go", "\n".join(PLUGINS).encode("ascii"), install)


def generate(target: Path) -> None:
    """Write messages and services into `target`."""
    programs = go_tools()
    run_tool(
        [
            *protoc(),
            f"--plugin=protoc-gen-go={programs / 'protoc-gen-go'}",
            f"--go_out={target}",
            f"--go_opt=module={MODULE}",
            f"--plugin=protoc-gen-go-grpc={programs / 'protoc-gen-go-grpc'}",
            f"--go-grpc_out={target}",
            f"--go-grpc_opt=module={MODULE}",
            *proto_files(),
        ]
    )


LANGUAGE: Final = Language(folder=ROOT / "stubs" / "go", patterns=("credentialbroker/v1/*.pb.go",), generate=generate)
