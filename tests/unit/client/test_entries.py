"""What is held, for how long, and what is to be done for a use of it. No clock, no network: times are arguments."""

import logging
from asyncio import Queue
from typing import Any

import grpc
import pytest
from credentialbroker.authorization import Authorization, Key
from credentialbroker.entries import Entries, Use
from credentialbroker.errors import Failure
from credentialbroker.lifetimes import Backoff
from credentialbroker.origins import OriginError, check_origin, origin_of_adapter, parse_origin
from credentialbroker.questions import Ask, Question, Report
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.watch import Health, Watch
from google.protobuf.json_format import MessageToDict

from tests.unit.client.conftest import authorization, message

KEY = Key("", "inference", "t")
AWAY = Failure(code=grpc.StatusCode.UNAVAILABLE, message="away")
REFUSED = Failure(code=grpc.StatusCode.PERMISSION_DENIED, message="no", reason_text="NOT_ALLOWED")


class World:
    """Entries, and what they announced on the stream."""

    def __init__(self, *, size: int = 10, idle: float = 300.0, watched: bool = True) -> None:
        self.announced: list[Any] = []
        self.entries = Entries(size=size, idle_seconds=idle, watched=watched, chance=lambda: 1.0)
        self.entries.outbox = self

    def put_nowait(self, sent: pb2.WatchAuthorizationsRequest | None) -> None:
        """Take what is sent on the stream."""
        assert sent is not None
        self.announced.append(MessageToDict(sent, preserving_proto_field_name=True))

    def keep(self, held: Authorization, now: float = 0.0) -> None:
        assert self.entries.answered(self.entries.asked(held.key), held, now) is held

    def look(self, now: float, key: Key = KEY) -> tuple[str | None, bool]:
        held, refresh = self.entries.look(key, now)
        return (None if held is None else held.revision), refresh


def test_a_value_is_given_until_due_then_refreshed_once_then_never_after_its_end() -> None:
    """Without a stream it is due at refresh_time; one refresh is begun, and at the end there is nothing to give."""
    world = World()
    world.keep(authorization())
    assert [world.look(29.9), world.look(30.0), world.look(59.9), world.look(60.0)] == [
        ("r1", False),
        ("r1", True),
        ("r1", False),
        (None, False),
    ]


def test_with_a_stream_a_value_is_due_half_way_between_refresh_and_end() -> None:
    """While the broker sends new values the client leaves it to it; without the stream it is due at once."""
    world = World()
    world.keep(authorization())
    world.entries.stream_is(up=True)
    assert world.look(44.9) == ("r1", False)
    world.entries.stream_is(up=False)
    assert world.look(44.9) == ("r1", True)


def test_what_the_fast_path_reads_is_never_past_the_end() -> None:
    """`fresh` names a time at or before the end in each state."""
    world = World()
    world.keep(authorization())
    entry = world.entries.by_key[KEY]
    assert entry.fresh[1] == 30.0
    world.look(30.0)
    assert entry.fresh[1] == 60.0
    world.entries.withdrawn(entry)
    assert entry.fresh == (None, float("-inf"))


def test_a_refresh_that_failed_is_tried_again_later_and_later() -> None:
    """0.2 s, doubling, no sooner than the broker says, and what is held stays."""
    world = World()
    world.keep(authorization())
    question, now, waits = Question(KEY), 30.0, []
    for delay in (None, None, 3.0):
        assert world.look(now) == ("r1", True)
        failure = Failure(code=grpc.StatusCode.UNAVAILABLE, message="", retry_delay=delay)
        question.failed(world.entries, world.entries.asked(KEY), failure, now)
        waits.append(world.entries.by_key[KEY].fresh[1] - now)
        now = world.entries.by_key[KEY].fresh[1]
    assert waits == [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(3.0)]


def test_a_refusal_drops_the_entry_and_its_subscription() -> None:
    """The next use asks, and learns why."""
    world = World()
    world.keep(authorization())
    Question(KEY).failed(world.entries, world.entries.asked(KEY), REFUSED, 31.0)
    assert world.look(31.0) == (None, False)
    assert world.announced[-1] == {"unsubscribe": {"subscription_id": "1"}}


def test_a_refusal_of_a_special_question_drops_nothing() -> None:
    """A minimum that is too long, or an origin that is not the backend's, says nothing of what is held."""
    world = World()
    world.keep(authorization())
    Question(KEY, min_validity=900.0).failed(world.entries, world.entries.asked(KEY), REFUSED, 1.0)
    Question(KEY, target_url="https://x.example").failed(world.entries, world.entries.asked(KEY), REFUSED, 1.0)
    assert world.look(1.0) == ("r1", False)


def test_an_answer_that_was_asked_for_before_a_withdrawal_is_not_kept() -> None:
    """Nor given: it may be what was withdrawn."""
    world = World()
    world.keep(authorization())
    asked = world.entries.asked(KEY)
    world.entries.withdrawn(world.entries.by_key[KEY])
    assert world.entries.answered(asked, authorization("r1"), 1.0) is None
    assert world.look(1.0) == (None, False)


def test_an_answer_that_was_asked_for_before_a_newer_value_came_gives_way_to_it() -> None:
    """What the stream brought meanwhile is given in its place."""
    world = World()
    world.keep(authorization())
    asked, newer = world.entries.asked(KEY), authorization("r2")
    world.entries.received(world.entries.by_key[KEY], newer, 1.0)
    assert world.entries.answered(asked, authorization("r1"), 1.0) is newer


def test_an_answer_asked_for_before_there_was_an_entry_is_overtaken_by_a_withdrawal_too() -> None:
    """Of two first questions, the later answer does not bring back what was withdrawn after the earlier."""
    world = World()
    first, second, third = (world.entries.asked(KEY) for _ in range(3))
    assert world.entries.answered(first, authorization("a"), 1.0) is not None
    assert world.entries.answered(second, authorization("b"), 1.0) is not None
    world.entries.withdrawn(world.entries.by_key[KEY])
    assert world.entries.answered(third, authorization("c"), 2.0) is None
    assert world.look(2.0) == (None, False)


def test_an_answer_that_was_asked_for_before_a_withdrawal_is_not_kept_though_the_entry_went() -> None:
    """That it was dropped after the withdrawal makes the answer no newer."""
    world = World()
    world.keep(authorization())
    asked = world.entries.asked(KEY)
    world.entries.withdrawn(world.entries.by_key[KEY])
    world.entries.drop(world.entries.by_key[KEY])
    assert world.entries.answered(asked, authorization("r1"), 1.0) is None
    assert world.entries.by_key == {}


def test_what_overtook_an_answer_is_not_given_for_a_target_of_another_backend() -> None:
    """The broker allowed the target for what it answered, not for what came on the stream."""
    world = World()
    world.keep(authorization())
    asked = world.entries.asked(KEY)
    world.entries.received(world.entries.by_key[KEY], authorization("r2", tag="other"), 1.0)
    question = Question(KEY, target_url="https://backend.example")
    assert question.answered(world.entries, asked, authorization("r1"), 1.0) is None


def test_what_overtook_an_answer_is_given_only_if_it_lasts_long_enough() -> None:
    """Else the broker is asked again."""
    world = World()
    world.keep(authorization())
    asked = world.entries.asked(KEY)
    world.entries.received(world.entries.by_key[KEY], authorization("r2"), 1.0)
    question = Question(KEY, min_validity=100.0)
    assert question.answered(world.entries, asked, authorization("r1", lifetime=200.0), 1.0) is None


def test_min_validity_is_not_served_by_what_lasts_shorter() -> None:
    """What lasts long enough is given."""
    world = World()
    world.keep(authorization())
    assert world.entries.look(KEY, 10.0, 50.0)[0] is not None
    assert world.entries.look(KEY, 10.0, 50.1)[0] is None


def test_an_origin_is_asked_about_once_and_eight_are_remembered() -> None:
    """The ninth takes the place of the first; a URL without an origin is asked about each time."""
    world = World()
    world.keep(authorization())
    questions = [Question(KEY, target_url=f"https://host{number}.example/x") for number in range(9)]
    for question in questions:
        assert question.look(world.entries, 1.0) == Ask(question)
        question.answered(world.entries, world.entries.asked(KEY), authorization(), 1.0)
    answered = [isinstance(question.look(world.entries, 1.0), Authorization) for question in questions]
    assert answered == [False] + [True] * 8
    odd = Question(KEY, target_url="https://user@host8.example/")
    assert odd.look(world.entries, 1.0) == Ask(odd)


def test_the_least_recently_used_goes_first_but_not_one_with_a_connection() -> None:
    """No more than the size is kept, and what goes is unsubscribed."""
    world = World(size=3)
    keys = [Key("", "inference", str(number)) for number in range(4)]
    for number, key in enumerate(keys[:3]):
        world.keep(authorization(key=key), float(number))
    world.look(3.0, keys[0])
    world.entries.connect(authorization(key=keys[1]), Use("tag", lambda: None))
    world.keep(authorization(key=keys[3]), 4.0)
    assert set(world.entries.by_key) == {keys[0], keys[1], keys[3]}
    assert {"unsubscribe": {"subscription_id": "3"}} in world.announced


def test_an_idle_entry_goes_when_its_next_value_comes() -> None:
    """Nobody used it for the idle time: it is dropped; one with an open connection is kept."""
    world = World(idle=5.0)
    world.keep(authorization())
    entry, use = world.entries.by_key[KEY], Use("tag", lambda: None)
    world.entries.connect(authorization(), use)
    world.entries.received(entry, authorization("r2"), 5.1)
    assert world.look(5.1) == ("r2", False)
    world.entries.disconnect(KEY, use, 60.0)
    world.entries.received(entry, authorization("r3"), 65.0)
    assert world.entries.by_key == {KEY: entry}
    world.entries.received(entry, authorization("r4"), 65.1)
    assert world.entries.by_key == {}


def test_an_open_connection_is_a_use_that_asks_when_its_value_is_due_or_has_ended() -> None:
    """One refresh at a time, and no sooner than the last that failed allows."""
    world = World(watched=False)
    world.keep(authorization())
    assert world.entries.connected_and_due(30.0) == []
    world.entries.connect(authorization(), Use("tag", lambda: None))
    assert [world.entries.connected_and_due(now) for now in (29.9, 30.0, 30.1)] == [[], [KEY], []]
    world.entries.refresh_failed(world.entries.asked(KEY), AWAY, 61.0)
    assert [world.entries.connected_and_due(now) for now in (61.1, 61.2)] == [[], [KEY]]


def test_a_connection_learns_of_another_tag_and_of_a_withdrawal() -> None:
    """Another value with the same tag changes nothing."""
    world = World()
    changes: list[str] = []
    world.keep(authorization())
    entry = world.entries.by_key[KEY]
    world.entries.connect(authorization(), Use("tag", lambda: changes.append("tag")))
    world.entries.received(entry, authorization("r2"), 1.0)
    assert changes == []
    world.entries.received(entry, authorization("r3", tag="other"), 1.0)
    world.entries.connect(authorization(tag="other"), Use("other", lambda: changes.append("withdrawn")))
    world.entries.withdrawn(entry)
    world.entries.connect(authorization(tag="other"), Use("other", lambda: changes.append("too late")))
    assert changes == ["tag", "withdrawn", "too late"]


def test_subscriptions_name_the_revisions_that_are_not_due() -> None:
    """A new stream begins with every entry."""
    world = World()
    world.keep(authorization())
    known, due = (
        [MessageToDict(one)["subscribe"].get("knownRevision") for one in world.entries.subscriptions(now)]
        for now in (29.0, 30.0)
    )
    assert (known, due) == (["r1"], [None])


def test_a_report_replaces_and_one_of_what_was_replaced_costs_nothing() -> None:
    """If another revision is held, that is the better one already."""
    world = World()
    world.keep(authorization("r1"))
    report = Report(KEY, "r1")
    assert report.look(world.entries, 1.0) == Ask(report)
    better = authorization("r2")
    report.answered(world.entries, world.entries.asked(KEY), better, 1.0)
    assert report.look(world.entries, 1.0) is better


def test_a_report_that_comes_after_the_late_withdrawal_of_what_it_names_asks_and_reports_nothing() -> None:
    """The answer to the first report may overtake the withdrawal on the stream: then nothing is held for a moment."""
    world = World()
    world.keep(authorization("r1"))
    report, later = Report(KEY, "r1"), Report(KEY, "r1", "of another request")
    report.answered(world.entries, world.entries.asked(KEY), authorization("r2"), 1.0)
    world.entries.withdrawn(world.entries.by_key[KEY], rejected=True)
    assert later.look(world.entries, 1.0) == Ask(Question(KEY))


@pytest.mark.parametrize("again", ["by the report", "later"])
def test_what_comes_again_after_its_report_can_be_reported_again(again: str) -> None:
    """As after a correction of the broker's clock, which signs the same anew."""
    world = World()
    world.keep(authorization("r1"))
    report = Report(KEY, "r1")
    answer = authorization("r1" if again == "by the report" else "r2")
    report.answered(world.entries, world.entries.asked(KEY), answer, 1.0)
    world.entries.received(world.entries.by_key[KEY], authorization("r1"), 1.0)
    assert report.look(world.entries, 1.0) == Ask(report)


def test_the_end_of_a_task_drops_what_is_held_of_its_thread_in_every_scope() -> None:
    """Of the identity that ended it; connections learn of it, and other threads and identities keep what they have."""
    world, changes = World(), list[str]()
    ended = [Key("a", scope, "t") for scope in ("inference", "files")]
    others = [Key("a", "inference", "u"), Key("b", "inference", "t")]
    for key in ended + others:
        world.keep(authorization(key=key))
        world.entries.connect(authorization(key=key), Use("tag", lambda scope=key.scope: changes.append(scope)))  # type: ignore[misc]
    world.entries.task_ended("a", "t")
    assert [world.look(1.0, key)[0] for key in ended + others] == [None, None, "r1", "r1"]
    assert changes == ["inference", "files"]


def test_a_report_does_not_outlive_a_revocation() -> None:
    """A withdrawal for the rejection itself is mended by the answer; one for anything else is not."""
    for rejected in (True, False):
        world = World()
        world.keep(authorization("r1"))
        asked = world.entries.asked(KEY)
        world.entries.withdrawn(world.entries.by_key[KEY], rejected=rejected)
        Report(KEY, "r1").answered(world.entries, asked, authorization("r2"), 1.0)
        assert world.look(1.0) == ("r2" if rejected else None, False)


def test_a_refused_report_drops_what_was_rejected_only() -> None:
    """Another revision that came meanwhile stays."""
    for held in ("r1", "r2"):
        world = World()
        world.keep(authorization(held))
        Report(KEY, "r1").failed(world.entries, world.entries.asked(KEY), REFUSED, 1.0)
        assert world.look(1.0)[0] == (None if held == "r1" else "r2")


def test_what_is_wrong_with_a_report_drops_nothing() -> None:
    """It says nothing of the headers."""
    world = World()
    world.keep(authorization())
    wrong = Failure(code=grpc.StatusCode.INVALID_ARGUMENT, message="", reason_text="FIELD_INVALID")
    Report(KEY, "r1").failed(world.entries, world.entries.asked(KEY), wrong, 1.0)
    assert world.look(1.0)[0] == "r1"


def test_the_detail_of_a_report_is_cut_between_characters() -> None:
    """To what the broker takes."""
    assert Report(KEY, "r1", "x" + "é" * 200).request().detail == "x" + "é" * 127


def test_more_than_a_stream_holds_is_asked_for() -> None:
    """The thousand and first entry is not subscribed, and due as without a stream."""
    world = World(size=2000)
    world.entries.stream_is(up=True)
    for number in range(1001):
        world.keep(authorization(key=Key("", "inference", str(number))))
    assert (len(world.announced), len(world.entries.subscriptions(0.0))) == (1000, 1000)
    assert world.look(31.0, Key("", "inference", "999")) == ("r1", False)
    assert world.look(31.0, Key("", "inference", "1000")) == ("r1", True)


def test_waits_double_to_the_most_and_chance_takes_up_to_a_half() -> None:
    """And never shorter than the broker asks."""
    backoff = Backoff(0.2, 10.0)
    assert [backoff.wait(number, 1.0) for number in (0, 1, 2, 6, 99)] == [0.2, 0.4, 0.8, 10.0, 10.0]
    assert backoff.wait(0, 0.0) == 0.1
    assert backoff.wait(0, 0.0, 7.0) == 7.0


def watched() -> tuple[World, Watch, Health]:
    """A stream that has one subscription and is up."""
    world = World()
    health = Health(world.entries)
    watch = Watch(world.entries, health, chance=lambda: 1.0)
    world.keep(authorization())
    watch.opened(world, 0.0)
    watch.lives(0.0)
    return world, watch, health


def test_each_message_of_the_stream_does_what_it_says() -> None:
    """A value replaces, an error keeps, a withdrawal drops, an unknown name and an unknown event do nothing."""
    world, watch, health = watched()
    respond = pb2.WatchAuthorizationsResponse
    status = pb2.ErrorStatus(code=14, reason=35, message="down")
    for event, revision in (
        (respond(subscription_id="1", authorization=message("r2")), "r2"),
        (respond(subscription_id="1", error=pb2.SubscriptionError(status=status)), "r2"),
        (respond(subscription_id="9", withdrawal=pb2.Withdrawal()), "r2"),
        (respond(subscription_id="1"), "r2"),
        (respond(subscription_id="1", withdrawal=pb2.Withdrawal(reason=99)), None),  # type: ignore[arg-type]
    ):
        assert watch.take(world, event, 1.0) is None
        assert world.look(1.0)[0] == revision
    assert health.state(1.0).last_error is not None


def test_a_refusal_on_the_stream_drops_the_value() -> None:
    """Other errors of a subscription leave it."""
    world, watch, _ = watched()
    status = pb2.ErrorStatus(code=7, reason=12, message="no")
    refusal = pb2.WatchAuthorizationsResponse(subscription_id="1", error=pb2.SubscriptionError(status=status))
    watch.take(world, refusal, 1.0)
    assert world.look(1.0) == (None, False)


def test_an_older_stream_withdraws_but_brings_no_value() -> None:
    """Its successor is the one that is current."""
    world, watch, _ = watched()
    old = pb2.WatchAuthorizationsResponse(subscription_id="1", authorization=message("old"))
    watch.opened(Queue(), 1.0)
    watch.take(world, old, 1.0)
    assert world.look(1.0)[0] == "r1"
    gone = pb2.WatchAuthorizationsResponse(subscription_id="1", withdrawal=pb2.Withdrawal())
    watch.take(world, gone, 1.0)
    assert world.look(1.0)[0] is None


def test_no_end_of_a_stream_is_followed_by_the_next_at_once() -> None:
    """OK or not, the waits grow; they begin anew after a stream that lived 5 s; `closing` says how long at least."""
    world, watch, _ = watched()
    waits = []
    for lived in (1.0, 1.0, 5.0):
        watch.opened(world, 100.0)
        watch.lives(100.0)
        waits.append(watch.ended(world, None, 100.0 + lived))
    assert waits == [0.2, 0.4, 0.2]
    closing = pb2.WatchAuthorizationsResponse()
    closing.closing.retry_delay.FromSeconds(0)
    watch.opened(world, 200.0)
    assert watch.take(world, closing, 200.0) == 0.4


def test_a_stream_that_is_about_to_end_has_one_successor() -> None:
    """However often it says so, and though it ends then, before or after the next is opened."""
    closing = pb2.WatchAuthorizationsResponse()
    closing.closing.retry_delay.FromSeconds(0)
    for opened in (False, True):
        world, watch, _ = watched()
        assert watch.take(world, closing, 1.0) is not None
        watch.succeeded = True
        assert watch.take(world, closing, 1.0) is None
        if opened:
            watch.opened(Queue(), 2.0)
            assert watch.take(world, closing, 2.0) is None
        assert watch.ended(world, None, 3.0) is None


def test_the_broker_is_said_to_be_away_once_and_to_be_back_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often the stream fails; that a deadline passed says nothing."""
    world, watch, health = watched()
    caplog.set_level(logging.INFO)
    late = Failure(code=grpc.StatusCode.DEADLINE_EXCEEDED, message="late")
    health.call_failed(late, 1.0)
    watch.ended(world, None, 1.0)
    health.say()
    assert caplog.messages == []
    for now in (2.0, 3.0):
        watch.opened(world, now)
        watch.ended(world, AWAY, now)
        health.say()
    watch.opened(world, 4.0)
    watch.lives(4.0)
    health.say()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the broker is away (UNAVAILABLE): 1 authorizations are held, the first ends in 58 s"),
        ("INFO", "the broker is back"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://user@host.example/",
        "https://host.example\\@x/",
        "http://[::1",
        "https://host.example:0/",
        "ftp://h/",
        "https://hóst.example/",
        "https://host.example:65536/",
        "https:///x",
        "https://host.example /",
        "//host.example",
        "http://127.0.0.1:1#@host.example/",
    ],
)
def test_what_two_parsers_could_read_differently_has_no_origin(url: str) -> None:
    """It is refused by adapters, and asked about each time."""
    assert parse_origin(url) is None
    with pytest.raises(OriginError):
        check_origin(url, origin_of_adapter("https://host.example"))


@pytest.mark.parametrize(
    "url", ["https://host.example:444/", "http://host.example/", "https://host.example.evil/", "https://xhost.example/"]
)
def test_another_origin_is_refused(url: str) -> None:
    """Scheme, host and port all count."""
    with pytest.raises(OriginError):
        check_origin(url, origin_of_adapter("https://host.example"))


def test_one_origin_has_one_form() -> None:
    """Case, the default port, path and query make no difference."""
    assert str(origin_of_adapter("http://my_backend:8080")) == "http://my_backend:8080"
    assert parse_origin("HTTPS://Host.Example:443/a?b#c") == parse_origin("https://host.example")
