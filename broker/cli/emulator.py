"""`credential-broker emulator`: run the loopback backend, and turn its switches from another terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from broker.emulator.server import EmulatorServer

# Written out rather than imported: `--help` and completion must not load a web server. A test compares each with
# the emulator's own list.
PROFILE_NAMES = ("codex-2026-04", "codex-2026-04-provider", "codex-2026-05", "codex-2026-08")
TASK_ANSWERS = ("task_id", "taskId", "encrypted_task_id", "encryptedTaskId")
OPERATIONS = ("agent_register", "task_register", "biscuit", "jwks", "oauth", "oauth_revoke", "resource", "unknown")
ACTIONS = (
    "status",
    "delay",
    "hang",
    "truncate",
    "garbage",
    "redirect",
    "oversize",
    "drop_after",
    "stale_task",
    "route_reject",
    "agent_dead",
    "bearer_reject",
    "clock_offset",
)
TOKEN_FORMATS = ("jwt", "opaque")
ERROR_STYLES = ("nested_code", "error_string", "top_level_code", "invalid_grant")
CLIENT_AUTHS = ("any", "client_secret_basic", "client_secret_post")
_FAULT_MATCHES = ("method", "operation", "path_prefix", "grant", "agent_runtime_id", "fingerprint")
_EXIT_CONFIGURATION = 78
_EXIT_UNREACHABLE = 69
_TIMEOUT_SECONDS = 10.0
_POSITIVE = click.FloatRange(min=0, min_open=True)

_url = click.option(
    "--url",
    default="http://127.0.0.1:8089",
    show_default=True,
    envvar="CREDENTIAL_BROKER_EMULATOR_URL",
    show_envvar=True,
    help="Where the emulator listens.",
)
_format = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table to read, or the emulator's own JSON.",
)


@click.group("emulator", invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address; anything else is refused.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8089, show_default=True, help="0 lets the system choose one."
)
@click.option(
    "--profile",
    type=click.Choice(PROFILE_NAMES),
    default="codex-2026-08",
    show_default=True,
    help="Which generation of the protocol to demand.",
)
@click.option(
    "--task-answer",
    type=click.Choice(TASK_ANSWERS),
    default="encrypted_task_id",
    show_default=True,
    help="The field a task registration answers with; the encrypted ones are sealed to the agent's key.",
)
@click.option(
    "--freshness",
    type=_POSITIVE,
    default=300.0,
    show_default=True,
    help="Seconds a signature's timestamp may be away from the emulator's clock.",
)
@click.option(
    "--clock-offset", type=float, default=0.0, show_default=True, help="Seconds the emulator's clock is ahead."
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write {url, pid} as JSON here once requests are accepted; for scripts.",
)
@click.pass_context
def command(
    context: click.Context,
    *,
    host: str,
    port: int,
    profile: str,
    task_answer: str,
    freshness: float,
    clock_offset: float,
    ready_file: Path | None,
) -> None:
    """Run a backend on loopback that verifies every credential and says what it saw.

    It registers agents and tasks, issues Agent Identity JWTs and access tokens, and answers every path under
    /backend-api/ with what it verified, or with 401 and the exact reason. Nothing is kept: Ctrl-C ends it, and its
    agents with it.

    \b
    In a second terminal:
      credential-broker emulator ledger                 what it received, without any secret
      credential-broker emulator identity               an Agent Identity JWT
      credential-broker emulator token                  an access token
      credential-broker emulator exchanges              what its token endpoint decided
      credential-broker emulator faults set status --operation task_register --count 2
    """  # noqa: D301  `\b` is the character itself: click keeps the lines below it
    if context.invoked_subcommand is not None:
        return
    # Here, not above: they load a web server, which `--help` and the other commands do without.
    import asyncio  # noqa: PLC0415

    from broker.emulator.profiles import TaskAnswer  # noqa: PLC0415
    from broker.emulator.server import run, write_ready_file  # noqa: PLC0415
    from broker.emulator.settings import EmulatorSettings  # noqa: PLC0415

    try:
        settings = EmulatorSettings(
            host=host,
            port=port,
            profile=profile,
            task_answer=TaskAnswer(task_answer),
            freshness_seconds=freshness,
            clock_offset_seconds=clock_offset,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def on_ready(emulator: EmulatorServer) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, emulator)
        click.echo(banner(emulator.url, profile))
        # A script that reads the banner through a pipe must not wait for a buffer to fill.
        sys.stdout.flush()

    try:
        asyncio.run(run(settings, on_ready))
    except OSError as error:
        click.echo(f"cannot listen on {host}:{port}: {error.strerror}; try --port 0", err=True)
        context.exit(_EXIT_CONFIGURATION)


def banner(url: str, profile: str) -> str:
    """What is printed once the emulator accepts requests: its addresses, and what to paste next."""
    return f"""\
emulator  {url}   profile {profile}, Ctrl-C ends it

  backend   {url}/backend-api
  authapi   {url}/api/accounts
  controls  {url}/_emulator/

Point a real Codex CLI at it:

  export CODEX_ACCESS_TOKEN="$(credential-broker emulator identity --url {url})"
  export CODEX_AGENT_IDENTITY_JWKS_BASE_URL={url}/backend-api
  export CODEX_AGENT_IDENTITY_AUTHAPI_BASE_URL={url}/api/accounts
  codex exec --skip-git-repo-check -c chatgpt_base_url='"{url}/backend-api"' \\
    -c openai_base_url='"{url}/backend-api/codex"' 'say hello'

See what it verified:

  credential-broker emulator ledger --url {url}
"""


@command.command("ledger")
@_url
@_format
@click.option("--since", type=click.IntRange(min=0), default=0, help="Only entries after this sequence number.")
@click.option("--path", help="Only paths that begin with this.")
@click.option("--kind", help="Only this kind of credential, for instance agent_assertion or bearer.")
@click.option("--operation", type=click.Choice(OPERATIONS), help="Only this operation.")
@click.option("--clear", is_flag=True, help="Forget all entries after showing them.")
def ledger(
    *, url: str, form: str, since: int, path: str | None, kind: str | None, operation: str | None, clear: bool
) -> None:
    """Show what the emulator received, without any secret.

    Each line says with which kind of credential a request came, and the verdict on it with its exact reason.
    """
    selection = {"since": str(since), "path": path, "kind": kind, "operation": operation}
    shown = _call("GET", url, "ledger", query={name: value for name, value in selection.items() if value is not None})
    if clear:
        _call("DELETE", url, "ledger")
    if form == "json":
        _echo_json(shown)
        return
    rows = [
        (
            str(entry["seq"]),
            entry["method"],
            entry["path"],
            entry["credential_kind"],
            entry["verdict"] if entry["refusal"] is None else f"{entry['verdict']}: {entry['refusal']}",
            "-" if entry["status"] is None else str(entry["status"]),
            ", ".join(entry["faults"]),
        )
        for entry in shown["entries"]
    ]
    _echo_table(("seq", "method", "path", "credential", "verdict", "status", "faults"), rows)


@command.command("identity")
@_url
@_format
@click.option("--account-id", help="The account the identity belongs to.")
@click.option("--expires-in", type=float, help="Seconds until the JWT expires; negative for one that has.")
@click.option("--pkcs8", type=click.Choice(["v1", "v2"]), help="The form of the private key inside.")
@click.option("--fedramp", is_flag=True, help="Make it a FedRAMP account.")
def identity(
    *, url: str, form: str, account_id: str | None, expires_in: float | None, pkcs8: str | None, fedramp: bool
) -> None:
    """Issue an Agent Identity JWT and print it.

    It registers an agent and carries its private key, good for this emulator only.
    """
    wanted = {"account_id": account_id, "expires_in": expires_in, "pkcs8": pkcs8, "fedramp": fedramp or None}
    issued = _call("POST", url, "identities", body=wanted)
    if form == "json":
        _echo_json(issued)
    else:
        click.echo(issued["jwt"])


@command.command("token")
@_url
@_format
@click.option("--account-id", help="The account the token proves.")
@click.option("--expires-in", type=float, help="Seconds until it expires; negative for one that has.")
@click.option("--refresh-expires-in", type=float, help="The same for the refresh token.")
@click.option("--client-id", help="The only client that may refresh it; any may unless given.")
@click.option("--fedramp", is_flag=True, help="Make it a FedRAMP account.")
@click.option("--auth-json", is_flag=True, help="Print the auth.json that Codex writes after this login.")
def token(*, url: str, form: str, fedramp: bool, auth_json: bool, **wanted: Any) -> None:
    """Log in, and print the access token.

    With `--format json`, the refresh token that renews it as well.

    \b
    A login to import into a broker:
      credential-broker emulator token --auth-json > auth.json
    """  # noqa: D301  `\b` is the character itself: click keeps the lines below it
    issued = _call("POST", url, "tokens", body={**wanted, "fedramp": fedramp or None})
    if auth_json:
        click.echo(issued["auth_json"])
    elif form == "json":
        _echo_json(issued)
    else:
        click.echo(issued["access_token"])


@command.command("client")
@_url
@_format
@click.option("--client-id", help="Its name; one is made up unless given. A known name gets the new secret.")
@click.option(
    "--client-secret-file",
    type=click.File(),
    help="Read its secret from here (- is standard input); one is made up unless given.",
)
@click.option("--auth", type=click.Choice(CLIENT_AUTHS), help="How it must present the secret; any way unless given.")
@click.option("--scope", "scopes", multiple=True, help="A scope it may ask for; repeat for more.")
@click.option("--audience", "audiences", multiple=True, help="An audience it may ask for; any unless given.")
@click.option("--list", "listing", is_flag=True, help="Show the clients instead.")
def client(
    *,
    url: str,
    form: str,
    client_secret_file: TextIO | None,
    scopes: tuple[str, ...],
    audiences: tuple[str, ...],
    listing: bool,
    **wanted: str | None,
) -> None:
    """Register an OAuth client and print its id and secret.

    It may then use the client_credentials grant. The client client-emulator with the secret secret-emulator is there
    from the start.
    """
    if listing:
        shown = _call("GET", url, "clients")
        rows = [
            (known["client_id"], known["auth"], " ".join(known["scopes"]), " ".join(known["audiences"]) or "any")
            for known in shown["clients"]
        ]
        _echo(form, shown, ("client", "auth", "scopes", "audiences"), rows)
        return
    body: dict[str, Any] = {**wanted, "scopes": list(scopes) or None, "audiences": list(audiences) or None}
    if client_secret_file is not None:
        body["client_secret"] = client_secret_file.read().strip()
    registered = _call("POST", url, "clients", body=body)
    _echo(form, registered, ("client", "secret"), [(registered["client_id"], registered["client_secret"])])


@command.command("subject-token")
@_url
@_format
@click.option("--subject", help="The workload it names.")
@click.option("--audience", help="Whom it is addressed to; what the emulator accepts unless given.")
@click.option("--account-id", help="The account the workload stands for.")
@click.option("--expires-in", type=float, help="Seconds until it expires; negative for one that has.")
@click.option("--untrusted", is_flag=True, help="Sign it with a key that the emulator does not accept.")
def subject_token(*, url: str, form: str, untrusted: bool, **wanted: Any) -> None:
    """Issue the token of a workload and print it.

    It is what a platform such as Kubernetes projects into a file, to be exchanged at the token endpoint.
    """
    issued = _call("POST", url, "subject-tokens", body={**wanted, "trusted": False if untrusted else None})
    if form == "json":
        _echo_json(issued)
    else:
        click.echo(issued["subject_token"])


@command.command("exchanges")
@_url
@_format
@click.option("--since", type=click.IntRange(min=0), default=0, help="Only exchanges after this sequence number.")
@click.option("--grant", help="Only this grant, for instance refresh_token or client_credentials.")
@click.option("--family", help="Only what descends from this login.")
def exchanges(*, url: str, form: str, since: int, grant: str | None, family: str | None) -> None:
    """Show what the token endpoint decided, without any secret.

    The last line says how often a refresh token was used twice, and how many logins that or a revocation ended.
    """
    selection = {"since": str(since), "grant": grant, "family": family}
    shown = _call(
        "GET", url, "exchanges", query={name: value for name, value in selection.items() if value is not None}
    )
    rows = [
        (
            str(entry["seq"]),
            entry["grant"].rpartition(":")[2],
            entry["outcome"],
            entry["client_id"] or "-",
            entry["subject"] or "-",
            ".".join(str(entry[name]) for name in ("family", "generation") if entry[name] is not None) or "-",
            "yes" if entry["reused"] else "",
        )
        for entry in shown["exchanges"]
    ]
    _echo(form, shown, ("seq", "grant", "outcome", "client", "subject", "family", "reused"), rows)
    if form != "json":
        click.echo(f"\ndouble uses: {shown['double_uses']}, families revoked: {shown['families_revoked']}")


@command.command("settings")
@_url
@click.option("--profile", type=click.Choice(PROFILE_NAMES), help="Demand another generation of the protocol.")
@click.option("--task-answer", type=click.Choice(TASK_ANSWERS), help="Answer task registrations in another field.")
@click.option("--freshness", type=_POSITIVE, help="The freshness window in seconds.")
@click.option("--clock-offset", type=float, help="Seconds the emulator's clock is ahead.")
@click.option("--token-format", type=click.Choice(TOKEN_FORMATS), help="What access tokens are made of.")
@click.option("--access-token-seconds", type=_POSITIVE, help="How long an access token is good.")
@click.option("--refresh-token-seconds", type=_POSITIVE, help="How long a refresh token is good.")
@click.option(
    "--rotate-refresh-tokens/--keep-refresh-tokens", default=None, help="Whether a refresh spends its refresh token."
)
@click.option("--reuse-grace-seconds", type=click.FloatRange(min=0), help="How long a repeat gets the same answer.")
@click.option(
    "--family-revocation/--no-family-revocation", default=None, help="Whether one reuse ends the whole login."
)
@click.option(
    "--revocation-ends-access-tokens/--revocation-spares-access-tokens",
    default=None,
    help="Whether the access tokens of an ended login die with it.",
)
@click.option("--refresh-error-style", type=click.Choice(ERROR_STYLES), help="Where a refused refresh names its cause.")
@click.option("--federation-rule-id", help="The federation rule that is known.")
@click.option("--subject-audience", help="Whom a subject token must be addressed to.")
def settings(*, url: str, freshness: float | None, clock_offset: float | None, **wanted: Any) -> None:
    """Show or change the settings of a running emulator."""
    body = {**wanted, "freshness_seconds": freshness, "clock_offset_seconds": clock_offset}
    _echo_json(_call("POST", url, "settings", body=body))


@command.group("faults")
def faults() -> None:
    """Make the emulator misbehave in one exact way, a counted number of times.

    \b
    Two throttled task registrations:
      credential-broker emulator faults set status --status 429 --retry-after 2 --operation task_register --count 2
    An answer that is lost although the agent was registered:
      credential-broker emulator faults set drop_after --operation agent_register
    A task the backend does not accept any more:
      credential-broker emulator faults set stale_task
    A refresh that spends its token and whose answer is lost:
      credential-broker emulator faults set drop_after --operation oauth --grant refresh_token
    """  # noqa: D301  `\b` is the character itself: click keeps the lines below it


@faults.command("set")
@click.argument("action", metavar="ACTION", type=click.Choice(ACTIONS))
@_url
@_format
@click.option("--operation", type=click.Choice(OPERATIONS), help="Only for this operation.")
@click.option("--path-prefix", help="Only for paths that begin with this; route_reject needs it.")
@click.option("--grant", help="Only for token requests of this grant_type.")
@click.option("--agent-runtime-id", help="For agent_dead: this agent.")
@click.option("--fingerprint", help="For bearer_reject: this bearer, by its fingerprint in the ledger.")
@click.option("--method", help="Only for this HTTP method.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many times it fires.")
@click.option("--unlimited", is_flag=True, help="Fire until cleared, instead of --count.")
@click.option("--status", type=click.IntRange(200, 599), help="For status (503 unless given) and redirect (302).")
@click.option("--retry-after", help="For status: seconds or an HTTP date.")
@click.option("--body", help="For status: the body to answer.")
@click.option("--seconds", type=float, help="For delay and clock_offset.")
@click.option("--location", help="For redirect: where to.")
@click.option("--size", type=click.IntRange(min=1), help="For oversize: bytes to answer.")
def set_fault(*, action: str, url: str, form: str, count: int, unlimited: bool, **wanted: Any) -> None:
    """Put a fault in force and print its id.

    \b
    status        answer --status without processing (with --retry-after, --body)
    garbage       answer 200 with something that is not JSON, without processing
    redirect      answer a redirect to --location, without processing
    oversize      answer --size bytes, without processing
    delay         wait --seconds, then process
    hang          wait until the fault is cleared or the client leaves, then process
    truncate      process, then close the connection half-way through the answer
    drop_after    process, then close the connection without an answer
    stale_task    from now on refuse the task of the next verified assertion (401)
    route_reject  refuse verified assertions under --path-prefix (401), still take bearers
    agent_dead    from now on refuse the agent of the next verified assertion or task registration (401)
    bearer_reject refuse verified bearers (401)
    clock_offset  shift the clock by --seconds, in checks and in the Date header
    """  # noqa: D301  `\b` is the character itself: click keeps the lines below it
    wanted["method"] = wanted["method"].upper() if wanted["method"] else None
    body = {"action": action, **{name: value for name, value in wanted.items() if value is not None}}
    rule = _call("POST", url, "faults", body={**body, "count": None if unlimited else count}, keep_none=True)
    if form == "json":
        _echo_json(rule)
    else:
        click.echo(rule["id"])


@faults.command("list")
@_url
@_format
def list_faults(*, url: str, form: str) -> None:
    """List the faults in force and used up: how often each has fired, and what is left of it."""
    shown = _call("GET", url, "faults")
    if form == "json":
        _echo_json(shown)
        return
    rows = [
        (
            rule["id"],
            rule["action"],
            " ".join(str(rule[name]) for name in _FAULT_MATCHES if rule[name]) or "everything",
            str(rule["fired"]),
            "no end" if rule["count"] is None else str(rule["count"]),
        )
        for rule in shown["faults"]
    ]
    _echo_table(("id", "action", "for", "fired", "left"), rows)


@faults.command("clear")
@click.argument("fault_id", required=False)
@_url
def clear_faults(*, fault_id: str | None, url: str) -> None:
    """Remove one fault, or all; what hangs on a removed fault goes on."""
    removed = _call("DELETE", url, "faults" if fault_id is None else f"faults/{fault_id}")
    click.echo(f"removed {removed['removed']}")


def _call(
    method: str,
    url: str,
    control: str,
    *,
    query: dict[str, str] | None = None,
    body: dict[str, Any] | None = None,
    keep_none: bool = False,
) -> Any:
    """Use a control of a running emulator and return its JSON; ends the program when that fails."""
    import httpx  # noqa: PLC0415  kept out of `--help`

    if body is not None and not keep_none:
        body = {name: value for name, value in body.items() if value is not None}
    target = f"{url.rstrip('/')}/_emulator/{control}"
    try:
        # No proxy from the environment: these calls carry keys and go to this machine only.
        with httpx.Client(trust_env=False, timeout=_TIMEOUT_SECONDS) as client:
            answer = client.request(method, target, params=query, json=body)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        click.echo(f"no emulator answers at {url} ({type(error).__name__}); start one or name it with --url", err=True)
        click.get_current_context().exit(_EXIT_UNREACHABLE)
    try:
        shown: Any = answer.json() if answer.content else None
    except ValueError:
        raise click.ClickException(f"{url} does not answer as an emulator does") from None
    if answer.is_success:
        return shown
    try:
        message = shown["error"]["message"]
    except (KeyError, TypeError):
        message = f"HTTP status {answer.status_code}"
    raise click.ClickException(f"the emulator refused: {message}")


def _echo(form: str, value: Any, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if form == "json":
        _echo_json(value)
    else:
        _echo_table(head, rows)


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _echo_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: with rules and colours on a terminal, as plain aligned columns through a pipe."""
    if not sys.stdout.isatty():
        widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console  # noqa: PLC0415  kept out of `--help`
    from rich.table import Table  # noqa: PLC0415

    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
