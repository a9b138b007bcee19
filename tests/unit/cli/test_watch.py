"""What `watch` keeps of a subscription, and with what it comes back."""

from credentialbroker.v1 import credential_broker_pb2 as api
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli.watch import Watched


def value(*, server: int, refresh: int, expire: int) -> api.WatchAuthorizationsResponse:
    """Build a value with times of a clock that is not ours."""
    return api.WatchAuthorizationsResponse(
        subscription_id="1",
        authorization=api.Authorization(
            revision="r1",
            server_time=Timestamp(seconds=server),
            refresh_time=Timestamp(seconds=refresh),
            expire_time=Timestamp(seconds=expire),
        ),
    )


def watched() -> Watched:
    """Build a subscription that has had nothing yet."""
    return Watched(api.Subscribe(subscription_id="1", scope="inference", thread_id="t"))


def test_times_are_counted_from_receipt_on_a_clock_of_our_own() -> None:
    """The broker's clock may be anywhere."""
    one = watched()
    one.note(value(server=5000, refresh=5030, expire=5060), 100.0)
    assert one.left_until("refresh_time", 110.0) == 20
    assert one.left_until("expire_time", 110.0) == 50


def test_it_comes_back_with_what_is_fresh_only() -> None:
    """A value whose time to refresh has passed is asked for anew, and so is one that was withdrawn."""
    one = watched()
    assert one.asked_again(0.0).known_revision == ""
    one.note(value(server=5000, refresh=5030, expire=5060), 100.0)
    assert one.asked_again(120.0).known_revision == "r1"
    assert one.asked_again(120.0).thread_id == "t"
    assert one.asked_again(131.0).known_revision == ""
    one.note(
        api.WatchAuthorizationsResponse(
            subscription_id="1", withdrawal=api.Withdrawal(reason=api.WITHDRAWAL_REASON_TASK_ENDED)
        ),
        121.0,
    )
    assert one.asked_again(122.0).known_revision == ""
    assert one.state == "withdrawn: TASK_ENDED"


def test_an_error_leaves_what_is_held() -> None:
    """It stays usable until it expires."""
    one = watched()
    one.note(value(server=5000, refresh=5030, expire=5060), 100.0)
    status = api.ErrorStatus(code=14, reason="ERROR_REASON_BACKEND_DOWN")
    one.note(api.WatchAuthorizationsResponse(subscription_id="1", error=api.SubscriptionError(status=status)), 101.0)
    assert one.held is not None
    assert one.state == "failing: BACKEND_DOWN"
