"""The commands of operators about tasks: `task list`, `task show`, `task revoke`."""

from collections.abc import Iterable

import click
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api

from broker.cli.caller import task_fields
from broker.cli.channel import Listener, Session, with_session
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_table, number_of, show_time, word, words_of

_STATE = api.TaskState.DESCRIPTOR


@click.group()
def task() -> None:
    """
    Look at and revoke tasks.

    A task binds a thread of a caller, or the background work of an identity, to a task at the backend. Several may
    share one there: those have the same upstream key.
    """


@task.command(
    "list",
    epilog=examples(
        "credential-broker task list",
        "credential-broker task list --identity dev --state ACTIVE",
    ),
)
@click.option("--identity", default="", metavar="NAME", help="Only tasks of this identity.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(words_of(_STATE), case_sensitive=False),
    help="Only tasks in this state; may be repeated.",
)
@with_session(Listener.ADMIN)
def list_tasks(session: Session, *, identity: str, states: tuple[str, ...]) -> None:
    """List tasks."""
    request = admin.ListTasksRequest(
        identity=identity,
        states=[api.TaskState.ValueType(number_of(_STATE, state)) for state in states],
        page_size=1000,
    )
    response = admin.ListTasksResponse()
    for page in session.ask_pages(session.admin.ListTasks, request):
        response.tasks.extend(page.tasks)
    session.show(response, lambda: _show_tasks(response.tasks))


def _show_tasks(tasks: Iterable[api.Task]) -> None:
    echo_table(
        ("task", "identity", "kind", "thread", "state", "upstream key", "created"),
        [
            (
                each.id,
                each.identity,
                word(each, "kind"),
                each.thread_id,
                word(each, "state"),
                each.upstream_key,
                show_time(each.create_time),
            )
            for each in tasks
        ],
        empty="no tasks",
    )


@task.command("show", epilog=examples("credential-broker task list", "credential-broker task show TASK_ID"))
@click.argument("task_id", metavar="TASK_ID")
@with_session(Listener.ADMIN)
def show(session: Session, *, task_id: str) -> None:
    """Show one task."""
    response = session.ask(session.admin.GetTask, admin.GetTaskRequest(id=task_id))
    session.show(response, lambda: echo_fields(task_fields(response.task)))


@task.command(
    "revoke",
    epilog=examples(
        "credential-broker task revoke TASK_ID --comment 'run away'",
        "# with every thread that shares the task at the backend",
        "credential-broker task revoke TASK_ID --force",
    ),
)
@click.argument("task_id", metavar="TASK_ID")
@click.option("--force", is_flag=True, help="Also take down the tasks that share it at the backend.")
@click.option("--etag", default="", help="Only if it is unchanged since this etag was read.")
@click.option("--comment", default="", help="Why, for the audit record.")
@with_session(Listener.ADMIN)
def revoke(session: Session, *, task_id: str, force: bool, etag: str, comment: str) -> None:
    """
    Take a task down.

    Nothing is signed for it any more; calls for its thread are refused with TASK_ENDED. A task at the backend that
    others share is only taken down with all of them, which needs --force. Where all of an identity's work is one task
    at the backend (layout `single`, the newest profile's), that takes the background task and every thread with it.
    """
    request = admin.RevokeTaskRequest(id=task_id, force=force, etag=etag, comment=comment)
    response = session.ask(session.admin.RevokeTask, request)
    session.show(response, lambda: _show_revoked(response))


def _show_revoked(response: admin.RevokeTaskResponse) -> None:
    echo_fields(task_fields(response.task))
    if response.shared_tasks:
        click.echo("\nrevoked with it, because they share its task at the backend:")
        _show_tasks(response.shared_tasks)
