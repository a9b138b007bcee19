"""The commands of callers: `get`, `explain`, `scopes`, `register-task`, `end-task`."""

import shlex
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from credentialbroker.v1 import credential_broker_pb2 as api
from google.protobuf.duration_pb2 import Duration as DurationProto

from broker.cli.channel import Listener, Session, with_session
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_json, echo_table, printable, show_seconds, show_time, word
from broker.cli.parameters import Duration

Function = TypeVar("Function", bound=Callable[..., Any])

_identity = click.option("--identity", default="", metavar="NAME", help="Whose; needed where there are several.")


def _request_options(function: Function) -> Function:
    """Give a command the options that make up a request for an authorization."""
    options = (
        click.option("--scope", required=True, help="What the call is for; `credential-broker scopes` lists them."),
        click.option("--thread", "thread_id", default="", metavar="ID", help="Your id of the conversation or run."),
        _identity,
        click.option("--target-url", default="", metavar="URL", help="Where the call goes; refused for other origins."),
        click.option("--min-validity", type=Duration(), help="How long the headers must at least be usable."),
        click.option("--expected-account", default="", metavar="ID", help="Refuse if the account is another one."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    epilog=examples(
        "credential-broker get --scope inference --thread t1",
        "credential-broker get --scope control_plane.models --format json",
        "# as arguments of curl, and as variables of the shell",
        'eval "curl $(credential-broker get --scope inference --thread t1 --format curl)'
        ' http://127.0.0.1:8089/backend-api/codex/models"',
        'eval "$(credential-broker get --scope inference --thread t1 --format env)"; echo "$CHATGPT_ACCOUNT_ID"',
        "# the same without the credential on curl's command line, where other users see it",
        "credential-broker get --scope inference --thread t1"
        " | curl -H @- http://127.0.0.1:8089/backend-api/codex/models",
    )
)
@_request_options
@with_session(Listener.CALLERS, forms=("headers", "json", "env", "curl"))
def get(session: Session, *, min_validity: float | None, expected_account: str, **wanted: str) -> None:
    """
    Get the headers to attach to a call.

    The answer is the complete set of headers: attach all of them, only to calls to the identity's backend, until they
    expire. It is a credential: keep it out of logs and files. The first call for a thread registers its task.

    A bearer that is given in place of an assertion is never silent: standard error says so, and why.
    """
    request = api.GetAuthorizationRequest(
        **wanted, min_validity=_duration(min_validity), expected_account_id=expected_account
    )
    response = session.ask(session.callers.GetAuthorization, request)
    authorization = response.authorization
    if session.form == "json":
        echo_json(response)
        return
    for header in authorization.headers:
        # Never repaired: a line break inside a value would be a second header or a second command.
        if not (header.name + header.value).isprintable():
            raise click.ClickException(f"the broker's answer holds a header that is not one line: {header.name!r}")
    click.echo(_FORMS[session.form](authorization))
    _remark(authorization)


def _as_headers(authorization: api.Authorization) -> str:
    return "\n".join(f"{header.name}: {header.value}" for header in authorization.headers)


def _as_variables(authorization: api.Authorization) -> str:
    return "\n".join(
        f"export {header.name.upper().replace('-', '_')}={shlex.quote(header.value)}"
        for header in authorization.headers
    )


def _as_arguments(authorization: api.Authorization) -> str:
    return " ".join(f"-H {shlex.quote(f'{header.name}: {header.value}')}" for header in authorization.headers)


_FORMS: Final[dict[str, Callable[[api.Authorization], str]]] = {
    "headers": _as_headers,
    "env": _as_variables,
    "curl": _as_arguments,
}


def _remark(authorization: api.Authorization) -> None:
    """Say on standard error what the headers do not: always for a fallback or a stale answer, else on a terminal."""
    kind, reason = word(authorization, "kind"), word(authorization, "reason")
    left = authorization.expire_time.ToNanoseconds() - authorization.server_time.ToNanoseconds()
    text = f"{kind} of {printable(authorization.identity)} ({reason}), usable for {show_seconds(left / 1e9)}"
    if authorization.fallback_from:
        click.secho(f"{text}; given in place of {word(authorization, 'fallback_from')}", fg="yellow", err=True)
    elif authorization.stale:
        click.secho(f"{text}; may lag behind: the broker's store or a refresh is late", fg="yellow", err=True)
    elif sys.stderr.isatty() and sys.stdout.isatty():
        click.secho(text, dim=True, err=True)


def _duration(seconds: float | None) -> DurationProto | None:
    if seconds is None:
        return None
    duration = DurationProto()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration


@click.command(
    epilog=examples(
        "credential-broker explain --scope inference --thread t1",
        "# why a call to another origin gets nothing",
        "credential-broker explain --scope control_plane.models --target-url https://example.com/",
    )
)
@_request_options
@with_session(Listener.CALLERS)
def explain(session: Session, *, min_validity: float | None, expected_account: str, **wanted: str) -> None:
    """
    Say what `get` would decide, and which rules lead to it.

    A dry run: nothing is registered, refreshed or handed out. A refusal is an answer here, not a failure.
    """
    request = api.ExplainAuthorizationRequest(
        **wanted, min_validity=_duration(min_validity), expected_account_id=expected_account
    )
    response = session.ask(session.callers.ExplainAuthorization, request)
    session.show(response, lambda: _show_explanation(response))


def _show_explanation(response: api.ExplainAuthorizationResponse) -> None:
    decision, rule = response.decision, response.scope_rule
    echo_fields(
        (
            ("decision", word(decision, "outcome")),
            ("kind", word(decision, "kind")),
            ("reason", word(decision, "reason")),
            ("in place of", word(decision, "fallback_from")),
            ("task to register", word(decision, "task_kind")),
            ("refused with", word(decision.error, "reason")),
            ("because", decision.error.message),
            ("identity", response.identity),
            ("scope", f"{rule.scope}: {word(rule, 'credential')}, task {word(rule, 'task')}"),
        )
    )
    click.echo()
    echo_table(
        ("rule", "says", "applies", "found"),
        [(str(step.number), step.rule, "yes" if step.matched else "no", step.detail) for step in response.steps],
    )


@click.command(epilog=examples("credential-broker scopes", "credential-broker scopes --format json"))
@with_session(Listener.CALLERS)
def scopes(session: Session) -> None:
    """
    List the scopes that may be asked for.

    A rule says which kinds of credential a scope allows, and whose task an assertion is signed for: the thread's (then
    `--thread` is required) or the identity's background task.
    """
    response = api.ListScopesResponse()
    for page in session.ask_pages(session.callers.ListScopes, api.ListScopesRequest(page_size=1000)):
        response.scopes.extend(page.scopes)
    session.show(response, lambda: _show_scopes(response))


def _show_scopes(response: api.ListScopesResponse) -> None:
    echo_table(
        ("scope", "credential", "task", "enabled", "for"),
        [
            (
                rule.scope,
                word(rule, "credential"),
                word(rule, "task"),
                "yes" if rule.enabled else "no",
                rule.description,
            )
            for rule in response.scopes
        ],
        empty="no scope may be asked for",
    )


@click.command(
    "register-task",
    epilog=examples(
        "credential-broker register-task --thread t1",
        "# for work that belongs to no thread",
        "credential-broker register-task --background",
    ),
)
@click.option("--thread", "thread_id", metavar="ID", help="The thread to register a task for.")
@click.option("--background", is_flag=True, help="The identity's background task, for work without a thread.")
@_identity
@with_session(Listener.CALLERS)
def register_task(session: Session, *, thread_id: str | None, background: bool, identity: str) -> None:
    """
    Register the task of a thread ahead of its first call.

    Nobody has to: `get` registers on first need. Repeating it answers the same task while that lives; for a thread
    whose task was ended it starts a new one.
    """
    if (thread_id is not None) == background:
        raise click.UsageError("name either --thread ID or --background")
    request = api.RegisterTaskRequest(identity=identity)
    if thread_id is not None:
        request.thread_id = thread_id
    else:
        request.kind = api.TASK_KIND_BACKGROUND
    response = session.ask(session.callers.RegisterTask, request)
    session.show(response, lambda: _show_task(response.task))


@click.command("end-task", epilog=examples("credential-broker end-task --thread t1"))
@click.option("--thread", "thread_id", required=True, metavar="ID", help="The thread whose task ends.")
@_identity
@with_session(Listener.CALLERS)
def end_task(session: Session, *, thread_id: str, identity: str) -> None:
    """
    End the task of a thread.

    Calls for the thread are refused with TASK_ENDED from then on; `register-task` starts a new task. Other threads that
    share the task at the backend go on.
    """
    response = session.ask(session.callers.EndTask, api.EndTaskRequest(thread_id=thread_id, identity=identity))
    session.show(response, lambda: _show_task(response.task))


def _show_task(task: api.Task) -> None:
    echo_fields(task_fields(task))


def task_fields(task: api.Task) -> tuple[tuple[str, str], ...]:
    """Return a task as names and values for people."""
    return (
        ("task", task.id),
        ("identity", task.identity),
        ("kind", word(task, "kind")),
        ("thread", task.thread_id),
        ("state", word(task, "state")),
        ("upstream key", task.upstream_key),
        ("version", str(task.version)),
        ("etag", task.etag),
        ("created", show_time(task.create_time)),
        ("changed", show_time(task.update_time)),
        ("expires", show_time(task.expire_time)),
        ("forgotten", show_time(task.purge_time)),
    )
