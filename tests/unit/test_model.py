"""The values of the model that guard something: secrets that do not print, states that follow."""

import copy
import pickle
from dataclasses import replace

import pytest

from broker.model import (
    Header,
    Mode,
    Origin,
    Secret,
    StoredBearer,
    Task,
    TaskKind,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from tests.support.stores import NOW, agent_identity


def test_a_secret_does_not_print() -> None:
    """No way of turning a secret into text gives it out, but the one that is named for it."""
    secret = Secret("hunter2")
    texts = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>20}",
        "".join(map(str, [secret])),
        repr([secret]),
        repr({"k": secret}),
    ]
    assert not any("hunter2" in text for text in texts)
    assert secret.reveal() == "hunter2"


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_does_not_travel(carry: object) -> None:
    """A secret is neither pickled nor copied by accident."""
    with pytest.raises(TypeError):
        carry(Secret("hunter2"))  # type: ignore[operator]


def test_secrets_are_equal_by_value() -> None:
    """Two secrets with one text are one key of a dictionary, and no secret equals a text."""
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"


def test_rows_do_not_print_what_is_sealed() -> None:
    """The repr of a row shows neither a sealed key, nor a sealed id, nor a sealed bearer, nor a header's value."""
    upstream = UpstreamTask(
        identity_id=agent_identity().id,
        generation=1,
        key=UpstreamKey("single"),
        state=TaskState.ACTIVE,
        version=1,
        fencing_token=1,
        sealed_task_id=b"hunter2",
        create_time=NOW,
        update_time=NOW,
    )
    rows = (
        agent_identity(sealed_private_key=b"hunter2"),
        upstream,
        StoredBearer(identity_id=agent_identity().id, sealed=b"hunter2", version=1),
        Header("authorization", "Bearer hunter2"),
    )
    assert not any("hunter2" in repr(row) for row in rows)


@pytest.mark.parametrize(
    ("binding", "upstream", "shown"),
    [
        (TaskState.ACTIVE, None, TaskState.CLAIMED),
        (TaskState.ACTIVE, TaskState.CLAIMED, TaskState.CLAIMED),
        (TaskState.ACTIVE, TaskState.ACTIVE, TaskState.ACTIVE),
        (TaskState.ACTIVE, TaskState.ORPHANED, TaskState.ORPHANED),
        (TaskState.ENDED, TaskState.ACTIVE, TaskState.ENDED),
        (TaskState.REVOKED, TaskState.ENDED, TaskState.REVOKED),
    ],
)
def test_the_state_of_a_task_is_the_bindings_when_it_has_ended(
    binding: TaskState, upstream: TaskState | None, shown: TaskState
) -> None:
    """A live binding shows how its upstream task is; one that has ended shows that, whatever its upstream does."""
    task = Task(
        id="t",
        identity_id=agent_identity().id,
        kind=TaskKind.THREAD,
        thread_id=ThreadId("thread"),
        state=binding,
        upstream_key=UpstreamKey("single"),
        version=1,
        create_time=NOW,
        update_time=NOW,
        last_use_time=NOW,
    )
    if upstream is not None:
        row = UpstreamTask(
            identity_id=task.identity_id,
            generation=1,
            key=task.upstream_key,
            state=upstream,
            version=1,
            fencing_token=1,
            create_time=NOW,
            update_time=NOW,
        )
        task = replace(task, upstream=row)
    assert task.effective_state is shown


@pytest.mark.parametrize("origin", Origin)
def test_only_agents_with_their_login_are_registered_anew(origin: Origin) -> None:
    """An imported JWT, a bare key and a bearer cannot register another agent."""
    can = {Origin.CREATED, Origin.IMPORTED_RECORD}
    assert agent_identity(origin=origin).can_register is (origin in can)
    assert not agent_identity(origin=origin, mode=Mode.BEARER).can_register
