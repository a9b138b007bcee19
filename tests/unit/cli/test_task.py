"""The commands about tasks."""

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api

from broker import errors
from tests.support.fake_broker import FakeBroker
from tests.unit.cli.conftest import Run

TASK = api.Task(
    id="task-1",
    identity="dev",
    kind=api.TASK_KIND_THREAD,
    thread_id="t1",
    state=api.TASK_STATE_ACTIVE,
    upstream_key="single",
)


def test_list_filters_and_shows_who_shares_a_task(broker: FakeBroker, run: Run) -> None:
    """Filters are sent; the upstream key is shown, since equal keys share a task at the backend."""
    broker.answers["ListTasks"] = admin.ListTasksResponse(tasks=[TASK])
    result = run("task", "list", "--identity", "dev", "--state", "ACTIVE")
    assert broker.received[0].request == admin.ListTasksRequest(
        identity="dev", states=[api.TASK_STATE_ACTIVE], page_size=1000
    )
    assert result.stdout == (
        "task    identity  kind    thread  state   upstream key  created\n"
        "task-1  dev       THREAD  t1      ACTIVE  single        -\n"
    )


def test_show_prints_one_task(broker: FakeBroker, run: Run) -> None:
    """One task by its id."""
    broker.answers["GetTask"] = admin.GetTaskResponse(task=TASK)
    assert "thread        t1" in run("task", "show", "task-1").stdout
    assert broker.received[0].request == admin.GetTaskRequest(id="task-1")


def test_revoke_names_what_went_with_it(broker: FakeBroker, run: Run) -> None:
    """The bindings that shared the task are listed."""
    shared = api.Task(id="task-2", identity="dev", thread_id="t2", state=api.TASK_STATE_REVOKED)
    broker.answers["RevokeTask"] = admin.RevokeTaskResponse(task=TASK, shared_tasks=[shared])
    result = run("task", "revoke", "task-1", "--force", "--etag", "e", "--comment", "c")
    assert broker.received[0].request == admin.RevokeTaskRequest(id="task-1", force=True, etag="e", comment="c")
    assert "revoked with it" in result.stdout
    assert "task-2" in result.stdout


def test_revoke_of_a_shared_task_says_what_to_do(broker: FakeBroker, run: Run) -> None:
    """Without --force a shared task is refused, and the way on is shown."""
    broker.answers["RevokeTask"] = errors.TaskSharedError(metadata={"bindings": "2"})
    result = run("task", "revoke", "task-1")
    assert result.exit_code == 1
    assert "--force" in result.stderr


@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_task_must_be_named(run: Run, command: str) -> None:
    """Without an id it is a usage error."""
    assert run("task", command).exit_code == 2
