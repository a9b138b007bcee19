"""`credential-broker status`: who holds what now, what comes next, and what somebody must do."""

import sys
import time
from collections.abc import Iterator

import click
from credentialbroker.v1 import broker_admin_pb2 as admin
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli.channel import Listener, Session, with_session
from broker.cli.failures import CallFailedError
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_line, echo_table, show_seconds, show_time, word
from broker.cli.parameters import Duration

REMEDIES = {
    "REAUTH_REQUIRED": "log in again: credential-broker identity reauthenticate {name} --from FILE; or, where it has a"
    " bearer source, put another secret where that reads it",
    "IDENTITY_REJECTED": "the backend refuses it: credential-broker identity rotate {name}, or identity reauthenticate",
    "IDENTITY_REVOKED": "disabled by an operator: credential-broker identity enable {name}",
    "REGISTRATION_IN_PROGRESS": "being registered; nothing to do unless this stays",
    "ISSUER_DOWN": "its bearer cannot be refreshed now; the broker goes on trying",
    "BACKEND_DOWN": "the backend does not answer; the broker goes on trying",
    "BACKEND_THROTTLED": "the backend asks to wait; the broker goes on trying",
    "BACKEND_PROTOCOL": "the backend answers something else: check its `profile` and `base_url`",
    "BEARER_UNAVAILABLE": "it needs a bearer: credential-broker identity update {name} --bearer-source SOURCE",
    "CLOCK_SKEW": "correct the clock of the broker's machine",
    "ROW_CORRUPT": "its record cannot be read: restore it from a backup, or delete it and create it again",
    "KEY_PROVIDER_DOWN": "its secrets cannot be opened now; the broker goes on trying",
}
"""What to do for an identity, by the reason that stands against it."""

REGISTRATION_REFUSED = "the backend refuses to register it: the broker's log says how; check its bearer and the backend"
"""The same where it has no key yet that could be replaced."""


@click.command(
    epilog=examples(
        "credential-broker status",
        "# keep it on the screen",
        "credential-broker status --watch",
        "# for a program, an answer a line",
        "credential-broker status --watch --interval 10s --format json",
    )
)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--interval", type=Duration(), default="2s", show_default=True, help="With --watch: how often.")
@with_session(Listener.ADMIN)
def status(session: Session, *, watch: bool, interval: float) -> None:
    """
    Say how a broker is doing: who holds what, what is due next, and what somebody must do.

    It answers also while its store is away, and then says until when it goes on serving from memory. With --watch and
    --format json each answer is one line.
    """
    if not watch:
        response = session.ask(session.admin.GetStatus, admin.GetStatusRequest())
        session.show(response, lambda: _show(response.status))
        return
    is_later = False
    try:
        for answer in _answers(session, interval):
            if session.form == "json":
                echo_line(answer if isinstance(answer, admin.GetStatusResponse) else answer.document)
                continue
            if sys.stdout.isatty():
                click.clear()
            elif is_later:
                click.echo()
            is_later = True
            if isinstance(answer, CallFailedError):
                answer.show()
            else:
                _show(answer.status)
    except KeyboardInterrupt:
        return  # the way a watch ends


def _answers(session: Session, interval: float) -> Iterator[admin.GetStatusResponse | CallFailedError]:
    """Ask for ever; a broker that is away is asked again."""
    while True:
        try:
            yield session.ask(session.admin.GetStatus, admin.GetStatusRequest())
        except CallFailedError as error:
            yield error
        time.sleep(interval)


def _show(status: admin.BrokerStatus) -> None:
    store, now = status.store, status.server_time
    echo_fields(
        (
            ("broker", f"{status.server_version}, {word(status, 'serving_state')}"),
            ("running since", f"{show_time(status.start_time)} ({show_seconds(status.uptime.ToSeconds())})"),
            ("store", f"{store.driver}, schema {store.schema_version}" if store.driver else "does not answer"),
            ("store answered", _from_now(store.last_confirm_time, now) or "never"),
            ("serves without it until", show_time(store.offline_serving_until_time)),
            ("identities", _counts([(word(each, "state"), each.count) for each in status.identity_counts])),
            ("tasks", _counts([(word(each, "state"), each.count) for each in status.task_counts])),
        )
    )
    if not status.identities:
        return
    click.echo()
    echo_table(
        ("identity", "mode", "state", "login ends", "bearer", "bearer ends", "tasks", "watched", "last used", "next"),
        [
            (
                each.name,
                word(each, "mode"),
                word(each, "state"),
                _from_now(each.expire_time, now),
                word(each, "bearer_state"),
                _from_now(each.bearer_expire_time, now),
                str(each.active_task_count),
                str(each.watch_count),
                _from_now(each.last_use_time, now),
                _next(each, now),
            )
            for each in status.identities
        ],
    )
    attention = [line for each in status.identities for line in _attention(each, now)]
    if attention:
        click.echo()
        echo_table(("identity", "because", "since", "what to do"), attention)


def _next(summary: admin.IdentitySummary, now: Timestamp) -> str:
    """Return the first thing that is due, and when."""
    due = (
        (summary.retry_time, "tried again"),
        (summary.bearer_refresh_time, "bearer refreshed"),
        (summary.task_replace_time, "task replaced"),
    )
    set_ones = [(moment.ToNanoseconds(), what, moment) for moment, what in due if moment.seconds]
    if not set_ones:
        return ""
    _, what, moment = min(set_ones, key=lambda one: one[0])
    return f"{what} {_from_now(moment, now)}"


def _attention(summary: admin.IdentitySummary, now: Timestamp) -> Iterator[tuple[str, str, str, str]]:
    """Return what stands against an identity, with what to do about it."""
    is_registering = summary.state == admin.IDENTITY_STATE_REGISTERING
    reasons = [word(summary, "state_reason")]
    if is_registering and summary.last_error:
        reasons.clear()  # it says the same, and why
    if word(summary, "bearer_state") == "REAUTH_REQUIRED":
        reasons.append("REAUTH_REQUIRED")
    reasons.append(word(summary, "last_error"))
    for reason in dict.fromkeys(reason for reason in reasons if reason):
        since = _from_now(summary.last_error_time, now) if reason == word(summary, "last_error") else ""
        remedy = REMEDIES.get(reason, "see why: credential-broker identity show {name}, and the broker's log")
        if is_registering and reason == "IDENTITY_REJECTED":
            remedy = REGISTRATION_REFUSED
        yield summary.name, reason, since, remedy.format(name=summary.name)
    if summary.rejected_scopes:
        scopes = ", ".join(summary.rejected_scopes)
        yield summary.name, "BACKEND_UNSUPPORTED", "", f"only these routes reject it: {scopes}; tried again by itself"


def _from_now(then: Timestamp, now: Timestamp) -> str:
    """Return how far a moment is from the broker's now; empty where it is not set."""
    if not then.seconds:
        return ""
    seconds = (then.ToNanoseconds() - now.ToNanoseconds()) / 1e9
    return f"in {show_seconds(seconds)}" if seconds > 0 else f"{show_seconds(-seconds)} ago"


def _counts(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts) or "none"
