"""The calls under way that are to bring an authorization: equal questions are one. No I/O, as in `entries`."""

from typing import Any, Final, Generic, TypeVar

from credentialbroker.authorization import Authorization
from credentialbroker.entries import Asked, Entries
from credentialbroker.errors import Failure
from credentialbroker.questions import Question, Report
from credentialbroker.watch import Health

LandedT = TypeVar("LandedT")


class Flight(Generic[LandedT]):
    """
    A call under way.

    Attributes:
        question: what is asked.
        asked: how things stood then.
        request: the message to send.
        waiting: how many wait for it. A refresh in the background counts as one, which never gives up.
        landed: what those who wait look at; set by who begins the call.
        call: to cancel it by; None until it was begun.
    """

    __slots__ = ("asked", "call", "landed", "question", "request", "waiting")

    def __init__(self, question: Question | Report, asked: Asked) -> None:
        """
        Prepare a call.

        Raises:
            TypeError: a part of the question is of a type that it cannot be.
            ValueError: a part cannot be sent.
        """
        self.question: Final = question
        self.asked: Final = asked
        self.request: Final = question.request()
        self.waiting = 0
        self.landed: LandedT
        self.call: Any = None


class Flights(Generic[LandedT]):
    """All flights of a client. What one brings that is no longer among them is not kept."""

    def __init__(self, entries: Entries, health: Health) -> None:
        self._entries: Final = entries
        self._health: Final = health
        self._by_question: Final[dict[Question | Report, Flight[LandedT]]] = {}

    def join(self, question: Question | Report) -> tuple[Flight[LandedT], bool]:
        """
        Wait for a call. Returns it, and whether it must be begun.

        Raises:
            TypeError: a part of the question is of a type that it cannot be.
            ValueError: a part cannot be sent.
        """
        flight = self._by_question.get(question)
        is_new = flight is None
        if flight is None:
            # Made first: what is wrong with a question is told to who asked it, and to nobody else.
            flight = Flight(question, self._entries.asked(question.key))
            self._by_question[question] = flight
        flight.waiting += 1
        return flight, is_new

    def leave(self, flight: Flight[LandedT]) -> bool:
        """Wait no longer. Returns whether the call is to be cancelled: nobody else waits for it."""
        flight.waiting -= 1
        return not flight.waiting and self.remove(flight)

    def land(
        self, flight: Flight[LandedT], outcome: Authorization | Failure, now: float
    ) -> Authorization | Failure | None:
        """Take in what a call brought. Returns what those who wait get; None where they must ask again."""
        is_wanted = self.remove(flight)
        if isinstance(outcome, Authorization):
            self._health.good()
            if is_wanted:
                return flight.question.answered(self._entries, flight.asked, outcome, now)
        else:
            self._health.call_failed(outcome, now)
            if is_wanted:
                flight.question.failed(self._entries, flight.asked, outcome, now)
                return outcome
        return outcome if flight.question.is_given_late else None

    def remove(self, flight: Flight[LandedT]) -> bool:
        """Keep nothing of what a flight brings. Returns whether it would have been kept."""
        is_there = self._by_question.get(flight.question) is flight
        if is_there:
            del self._by_question[flight.question]
        return is_there

    def task_ended(self, identity: str, thread: str) -> None:
        """Forget what is held of a thread whose task was ended, and what was asked before that."""
        for question in list(self._by_question):
            if (question.key.identity, question.key.thread) == (identity, thread):
                del self._by_question[question]
        self._entries.task_ended(identity, thread)

    def calls(self) -> list[Any]:
        """Return the calls that were begun, to cancel them at the end of the client."""
        return [flight.call for flight in self._by_question.values() if flight.call is not None]
