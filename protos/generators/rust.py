# ruff: noqa: INP001 - beside the .proto files, not a package
"""Rust: messages by prost and services by tonic, through the small program in rust/."""

import tempfile
from pathlib import Path
from typing import Final

from generators.tools import BUILD, ROOT, Language, proto_files, protoc, run_tool

GENERATOR: Final = Path(__file__).resolve().parent / "rust"


def generate(target: Path) -> None:
    """Write messages and services into `target`."""
    folder = target / "src" / "generated"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="descriptors-") as scratch:
        descriptors = Path(scratch) / "descriptors.binpb"
        run_tool(
            [
                *protoc(),
                f"--descriptor_set_out={descriptors}",
                "--include_imports",
                "--include_source_info",
                *proto_files(),
            ]
        )
        manifest = GENERATOR / "Cargo.toml"
        run_tool(
            ["cargo", "run", "--quiet", "--manifest-path", manifest, "--", descriptors, folder],
            env={"CARGO_TARGET_DIR": str(BUILD / "rust")},
        )


LANGUAGE: Final = Language(folder=ROOT / "stubs" / "rust", patterns=("src/generated/*.rs",), generate=generate)
