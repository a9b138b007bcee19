"""`status`: how a broker is doing, in words and as JSON."""

import json

from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api
from credentialbroker.v1 import error_reason_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

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
        )
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
        "identity  backend  mode   state     because            active tasks  bearer ends  tried again",
        "dev       default  AGENT  REJECTED  IDENTITY_REJECTED  2             -            -",
    ]


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
