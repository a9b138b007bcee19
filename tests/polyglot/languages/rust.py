"""Rust: one crate with stubs and client, another with the driver; every crate compiles into one target folder."""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT, Command, Language

PACKAGE: Final = "stubs/rust"
DRIVER: Final = "tests/polyglot/drivers/rust"
GENERATOR: Final = "protos/generators/rust"
BUILT: Final = ".build/polyglot/rust"
# Shared by all trees, so that dependencies compile once. Cargo tells crates of one name apart by their path; only the
# program that comes of them is overwritten, which is why it is copied into its tree.
TARGET: Final = ROOT / ".build" / "rust"
VARIABLES: Final = {
    "CARGO_TARGET_DIR": str(TARGET),
    "CARGO_BUILD_JOBS": "2",
    "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",  # also in projects that use the package: one build of dependencies
}
FEATURES: Final = ("--features", "tower,server")
TRY: Final = """
use std::time::Duration;

use credentialbroker::v1::ErrorReason;
use credentialbroker::{Client, Request};

#[tokio::main]
async fn main() {
    let broker = Client::builder().address("127.0.0.1:1").build().unwrap();
    let request = Request::new("inference", "t").timeout(Duration::from_millis(50));
    let error = broker.authorization(request).await.unwrap_err();
    println!("{} {:?}", error.reason() == ErrorReason::Unspecified, error.broker().unwrap().code);
}
"""


def describe(tree: Path) -> Language:
    """Describe Rust, for a tree."""

    def cargo(*words: str, folder: str = PACKAGE, **variables: str) -> Command:
        return Command(words=("cargo", *words), folder=folder, variables={**VARIABLES, **variables})

    strict = ("--", "-D", "warnings")
    # The benchmark is built when it is run: optimized, it compiles all dependencies once more, which takes minutes.
    extras = (cargo("build", "--quiet", "--example", "quickstart", *FEATURES),)
    return Language(
        name="rust",
        programs=("cargo",),
        checks=(
            *(cargo("fmt", "--check", folder=folder) for folder in (PACKAGE, DRIVER, GENERATOR)),
            cargo("clippy", "--quiet", "--all-targets", *FEATURES, *strict),
            cargo("clippy", "--quiet", "--no-default-features", *strict),
            *(cargo("clippy", "--quiet", "--all-targets", *strict, folder=folder) for folder in (DRIVER, GENERATOR)),
            cargo("test", "--quiet", *FEATURES),
            cargo("doc", "--quiet", "--no-deps", *FEATURES, RUSTDOCFLAGS="-D warnings"),
        ),
        build=(
            cargo("build", "--quiet", folder=DRIVER),
            Command(words=("mkdir", "-p", BUILT)),
            Command(words=("cp", str(TARGET / "debug" / "credentialbroker-driver"), f"{BUILT}/driver")),
            *(extras if tree == ROOT else ()),  # of a copy only the driver is run
        ),
        drivers={"rust": Command(words=(str(tree / BUILT / "driver"),))},
        example=cargo("run", "--quiet", "--example", "quickstart", *FEATURES, "--"),
        benchmark=cargo("bench", "--quiet", "--bench", "authorization"),
        prove_install=prove_install,
    )


def prove_install(tree: Path, folder: Path) -> None:
    """Use the package in a new project, as its README says."""

    def cargo(*words: str) -> str:
        return subprocess.run(
            ["cargo", *words], cwd=folder, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **VARIABLES},
        ).stdout  # fmt: skip

    cargo("init", "--quiet", "--name", "try_credentialbroker")
    cargo("add", "--quiet", "--path", str(tree / PACKAGE))
    cargo("add", "--quiet", "tokio@=1.54.1", "--features", "macros,rt-multi-thread")
    (folder / "src" / "main.rs").write_text(TRY, encoding="utf-8")
    printed = cargo("run", "--quiet")
    if printed.split() != ["true", "DeadlineExceeded"]:
        raise subprocess.CalledProcessError(1, "cargo run", printed)
