"""`status`: how a broker is doing, in words and as JSON."""

import json

import click
import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api
from credentialbroker.v1 import error_reason_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli import root
from broker.cli.status import REGISTRATION_REFUSED, REMEDIES
from tests.support.fake_broker import FakeBroker
from tests.unit.cli.conftest import Run

STATUS = admin.BrokerStatus(
    server_version="1.2.3",
    serving_state=admin.SERVING_STATE_SERVING,
    start_time=Timestamp(seconds=1000),
    uptime=Duration(seconds=3700),
    server_time=Timestamp(seconds=4700),
    store=admin.StoreStatus(
        driver="sqlite",
        schema_version="0001",
        last_confirm_time=Timestamp(seconds=4698),
        offline_serving_until_time=Timestamp(seconds=8298),
    ),
    identities=[
        admin.IdentitySummary(
            name="dev",
            backend="default",
            mode=admin.IDENTITY_MODE_AGENT,
            state=admin.IDENTITY_STATE_REJECTED,
            state_reason=error_reason_pb2.ERROR_REASON_IDENTITY_REJECTED,
            active_task_count=2,
            expire_time=Timestamp(seconds=8300),
            last_use_time=Timestamp(seconds=4640),
            watch_count=3,
        ),
        admin.IdentitySummary(
            name="plain",
            backend="default",
            mode=admin.IDENTITY_MODE_BEARER,
            state=admin.IDENTITY_STATE_ACTIVE,
            bearer_state=admin.BEARER_STATE_REFRESH_FAILING,
            bearer_expire_time=Timestamp(seconds=4760),
            bearer_refresh_time=Timestamp(seconds=4730),
            retry_time=Timestamp(seconds=4710),
            last_error=error_reason_pb2.ERROR_REASON_ISSUER_DOWN,
            last_error_time=Timestamp(seconds=4690),
            rejected_scopes=["inference", "thread"],
        ),
    ],
    identity_counts=[admin.IdentityCount(state=admin.IDENTITY_STATE_REJECTED, count=1)],
    task_counts=[
        admin.TaskCount(state=api.TASK_STATE_ACTIVE, count=2),
        admin.TaskCount(state=api.TASK_STATE_ENDED, count=5),
    ],
)


def test_status_is_told_in_words(broker: FakeBroker, run: Run) -> None:
    """Version, state, store, counts, and each identity with why it is not active."""
    broker.answers["GetStatus"] = admin.GetStatusResponse(status=STATUS)
    assert run("status").stdout.splitlines() == [
        "broker                   1.2.3, SERVING",
        "running since            1970-01-01T00:16:40Z (1h 1m)",
        "store                    sqlite, schema 0001",
        "store answered           2s ago",
        "serves without it until  1970-01-01T02:18:18Z",
        "identities               1 REJECTED",
        "tasks                    2 ACTIVE, 5 ENDED",
        "",
        "identity  mode    state     login ends  bearer           bearer ends  tasks  watched  last used  next",
        "dev       AGENT   REJECTED  in 1h       -                -            2      3        1m ago     -",
        "plain     BEARER  ACTIVE    -           REFRESH_FAILING  in 1m        0      0        -          tried again in 10s",
        "",
        "identity  because              since    what to do",
        (
            "dev       IDENTITY_REJECTED    -        the backend refuses it: credential-broker identity rotate dev,"
            " or identity reauthenticate"
        ),
        "plain     ISSUER_DOWN          10s ago  its bearer cannot be refreshed now; the broker goes on trying",
        "plain     BACKEND_UNSUPPORTED  -        only these routes reject it: inference, thread; tried again by itself",
    ]


def test_a_refused_registration_is_told_once_with_what_to_look_at(broker: FakeBroker, run: Run) -> None:
    """There is no key yet to be replaced, and that it is being registered is no second thing."""
    refused = admin.IdentitySummary(
        name="new",
        state=admin.IDENTITY_STATE_REGISTERING,
        state_reason=error_reason_pb2.ERROR_REASON_REGISTRATION_IN_PROGRESS,
        last_error=error_reason_pb2.ERROR_REASON_IDENTITY_REJECTED,
    )
    broker.answers["GetStatus"] = admin.GetStatusResponse(status=admin.BrokerStatus(identities=[refused]))
    lines = run("status").stdout.splitlines()
    assert lines[-1] == f"new       IDENTITY_REJECTED  -      {REGISTRATION_REFUSED}"
    assert lines[-2].startswith("identity  because")


def test_status_of_a_broker_whose_store_never_answered(broker: FakeBroker, run: Run) -> None:
    """Nothing that is not known is made up."""
    status = admin.BrokerStatus(server_version="1", serving_state=admin.SERVING_STATE_WARMING_UP)
    broker.answers["GetStatus"] = admin.GetStatusResponse(status=status)
    lines = run("status").stdout.splitlines()
    assert "store answered  never" in lines
    assert "identities      none" in lines


def test_status_as_json(broker: FakeBroker, run: Run) -> None:
    """The whole answer with bare words."""
    broker.answers["GetStatus"] = admin.GetStatusResponse(status=STATUS)
    document = json.loads(run("status", "--format", "json").stdout)["status"]
    assert document["serving_state"] == "SERVING"
    assert document["uptime"] == "3700s"
    assert document["identities"][0]["state_reason"] == "IDENTITY_REJECTED"


def test_a_watched_status_goes_on_while_the_broker_is_away(
    broker: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is shown, a failure too, until Ctrl-C, which is a good end."""
    answers = iter([admin.GetStatusResponse(status=STATUS), grpc.StatusCode.UNAVAILABLE, KeyboardInterrupt()])

    def sleep(seconds: float) -> None:
        assert seconds == 5.0
        following = next(answers)
        if isinstance(following, KeyboardInterrupt):
            raise following
        broker.answers["GetStatus"] = following

    monkeypatch.setattr("broker.cli.status.time.sleep", sleep)
    broker.answers["GetStatus"] = next(answers)
    result = run("status", "--watch", "--interval", "5s", "--format", "json")
    assert result.exit_code == 0
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["status"]["serving_state"] == "SERVING"
    assert second["error"]["code"] == "UNAVAILABLE"


def test_answers_that_follow_each_other_stand_apart(
    broker: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no screen is cleared between them."""
    waits = iter([None, KeyboardInterrupt()])

    def sleep(_: float) -> None:
        if (following := next(waits)) is not None:
            raise following

    monkeypatch.setattr("broker.cli.status.time.sleep", sleep)
    broker.answers["GetStatus"] = admin.GetStatusResponse(status=admin.BrokerStatus(server_version="1"))
    printed = run("status", "--watch").stdout
    first, second = printed.split("\n\n")
    assert first == second.rstrip("\n")


def test_each_remedy_names_commands_that_exist() -> None:
    """What the status tells an operator to type can be typed."""
    for remedy in REMEDIES.values():
        for named in remedy.split("credential-broker ")[1:]:
            verb, noun = named.partition(",")[0].split()[:2]
            command = root.commands[verb]
            assert isinstance(command, click.Group)
            options = {option for one in command.commands[noun].params for option in one.opts}
            assert {word for word in named.split() if word.startswith("--")} <= options
