"""`credential-broker status`."""

import click
from credentialbroker.v1 import broker_admin_pb2 as admin
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli.channel import Listener, Session, with_session
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_table, show_seconds, show_time, word


@click.command(epilog=examples("credential-broker status", "credential-broker status --format json"))
@with_session(Listener.ADMIN)
def status(session: Session) -> None:
    """
    Say how a broker is doing.

    It answers also while its store is away, and then says until when it goes on serving from memory.
    """
    response = session.ask(session.admin.GetStatus, admin.GetStatusRequest())
    session.show(response, lambda: _show_status(response.status))


def _show_status(status: admin.BrokerStatus) -> None:
    store = status.store
    echo_fields(
        (
            ("broker", f"{status.server_version}, {word(status, 'serving_state')}"),
            ("running since", f"{show_time(status.start_time)} ({show_seconds(status.uptime.ToSeconds())})"),
            ("store", f"{store.driver}, schema {store.schema_version}"),
            ("store answered", _ago(store.last_confirm_time, status.server_time)),
            ("serves without it until", show_time(store.offline_serving_until_time)),
            ("identities", _counts([(word(each, "state"), each.count) for each in status.identity_counts])),
            ("tasks", _counts([(word(each, "state"), each.count) for each in status.task_counts])),
        )
    )
    if status.identities:
        click.echo()
        echo_table(
            ("identity", "backend", "mode", "state", "because", "active tasks", "bearer ends", "tried again"),
            [
                (
                    each.name,
                    each.backend,
                    word(each, "mode"),
                    word(each, "state"),
                    word(each, "state_reason"),
                    str(each.active_task_count),
                    show_time(each.bearer_expire_time),
                    show_time(each.retry_time),
                )
                for each in status.identities
            ],
        )


def _ago(then: Timestamp, now: Timestamp) -> str:
    if not then.seconds:
        return "never"
    return f"{show_seconds(max(0.0, (now.ToNanoseconds() - then.ToNanoseconds()) / 1e9))} ago"


def _counts(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts) or "none"
