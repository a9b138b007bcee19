"""Go: one module with stubs and client, another with the driver."""

import subprocess
from pathlib import Path
from typing import Final

from tests.polyglot.languages import Command, Language

STATICCHECK: Final = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"
PACKAGE: Final = "stubs/go"
DRIVER: Final = "tests/polyglot/drivers/go"
BUILT: Final = ".build/polyglot/go"


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
    """Do what the README says, as far as it goes without a broker: the program of its quickstart ends with a time-out."""

    def go(*words: str, ends: int = 0) -> str:
        done = subprocess.run(
            ["go", *words], cwd=folder, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != ends:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout)
        return done.stdout

    readme = (tree / PACKAGE / "README.md").read_text(encoding="utf-8")
    program = readme.partition("```go\n")[2].partition("```")[0]
    program = program.replace(
        "credentialbroker.New()",
        'credentialbroker.New(credentialbroker.WithAddress("127.0.0.1:1"), credentialbroker.WithTimeout(1e8))',
    )
    go("mod", "init", "example.test/quickstart")
    (folder / "main.go").write_text(program, encoding="utf-8")
    go("mod", "edit", "-replace", f"credentialbroker.dev/stubs/go={tree / PACKAGE}")
    go("mod", "tidy")
    said = go("run", ".", ends=1)
    if "credential broker: DeadlineExceeded" not in said:
        raise subprocess.CalledProcessError(1, "go run .", said)
