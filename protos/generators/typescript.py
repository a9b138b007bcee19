# ruff: noqa: INP001 - beside the .proto files, not a package
"""TypeScript: messages and grpc-js services by ts-proto."""

import json
import os
from pathlib import Path
from typing import Final

from generators.tools import ROOT, Language, pinned, proto_files, protoc, run_tool

# The plugin and everything below it, exactly: another printer or writer could change what is written.
VERSIONS: Final = {
    "ts-proto": "2.18.0",
    "ts-proto-descriptors": "2.1.0",
    "@bufbuild/protobuf": "2.17.0",
    "case-anything": "2.1.13",
    "ts-poet": "6.12.0",
    "dprint-node": "1.0.8",
    "detect-libc": "1.0.3",
}
MANIFEST: Final = json.dumps({"private": True, "dependencies": VERSIONS}, indent=2)

OPTIONS: Final = (
    "env=node",
    "esModuleInterop=true",
    "importSuffix=.js",  # ES modules
    "outputServices=grpc-js",
    "outputJsonMethods=false",  # messages with secrets get no ready-made way into a log
    "exportCommonSymbols=false",
    "forceLong=bigint",  # 64 bits are kept whole
    "oneof=unions-value",
    "useOptionals=messages",
    "removeEnumPrefix=true",
    "stringEnums=true",
    "enumsAsLiterals=true",
)


def plugin() -> Path:
    """Return protoc-gen-ts_proto, installed on first use."""

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(MANIFEST, encoding="utf-8")
        run_tool(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"], cwd=folder)

    suffix = ".cmd" if os.name == "nt" else ""
    folder = pinned("generate-typescript", MANIFEST.encode(), install)
    return folder / "node_modules" / ".bin" / f"protoc-gen-ts_proto{suffix}"


def generate(target: Path) -> None:
    """Write messages and services into `target`."""
    generated = target / "src" / "generated"
    generated.mkdir(parents=True)
    run_tool(
        [
            *protoc(),
            f"--plugin=protoc-gen-ts_proto={plugin()}",
            f"--ts_proto_out={generated}",
            f"--ts_proto_opt={','.join(OPTIONS)}",
            *proto_files(),
        ]
    )


LANGUAGE: Final = Language(
    folder=ROOT / "stubs" / "typescript",
    patterns=("src/generated/**/*.ts",),
    generate=generate,
)
