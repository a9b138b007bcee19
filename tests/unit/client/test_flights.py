"""The calls under way: who joins, who gives up, and what comes too late. No clock, no network."""

import grpc
from credentialbroker.authorization import Key
from credentialbroker.entries import Entries
from credentialbroker.errors import Failure
from credentialbroker.flights import Flights
from credentialbroker.questions import Ask, Question, Report
from credentialbroker.watch import Health

from tests.unit.client.conftest import authorization

KEY = Key("", "inference", "t")
CANCELLED = Failure(code=grpc.StatusCode.CANCELLED, message="nobody waits")


class World:
    """Flights over entries."""

    def __init__(self) -> None:
        self.entries = Entries(size=10, idle_seconds=300.0, watched=False, chance=lambda: 1.0)
        self.flights: Flights[None] = Flights(self.entries, Health(self.entries))

    def hold(self, revision: str = "r1") -> None:
        flight, _ = self.flights.join(Question(KEY))
        assert self.flights.land(flight, authorization(revision), 0.0) is not None

    @property
    def held(self) -> str | None:
        found = Question(KEY).look(self.entries, 1.0)
        return None if isinstance(found, Ask) else found.revision


def test_equal_questions_are_one_call_until_it_lands() -> None:
    """A report is another question, and what a report says of the answer makes no difference."""
    world = World()
    flight, begins = world.flights.join(Question(KEY))
    assert begins
    assert world.flights.join(Question(KEY)) == (flight, False)
    report, _ = world.flights.join(Report(KEY, "r1", "task_stale"))
    assert report is not flight
    assert world.flights.join(Report(KEY, "r1", "something else")) == (report, False)
    world.flights.land(flight, authorization(), 0.0)
    assert world.flights.join(Question(KEY))[1]


def test_a_call_that_all_gave_up_is_cancelled_and_brings_nothing() -> None:
    """Not by the first who leaves; an answer that was faster than the cancelling is not kept."""
    world = World()
    flight, _ = world.flights.join(Question(KEY))
    world.flights.join(Question(KEY))
    assert [world.flights.leave(flight), world.flights.leave(flight)] == [False, True]
    assert world.flights.land(flight, authorization(), 0.0) is None
    assert world.held is None


def test_giving_up_says_nothing_of_what_is_held() -> None:
    """It is not a refresh that failed: the next use may begin one at once."""
    world = World()
    world.hold()
    flight, _ = world.flights.join(Question(KEY))
    world.flights.leave(flight)
    world.flights.land(flight, CANCELLED, 1.0)
    assert Question(KEY).look(world.entries, 31.0) == Ask(Question(KEY), world.entries.by_key[KEY].held)


def test_a_refresh_that_joined_a_call_keeps_it_from_being_cancelled() -> None:
    """Nobody would begin another."""
    world = World()
    flight, _ = world.flights.join(Question(KEY))
    world.flights.join(Question(KEY))  # the refresh, which never leaves
    assert not world.flights.leave(flight)


def test_what_was_asked_before_a_task_ended_is_not_kept() -> None:
    """Who asked asks again, though nothing was held; who reported has the answer. Another thread's call goes on."""
    world = World()
    asked, _ = world.flights.join(Question(KEY))
    reported, _ = world.flights.join(Report(KEY, "r0"))
    other, _ = world.flights.join(Question(Key("", "inference", "u")))
    world.flights.task_ended("", "t")
    assert world.flights.join(Question(KEY))[1]
    better = authorization("r2")
    assert world.flights.land(asked, authorization("r1"), 1.0) is None
    assert world.flights.land(reported, better, 1.0) is better
    assert world.held is None
    assert world.flights.land(other, authorization(key=other.question.key), 1.0) is not None


def test_ten_that_meet_the_same_401_are_mended_by_one_report_though_a_withdrawal_comes_late() -> None:
    """Nine join it; the tenth comes when the stream took away, for a moment, what the report had brought."""
    world = World()
    world.hold("r1")
    report = Report(KEY, "r1")
    joined = [world.flights.join(report) for _ in range(9)]
    assert [begins for _, begins in joined] == [True] + [False] * 8
    world.flights.land(joined[0][0], authorization("r2"), 1.0)
    world.entries.withdrawn(world.entries.by_key[KEY], rejected=True)
    found = report.look(world.entries, 1.0)
    assert found == Ask(Question(KEY))
