# ruff: noqa: INP001 - beside the .proto files, not a package
"""Python: messages and services by grpcio-tools, their types by mypy-protobuf."""

from pathlib import Path
from typing import Final

from generators.tools import ROOT, Language, proto_files, protoc, python_tools, run_tool


def generate(target: Path) -> None:
    """Write messages, services and their types into `target`."""
    programs = python_tools()
    run_tool(
        [
            *protoc(),
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
            f"--mypy_out=quiet:{target}",
            f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
            f"--mypy_grpc_out=quiet:{target}",
            *proto_files(),
        ]
    )


LANGUAGE: Final = Language(
    folder=ROOT / "stubs" / "python",
    patterns=("**/*_pb2.py", "**/*_pb2_grpc.py", "**/*_pb2.pyi", "**/*_pb2_grpc.pyi"),
    generate=generate,
)
