# ruff: noqa: INP001 - beside the .proto files, not a package
"""Java: messages by protoc, services by protoc-gen-grpc-java, both from Maven Central."""

import hashlib
import platform
import sys
import tempfile
from pathlib import Path
from typing import Final

from generators.tools import ROOT, Language, pinned, proto_files, protoc, run_tool

PROTOC: Final = "com.google.protobuf:protoc:3.25.9"
"""What it writes runs with protobuf-java 3.25, which grpc-java brings, and with every 4.x."""
PLUGIN: Final = "io.grpc:protoc-gen-grpc-java:1.83.0"
COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
CHECKSUMS: Final = {
    "linux-x86_64": {
        PROTOC: "277c8548ead748ac3e600d3b860f114d36a1311dff29568cd95115ad65f59e2f",
        PLUGIN: "a19ae74aa4cb03e1d01269562ac6165ec32a848a7bebd032aea9a0b9569718ba",
    },
    "linux-aarch_64": {
        PROTOC: "af54632f4cae96aea2f574fd5e731db6f723507563ab870983f4b66b74507b1c",
        PLUGIN: "3709e4e14a60f1564255b47f6e924372dff023a1866932022be4a1ef5d595443",
    },
    "osx-x86_64": {
        PROTOC: "6b50ae43955d195e5bdd15e03ae93866d3b578d4b44f4867b65300c4a041a37c",
        PLUGIN: "c3edeaf83b6f7d5cecaa6f4f7de32ae96c949f48c9a2ba743678271fa1d08772",
    },
    "osx-aarch_64": {
        PROTOC: "6db6172ef2ab95972707537c9deb26b024594654232f266d0952ec8e922b02b0",
        PLUGIN: "c3edeaf83b6f7d5cecaa6f4f7de32ae96c949f48c9a2ba743678271fa1d08772",
    },
    "windows-x86_64": {
        PROTOC: "614f1fa619853cd8aa05817bd6b97eb03dd96d4bdbb79561fa8ae005e44d3973",
        PLUGIN: "30447672bf2468c3b7cd54cbba362be233d7f2371b06a6c77fdfc5c5bd026c96",
    },
}
"""SHA-256 of each program, for each platform as Maven Central names it."""


def java_tools() -> tuple[Path, Path]:
    """
    Fetch protoc and its plugin for this platform with the Maven that is on PATH, and hold them to their checksums.

    Returns:
        The programs, protoc and the plugin.

    Raises:
        SystemExit: Maven is not there, the programs cannot be had, or they are not those that were pinned.
    """
    system = {"linux": "linux", "darwin": "osx", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64", "arm64": "aarch_64", "aarch64": "aarch_64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    classifier = f"{system}-{machine}"
    checksums = CHECKSUMS.get(classifier)
    if checksums is None:
        sys.exit(f"generate: no protoc for Java is pinned for {classifier}")

    def program(folder: Path, artifact: str) -> Path:
        _, name, version = artifact.split(":")
        return folder / f"{name}-{version}-{classifier}.exe"

    def install(folder: Path) -> None:
        for artifact, checksum in checksums.items():
            run_tool(
                ["mvn", "-q", "-B", COPY, f"-Dartifact={artifact}:exe:{classifier}", f"-DoutputDirectory={folder}"],
                cwd=folder,
            )
            path = program(folder, artifact)
            if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
                sys.exit(f"generate: {path.name} is not the program that was pinned")
            path.chmod(0o755)

    pins = "\n".join(f"{artifact}:{classifier} {checksum}" for artifact, checksum in sorted(checksums.items()))
    folder = pinned("generate-java", pins.encode("ascii"), install)
    return program(folder, PROTOC), program(folder, PLUGIN)


def generate(target: Path) -> None:
    """Write messages and services into `target`."""
    java_protoc, plugin = java_tools()
    folder = target / "credentialbroker-stubs" / "src" / "generated" / "java"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="descriptors-") as scratch:
        # The .proto files that google ships are in the other protoc, and not in the one of Maven Central.
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
        run_tool(
            [
                java_protoc,
                f"--descriptor_set_in={descriptors}",
                f"--java_out={folder}",
                f"--plugin=protoc-gen-grpc-java={plugin}",
                f"--grpc-java_out=@generated=omit:{folder}",
                *proto_files(),
            ]
        )


LANGUAGE: Final = Language(
    folder=ROOT / "stubs" / "java",
    patterns=("credentialbroker-stubs/src/generated/java/**/*.java",),
    generate=generate,
)
