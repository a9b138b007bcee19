"""Go: one module with stubs and client, another with the driver."""

import subprocess
from pathlib import Path
from typing import Final

from tests.polyglot.languages import Command, Language

STATICCHECK: Final = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"
PACKAGE: Final = "stubs/go"
DRIVER: Final = "tests/polyglot/drivers/go"
BUILT: Final = ".build/polyglot/go"
TRY: Final = """
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	credentialbroker "credentialbroker.dev/stubs/go"
	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func main() {
	broker, err := credentialbroker.New(credentialbroker.WithAddress("127.0.0.1:1"))
	if err != nil {
		panic(err)
	}
	defer broker.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = broker.Authorization(ctx, credentialbroker.Request{Scope: "inference", Thread: "t"})
	problem, ok := errors.AsType[*credentialbroker.Error](err)
	fmt.Println(ok && problem.Reason == pb.ErrorReason_ERROR_REASON_UNSPECIFIED, problem.Code)
}
"""


def describe(tree: Path) -> Language:
    """Describe Go, for a tree."""
    up = "../../../.."  # from the driver's folder
    return Language(
        name="go",
        programs=("go", "gofmt"),
        checks=(
            *(
                command
                for folder in (PACKAGE, DRIVER)
                for command in (
                    Command(words=("sh", "-c", 'files=$(gofmt -l .); echo "$files"; test -z "$files"'), folder=folder),
                    Command(words=("go", "vet", "./..."), folder=folder),
                    Command(words=("go", "run", STATICCHECK, "./..."), folder=folder),
                )
            ),
            Command(words=("go", "mod", "verify"), folder=PACKAGE),
            Command(words=("go", "test", "-race", "./..."), folder=PACKAGE),
        ),
        build=(
            Command(words=("go", "build", "-buildvcs=false", "-o", f"{up}/{BUILT}/driver", "."), folder=DRIVER),
            Command(
                words=(
                    "go",
                    "build",
                    "-buildvcs=false",
                    "-o",
                    f"../../{BUILT}/",
                    "./examples/...",
                    "./internal/benchmark",
                ),
                folder=PACKAGE,
            ),
        ),
        drivers={"go": Command(words=(str(tree / BUILT / "driver"),))},
        example=Command(words=("go", "run", "./examples/quickstart"), folder=PACKAGE),
        benchmark=Command(words=("go", "run", "./internal/benchmark"), folder=PACKAGE),
        prove_install=prove_install,
    )


def prove_install(tree: Path, folder: Path) -> None:
    """Use the package in a new module, as its README says."""

    def go(*words: str) -> str:
        return subprocess.run(
            ["go", *words], cwd=folder, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout

    go("mod", "init", "example.test/try")
    (folder / "main.go").write_text(TRY, encoding="utf-8")
    go("mod", "edit", "-replace", f"credentialbroker.dev/stubs/go={tree / PACKAGE}")
    go("mod", "tidy")
    printed = go("run", ".")
    if printed.split() != ["true", "DeadlineExceeded"]:
        raise subprocess.CalledProcessError(1, "go run .", printed)
