"""The emulator's commands, as processes and against a running emulator."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from click.testing import CliRunner, Result

from broker.cli.emulator import (
    ACTIONS,
    CLIENT_AUTHS,
    ERROR_STYLES,
    OPERATIONS,
    PROFILE_NAMES,
    TASK_ANSWERS,
    TOKEN_FORMATS,
    banner,
    command,
)
from broker.emulator import (
    PROFILES,
    Action,
    ClientAuth,
    EmulatorSettings,
    ErrorStyle,
    Operation,
    TaskAnswer,
    TokenFormat,
)

COMMAND = (sys.executable, "-c", "from broker.cli.emulator import command; command()")
MODULE = (sys.executable, "-m", "broker.emulator")


def start(*arguments: str, program: tuple[str, ...] = MODULE) -> tuple[subprocess.Popen[str], str]:
    """Start an emulator on a port of its own and return it with the first line it prints."""
    process = subprocess.Popen((*program, "--port", "0", *arguments), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def stop(process: subprocess.Popen[str], number: int = signal.SIGINT) -> int:
    """Interrupt a process and return its exit code."""
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running emulator."""
    process, line = start()
    yield json.loads(line)["url"]
    stop(process)


def invoke(url: str, *arguments: str) -> Result:
    """Run one of the commands against an emulator."""
    return CliRunner().invoke(command, arguments, env={"CREDENTIAL_BROKER_EMULATOR_URL": url}, prog_name="emulator")


def ok(url: str, *arguments: str) -> str:
    """Run a command that must succeed and return what it printed."""
    result = invoke(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(autouse=True)
def clean(url: str) -> None:
    """Start each test with an empty ledger, no faults and the default settings."""
    httpx.delete(f"{url}/_emulator/ledger", trust_env=False)
    httpx.delete(f"{url}/_emulator/faults", trust_env=False)


def test_choices_are_the_emulators_own() -> None:
    """The lists written out for quick help are those the emulator knows, and the defaults agree."""
    assert tuple(PROFILES) == PROFILE_NAMES
    assert tuple(TaskAnswer) == TASK_ANSWERS
    assert tuple(Action) == ACTIONS
    assert tuple(Operation) == OPERATIONS
    assert (tuple(TokenFormat), tuple(ErrorStyle), tuple(ClientAuth)) == (TOKEN_FORMATS, ERROR_STYLES, CLIENT_AUTHS)
    defaults = {option.name: option.default for option in command.params}
    settings = EmulatorSettings()
    expected = (settings.host, settings.port, settings.profile, settings.task_answer, settings.freshness_seconds)
    assert tuple(defaults[name] for name in ("host", "port", "profile", "task_answer", "freshness")) == expected


def test_help_loads_no_server_and_no_http_client() -> None:
    """Importing the command, which help and completion do, stays cheap."""
    heavy = {"starlette", "uvicorn", "httpx", "cryptography", "nacl", "rich", "broker.emulator"}
    script = f"import sys; import broker.cli.emulator; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [(), ("faults",), ("faults", "set"), ("faults", "list")]
    + [(name,) for name in ("client", "exchanges", "identity", "ledger", "settings", "subject-token", "token")],
    ids=str,
)
def test_every_command_has_help(url: str, arguments: tuple[str, ...]) -> None:
    """`--help` works everywhere, also without an emulator."""
    assert "Usage:" in ok("http://127.0.0.1:9", *arguments, "--help")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_until_interrupted(number: int, tmp_path: Path) -> None:
    """The banner names the address, the ready file agrees, and an interrupt exits 0 and closes the port."""
    ready = tmp_path / "ready.json"
    arguments = ("--profile", "codex-2026-05", "--task-answer", "taskId", "--ready-file", str(ready))
    process, line = start(*arguments, program=COMMAND)
    try:
        address = line.split()[1]
        assert json.loads(ready.read_text()) == {"url": address, "pid": process.pid}
        settings = httpx.get(f"{address}/_emulator/settings", trust_env=False).json()
        assert (settings["profile"], settings["task_answer"]) == ("codex-2026-05", "taskId")
    finally:
        assert stop(process, number) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


def test_module_entry_tells_a_waiting_process(tmp_path: Path) -> None:
    """`python -m broker.emulator` prints and writes where it listens, and exits 0 when interrupted."""
    ready = tmp_path / "ready.json"
    process, line = start("--ready-file", str(ready))
    assert json.loads(line) == json.loads(ready.read_text())
    assert json.loads(line)["pid"] == process.pid
    assert stop(process) == 0


def test_port_in_use_is_a_configuration_error() -> None:
    """A port that is taken gives exit code 78 and one line that says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run((*COMMAND, "--port", port), capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "192.0.2.1"])
def test_only_loopback_is_served(host: str) -> None:
    """Any address but a loopback literal is a usage error."""
    result = CliRunner().invoke(command, ["--host", host])
    assert (result.exit_code, "loopback" in result.output) == (2, True)


def test_nobody_there_is_said_so() -> None:
    """Without an emulator the commands exit 69 and name the address."""
    result = invoke("http://127.0.0.1:9", "ledger")
    assert (result.exit_code, "no emulator answers at http://127.0.0.1:9" in result.output) == (69, True)


def test_faults_are_set_listed_and_cleared(url: str) -> None:
    """A fault set by command fires, is shown with what is left of it, and can be cleared by its id."""
    arguments = ("--status", "429", "--retry-after", "2", "--operation", "resource", "--count", "3")
    fault_id = ok(url, "faults", "set", "status", *arguments).strip()
    answer = httpx.get(f"{url}/backend-api/x", trust_env=False)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert ok(url, "faults", "list").splitlines()[1].split() == [fault_id, "status", "resource", "1", "2"]
    assert json.loads(ok(url, "faults", "list", "--format", "json"))["faults"][0]["fired"] == 1
    assert ok(url, "faults", "clear", fault_id) == "removed 1\n"
    assert ok(url, "faults", "clear") == "removed 0\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("delay", "--seconds", "0.5"), {"action": "delay", "seconds": 0.5, "count": 1}),
        (("hang", "--method", "post", "--unlimited"), {"action": "hang", "method": "POST", "count": None}),
        (("redirect", "--location", "http://x/"), {"action": "redirect", "location": "http://x/", "status": 302}),
        (("oversize", "--size", "5"), {"action": "oversize", "size": 5}),
        (("route_reject", "--path-prefix", "/a"), {"action": "route_reject", "path_prefix": "/a"}),
        (("status", "--body", "{}"), {"action": "status", "body": "{}", "status": 503}),
        (("drop_after", "--grant", "refresh_token"), {"action": "drop_after", "grant": "refresh_token"}),
        (("agent_dead", "--agent-runtime-id", "a"), {"action": "agent_dead", "agent_runtime_id": "a"}),
        (("bearer_reject", "--fingerprint", "0" * 16), {"action": "bearer_reject", "fingerprint": "0" * 16}),
    ],
    ids=str,
)
def test_fault_options_reach_the_rule(url: str, arguments: tuple[str, ...], expected: dict[str, Any]) -> None:
    """Each option stands in the rule the emulator keeps."""
    rule = json.loads(ok(url, "faults", "set", *arguments, "--format", "json"))
    assert {name: rule[name] for name in expected} == expected


def test_a_refusal_of_the_emulator_is_shown(url: str) -> None:
    """What the emulator does not accept ends with exit 1 and its own words."""
    result = invoke(url, "faults", "set", "redirect")
    assert (result.exit_code, "redirect needs location" in result.output) == (1, True)


def test_something_else_at_the_address_is_not_mistaken(url: str) -> None:
    """A server that is no emulator is reported as such."""
    result = invoke(f"{url}/backend-api", "ledger")
    assert (result.exit_code, "there is no Authorization header" in result.output) == (1, True)


def test_ledger_is_a_table_or_json(url: str) -> None:
    """Both forms show the same requests, filtered alike; clearing empties it."""
    httpx.get(f"{url}/backend-api/one", trust_env=False)
    httpx.get(f"{url}/backend-api/two", trust_env=False)
    head, row = ok(url, "ledger", "--path", "/backend-api/two").splitlines()
    assert head.split() == ["seq", "method", "path", "credential", "verdict", "status", "faults"]
    assert row.split()[1:] == ["GET", "/backend-api/two", "none", "refused:", "authorization_missing", "401"]
    shown = json.loads(ok(url, "ledger", "--operation", "resource", "--format", "json", "--clear"))
    assert [entry["path"] for entry in shown["entries"]] == ["/backend-api/one", "/backend-api/two"]
    assert len(ok(url, "ledger").splitlines()) == 1


def test_identity_prints_a_jwt_the_key_set_verifies(url: str) -> None:
    """The printed JWT is good as it stands, and the options stand in its claims."""
    token = ok(url, "identity", "--account-id", "acc-1", "--expires-in", "60", "--pkcs8", "v1", "--fedramp").strip()
    keys = jwt.PyJWKSet.from_dict(httpx.get(f"{url}/backend-api/wham/agent-identities/jwks", trust_env=False).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["RS256"], audience="codex-app-server")
    assert (claims["account_id"], claims["exp"] - claims["iat"]) == ("acc-1", 60)
    assert (claims["chatgpt_account_is_fedramp"], claims["agent_private_key"][:8]) == (True, "MC4CAQAw")
    assert json.loads(ok(url, "identity", "--format", "json"))["agent_runtime_id"].startswith("agent_")


def test_token_prints_a_bearer_that_is_accepted(url: str) -> None:
    """The printed token is accepted with its account."""
    token = ok(url, "token", "--account-id", "acc-2").strip()
    headers = {"authorization": f"Bearer {token}", "chatgpt-account-id": "acc-2"}
    assert httpx.get(f"{url}/backend-api/x", headers=headers, trust_env=False).json()["kind"] == "bearer"
    assert json.loads(ok(url, "token", "--format", "json"))["refresh_token"].startswith("rt_")


def test_token_prints_an_auth_json(url: str) -> None:
    """The file Codex would write, with the login's refresh token in it."""
    written = json.loads(ok(url, "token", "--auth-json", "--account-id", "acc-3"))
    assert (written["auth_mode"], written["tokens"]["account_id"]) == ("chatgpt", "acc-3")
    assert written["tokens"]["refresh_token"].startswith("rt_")


def test_client_is_registered_and_listed(url: str, tmp_path: Path) -> None:
    """A client with a secret from a file gets its tokens; the list has it without the secret."""
    file = tmp_path / "secret"
    file.write_text("from-a-file\n")
    arguments = ("--client-id", "cli", "--client-secret-file", str(file), "--auth", "client_secret_basic")
    printed = ok(url, "client", *arguments, "--scope", "one", "--scope", "two", "--audience", "a")
    assert printed.splitlines()[1].split() == ["cli", "from-a-file"]
    form = {"grant_type": "client_credentials", "scope": "two"}
    answer = httpx.post(f"{url}/oauth/token", data=form, auth=("cli", "from-a-file"), trust_env=False)
    assert (answer.status_code, answer.json()["scope"]) == (200, "two")
    listed = ok(url, "client", "--list")
    assert listed.splitlines()[-1].split() == ["cli", "client_secret_basic", "one", "two", "a"]
    assert "from-a-file" not in listed
    assert json.loads(ok(url, "client", "--format", "json"))["client_id"].startswith("client_")


def test_subject_token_is_exchanged_and_the_exchange_shown(url: str) -> None:
    """The printed token is good at the token endpoint, an untrusted one is not, and both stand in the ledger."""
    seen = json.loads(ok(url, "exchanges", "--format", "json"))["last_seq"]
    grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    statuses = []
    for option in ((), ("--untrusted",)):
        token = ok(url, "subject-token", "--subject", "job-1", *option).strip()
        form = {"grant_type": grant, "assertion": token, "federation_rule_id": "rule-emulator"}
        statuses.append(httpx.post(f"{url}/oauth/token", data=form, trust_env=False).status_code)
    assert statuses == [200, 400]
    _, first, second, *_, last = ok(url, "exchanges", "--since", str(seen), "--grant", grant).splitlines()
    assert first.split()[1:] == ["jwt-bearer", "issued", "-", "job-1", "-"]
    assert second.split()[1:] == ["jwt-bearer", "subject_token_invalid", "-", "-", "-"]
    assert last.startswith("double uses: ")
    assert json.loads(ok(url, "subject-token", "--format", "json"))["federation_rule_id"] == "rule-emulator"


def test_a_family_is_shown_with_its_generations(url: str) -> None:
    """A reuse stands out in the table, and in the count below it."""
    login = json.loads(ok(url, "token", "--format", "json"))
    form = {"grant_type": "refresh_token", "client_id": "app", "refresh_token": login["refresh_token"]}
    for _ in range(2):
        httpx.post(f"{url}/oauth/token", data=form, trust_env=False)
    _, *rows, _, last = ok(url, "exchanges", "--family", login["family"]).splitlines()
    family = login["family"]
    assert [row.split()[1:] for row in rows] == [
        ["login", "issued", "-", "user-emulator", family],
        ["refresh_token", "issued", "app", "user-emulator", f"{family}.0"],
        ["refresh_token", "refresh_token_reused", "app", "user-emulator", f"{family}.0", "yes"],
    ]
    assert last == "double uses: 1, families revoked: 1"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--token-format", "opaque"), "token_format", "opaque"),
        (("--access-token-seconds", "30"), "access_token_seconds", 30.0),
        (("--refresh-token-seconds", "30"), "refresh_token_seconds", 30.0),
        (("--keep-refresh-tokens",), "rotate_refresh_tokens", False),
        (("--reuse-grace-seconds", "5"), "reuse_grace_seconds", 5.0),
        (("--no-family-revocation",), "family_revocation", False),
        (("--revocation-ends-access-tokens",), "revocation_ends_access_tokens", True),
        (("--refresh-error-style", "invalid_grant"), "refresh_error_style", "invalid_grant"),
        (("--federation-rule-id", "other"), "federation_rule_id", "other"),
        (("--subject-audience", "other"), "subject_audience", "other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_each_switch_of_the_issuer_is_an_option(url: str, arguments: tuple[str, ...], name: str, value: Any) -> None:
    """The option changes its setting and no other."""
    before = json.loads(ok(url, "settings"))
    changed = json.loads(ok(url, "settings", *arguments))
    httpx.post(f"{url}/_emulator/settings", json=before, trust_env=False)
    assert changed == {**before, name: value}


def test_settings_change_what_is_given(url: str) -> None:
    """Only the named settings change."""
    changed = json.loads(ok(url, "settings", "--profile", "codex-2026-04", "--freshness", "10"))
    assert (changed["profile"], changed["freshness_seconds"]) == ("codex-2026-04", 10.0)
    back = json.loads(ok(url, "settings", "--profile", "codex-2026-08", "--freshness", "300"))
    defaults = {field.name: getattr(EmulatorSettings(), field.name) for field in fields(EmulatorSettings)}
    assert back == {name: value for name, value in defaults.items() if name not in ("host", "port")}


def test_banner_names_every_variable_codex_needs() -> None:
    """The next steps point at this emulator's address and no other."""
    text = banner("http://127.0.0.1:1", "codex-2026-08")
    needed = (
        "CODEX_ACCESS_TOKEN=",
        "CODEX_AGENT_IDENTITY_JWKS_BASE_URL=http://127.0.0.1:1/backend-api",
        "CODEX_AGENT_IDENTITY_AUTHAPI_BASE_URL=http://127.0.0.1:1/api/accounts",
        "chatgpt_base_url=",
    )
    assert [name for name in needed if name not in text] == []
    assert "8089" not in text
