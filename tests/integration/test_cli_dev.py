"""`credential-broker dev` as a newcomer meets it: what it prints works as printed, and nothing is left of it."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from broker.cli import root
from broker.cli.dev import TRIALS
from broker.cli.snippets import ADMIN_ADDRESS, CALLER_ADDRESS, EMULATOR_URL, Place, Snippet, snippets
from tests.support.command_line import PROGRAM, ROOT, WAIT_SECONDS, environment, run, start

FREE_PORTS = ("--port", "0", "--admin-port", "0", "--http-port", "0", "--emulator-port", "0")
LAST_LINE = "Ctrl-C ends it"
HEADER = re.compile(r"^authorization: AgentAssertion [A-Za-z0-9_-]+$", re.MULTILINE)


@dataclass(frozen=True)
class Dev:
    """A running `dev`: all that it printed, and where it listens."""

    printed: str
    callers: str
    admin: str
    emulator: str

    @classmethod
    def of(cls, printed: str) -> "Dev":
        """Read the addresses from the banner."""
        found = {}
        for name in ("callers", "operators", "backend"):
            line = re.search(rf"^{name} +(\S+?),?( |$)", printed, re.MULTILINE)
            assert line, printed
            found[name] = line[1]
        return cls(printed, found["callers"], found["operators"], found["backend"])

    @property
    def environment(self) -> dict[str, str]:
        """What makes commands and examples reach it."""
        return {
            "CREDENTIAL_BROKER_ADDRESS": self.callers,
            "CREDENTIAL_BROKER_ADMIN_ADDRESS": self.admin,
            "CREDENTIAL_BROKER_EMULATOR_URL": self.emulator,
        }

    def shell(self, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run lines in a shell where the program is found and this broker is meant, as they are."""
        path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["/bin/sh", "-euc", text],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
            env=environment(PATH=path, **self.environment),
            cwd=folder,
        )


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """A running `dev` on free ports."""
    running = start("dev", *FREE_PORTS)
    try:
        yield Dev.of(running.read_until(LAST_LINE))
    finally:
        running.stop()


def printed_snippets(printed: str) -> list[Snippet]:
    """Take the snippets out of what was printed."""
    steps = printed.partition("Next, in another terminal:\n")[2].partition(f"\n{LAST_LINE}")[0]
    blocks = re.split(r"^# (.+)$", steps, flags=re.MULTILINE)[1:]
    return [Snippet(title, text.strip("\n")) for title, text in zip(blocks[::2], blocks[1::2], strict=True)]


EXPECTED = {
    "one authorization": HEADER,
    "attached to a call, which the backend verifies": re.compile(r'"verdict":"verified"'),
    "why it is of this kind": re.compile(r"^decision +USE_ASSERTION$", re.MULTILINE),
    "what the operator sees": re.compile(r"^broker .*SERVING(.|\n)*ssh-ed25519(.|\n)*ACTIVE", re.MULTILINE),
    "kept current; without --count, until Ctrl-C": re.compile(r'"authorization": .*"revision": "'),
    "another key, while calls go on": re.compile(r"^generation +[2-9]$", re.MULTILINE),
    "what the backend saw": re.compile(r"agent_assertion +verified"),
    "with buf, or any other gRPC client": re.compile(r'"value": ?"AgentAssertion '),
    "from Python": re.compile(r"^AGENT_ASSERTION 200$", re.MULTILINE),
}
ELSEWHERE = ("from Go", "from TypeScript", "from Java", "from Rust")
"""Need another language's programs, and minutes: the part `examples` runs the same programs."""


def test_dev_shows_a_call_of_each_kind_accepted(dev: Dev) -> None:
    """The table names scope, kind, reason and the backend's own verdict on each."""
    table = dev.printed.partition("authorization for")[2].splitlines()[1 : len(TRIALS) + 1]
    assert [re.split(r"  +", line)[:4] for line in table] == [
        ["inference, thread t1", "AGENT_ASSERTION", "TASK_ASSERTION", "verified (200)"],
        ["control_plane.models", "AGENT_ASSERTION", "TASK_ASSERTION", "verified (200)"],
        ["bootstrap", "BEARER", "SCOPE_IS_BEARER_ONLY", "verified (200)"],
    ]
    assert dev.printed.startswith("DEV MODE")


@pytest.mark.parametrize("title", EXPECTED)
def test_every_printed_snippet_works_exactly_as_printed(dev: Dev, title: str) -> None:
    """What is printed is pasted into a shell, character by character, and does what its title says."""
    (snippet,) = [snippet for snippet in printed_snippets(dev.printed) if snippet.title == title]
    done = subprocess.run(
        ["/bin/sh", "-euc", snippet.text],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[title].search(done.stdout), done.stdout


def test_no_printed_snippet_is_left_untried(dev: Dev) -> None:
    """The snippets printed are those of the module, and each is run above."""
    assert [snippet.title for snippet in printed_snippets(dev.printed)] == [*EXPECTED, *ELSEWHERE]


@pytest.mark.parametrize("name", ["go", "typescript", "java", "rust"])
def test_the_quickstart_of_each_language_is_the_one_that_is_run(dev: Dev, name: str) -> None:
    """What is printed goes to a folder that is there, and names this broker and its backend."""
    (text,) = [one.text for one in printed_snippets(dev.printed) if one.text.startswith(f"(cd stubs/{name} ")]
    assert (ROOT / "stubs" / name / "README.md").is_file()
    assert f"CREDENTIAL_BROKER_ADDRESS={dev.callers} " in text
    assert f"{dev.emulator}/backend-api/codex/models" in text


def test_without_the_sources_it_says_where_the_quickstarts_are() -> None:
    """An installed broker has no such folders, and prints no command that could not work."""
    place = Place(caller_address=CALLER_ADDRESS, admin_address=ADMIN_ADDRESS, emulator_url=EMULATOR_URL)
    last = snippets(place)[-1]
    assert last.title == "from Python, Go, TypeScript, Java or Rust"
    assert last.text.startswith("# stubs/README.md")


def test_snippets_of_the_default_place_name_no_address() -> None:
    """On the usual ports what is printed is as short as the documentation's."""
    place = Place(caller_address=CALLER_ADDRESS, admin_address=ADMIN_ADDRESS, emulator_url=EMULATOR_URL)
    texts = {snippet.title: snippet.text for snippet in snippets(place)}
    assert texts["one authorization"] == "credential-broker get --scope inference --thread t1"
    assert not any("--address" in text or "--admin-address" in text or "--url" in text for text in texts.values())


# Examples that name what a newcomer does not have: a login, a key, a configuration, a task's id, a shell to change; and
# those that only Ctrl-C ends.
NOT_RUN = re.compile(
    r"auth\.json|agent\.key|agents-prod|broker\.toml|TASK_ID|completion|credential-broker (dev|serve|emulator$)|"
    r"--bearer-source|CREDENTIAL_BROKER_BACKENDS|tokens\.json|status --watch|credential-broker watch (?!.*--count)"
)


def examples(command: click.Command, words: str = "") -> Iterator[tuple[str, str]]:
    """Every example of every command of ours, with the command it belongs to."""
    if isinstance(command, click.Group):
        for name in command.commands:
            if name != "emulator":
                yield from examples(command.commands[name], f"{words} {name}".strip())
        return
    for line in (command.epilog or "").splitlines()[2:]:
        if not line.lstrip().startswith("#"):
            yield words, line.strip()


@pytest.mark.parametrize(
    ("words", "line"),
    [pytest.param(words, line, id=line) for words, line in examples(root) if not NOT_RUN.search(line)],
)
def test_examples_in_the_help_work_beside_dev(dev: Dev, tmp_path: Path, words: str, line: str) -> None:
    """Each example is run in a shell as it stands in the help; only the emulator's port is another here."""
    prepared = {
        # What the example needs to be there, made as an operator would make it.
        "identity delete": "credential-broker emulator token | credential-broker identity create agents --token-file -;",
        "identity enable": "credential-broker identity disable dev;",
        "identity reauthenticate": "credential-broker emulator identity"
        " | credential-broker identity import imported --jwt-file -;",
    }.get(words, "")
    undo = {
        "identity disable": "; credential-broker identity enable dev",
        "identity update": "; credential-broker identity update dev --assertions --no-expire-time",
        "end-task": "; credential-broker register-task --thread t1",
        "identity create": "; credential-broker identity delete --yes agents || credential-broker identity delete --yes"
        " plain",
        "identity import": "; credential-broker identity delete --yes imported",
        # Nobody is there to be asked.
        "identity delete": " --yes",
        "identity reauthenticate": "; credential-broker identity delete --yes imported",
    }.get(words, "")
    text = line.replace(EMULATOR_URL, dev.emulator)
    done = dev.shell(f"{prepared} {text}{undo}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_example_that_explains_a_refusal_shows_it(dev: Dev, tmp_path: Path) -> None:
    """A refusal is explained with its reason, exit code 0."""
    done = dev.shell(
        "credential-broker explain --scope control_plane.models --target-url https://example.com/", tmp_path
    )
    assert "TARGET_NOT_ALLOWED" in done.stdout


def test_errors_of_a_real_broker_are_told_with_what_to_do(dev: Dev) -> None:
    """Over a real connection the reason, the next step and the request id arrive."""
    done = run("get", "--scope", "inferense", "--thread", "t", "--format", "json", **dev.environment)
    assert done.returncode == 1
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "SCOPE_UNKNOWN")
    assert error["next_step"] == "see what may be asked for: credential-broker scopes"
    assert error["request_id"]


def test_once_ends_by_itself_after_the_accepted_call(tmp_path: Path) -> None:
    """`dev --once` exits 0, prints the verdicts, and leaves no file."""
    done = run("dev", "--once", *FREE_PORTS, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified (200)") == len(TRIALS)
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("profile", ["codex-2026-04", "codex-2026-04-provider", "codex-2026-05", "codex-2026-08"])
def test_every_generation_of_the_protocol_is_accepted(profile: str) -> None:
    """Broker and emulator agree on each profile that can be chosen."""
    done = run("dev", "--once", *FREE_PORTS, "--profile", profile)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_it_with_0_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """No file, no process, no listener is left, and nothing was logged as an error."""
    running = start("dev", *FREE_PORTS, more={"TMPDIR": str(tmp_path)})
    dev = Dev.of(running.read_until(LAST_LINE))
    (state,) = tmp_path.iterdir()
    assert state.stat().st_mode & 0o077 == 0
    code, _, stderr = running.stop(number)
    assert (code, stderr) == (0, "ended\n")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(running.process.pid, 0)
    for address in (dev.callers, dev.admin, dev.emulator.removeprefix("http://")):
        host, _, port = address.rpartition(":")
        with closing(socket.socket()) as probe:
            assert probe.connect_ex((host, int(port))) != 0


def test_ctrl_c_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    """Interrupted as soon as its folder stands, before anything was printed, it cleans up all the same."""
    running = start("dev", *FREE_PORTS, more={"TMPDIR": str(tmp_path)})
    watch = threading.Event()
    while not list(tmp_path.iterdir()) and running.process.poll() is None:
        watch.wait(0.002)  # polled, since a folder that appears wakes nobody
    code, _, _ = running.stop()
    assert code in (0, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--port", "--admin-port", "--http-port", "--emulator-port"])
def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path, option: str) -> None:
    """Exit code 78, which port, and which option; nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = dict(zip(FREE_PORTS[::2], FREE_PORTS[1::2], strict=True)) | {option: port}
        done = run("dev", "--once", *(word for pair in ports.items() for word in pair), TMPDIR=str(tmp_path))
    assert done.returncode == 78
    assert done.stdout == ""
    assert f"port {port} for" in done.stderr
    assert f"add {option} 0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_listeners_on_one_port_are_refused() -> None:
    """The same port twice is found before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    done = run("dev", "--once", "--port", port, "--admin-port", port, "--http-port", "0", "--emulator-port", "0")
    assert done.returncode == 78
    assert f"port {port} for operators is in use" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "10.0.0.1", "example.com", "127.1", ""])
def test_it_listens_on_loopback_literals_only(host: str) -> None:
    """Anything else is refused with why; a name could mean anything."""
    done = run("dev", "--once", "--host", host, *FREE_PORTS)
    assert done.returncode == 2
    assert "not a loopback address" in done.stderr
    assert done.stdout == ""


def test_settings_of_the_environment_cannot_lead_it_to_real_things(tmp_path: Path) -> None:
    """Neither a real store nor a real backend named in the environment is touched."""
    store = tmp_path / "real.db"
    done = run(
        *("dev", "--once", *FREE_PORTS),
        CREDENTIAL_BROKER_STORE__URL=f"sqlite:///{store}",
        CREDENTIAL_BROKER_BACKENDS__DEFAULT__BASE_URL="https://real.example/backend-api",
        **dict.fromkeys(("HTTP_PROXY", "ALL_PROXY", "http_proxy", "grpc_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy", "no_grpc_proxy"), ""),
    )
    assert done.returncode == 0, done.stderr
    assert not store.exists()


def test_it_runs_on_ipv6_as_well() -> None:
    """`--host ::1` is a loopback literal too."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    done = run("dev", "--once", "--host", "::1", *FREE_PORTS)
    assert done.returncode == 0, done.stderr
