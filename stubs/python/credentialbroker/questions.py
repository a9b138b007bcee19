"""The two calls that bring an authorization, and what their answers mean to who asked. No I/O, as in `entries`."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

import grpc

from credentialbroker.authorization import Authorization, Key
from credentialbroker.entries import Asked, Entries
from credentialbroker.errors import BrokerError, Failure, withdrawn_again_and_again
from credentialbroker.origins import Origin, parse_origin
from credentialbroker.v1 import credential_broker_pb2 as pb2

_UNAUTHORIZED: Final = 401
_DETAIL_BYTES: Final = 256

_ASK_AGAIN: Final = 3
"""How often a question is asked again whose answer was withdrawn before it came."""


class Ask(NamedTuple):
    """
    The broker must be asked.

    Attributes:
        question: what it must be asked.
        meanwhile: what is given without waiting for the answer; None: wait.
    """

    question: "Question | Report"
    meanwhile: Authorization | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """
    Which headers?

    Attributes:
        key: what is asked for.
        min_validity: how many seconds they must last at least; 0: any.
        target_url: where they are to go; None: not said.
    """

    rpc: ClassVar = "GetAuthorization"
    is_given_late: ClassVar = False

    key: Key
    min_validity: float = 0.0
    target_url: str | None = None

    @property
    def origin(self) -> Origin | None:
        """The origin of the target; None also for a target that has none, which the broker is asked about each time."""
        return None if self.target_url is None else parse_origin(self.target_url)

    def look(self, entries: Entries, now: float) -> Authorization | Ask:
        """Return what is held and fits, or what to ask, be it for a refresh."""
        origin = self.origin
        if self.target_url is not None and origin is None:
            return Ask(self)
        held, refresh = entries.look(self.key, now, self.min_validity, origin)
        if held is None:
            return Ask(self)
        return Ask(Question(self.key), meanwhile=held) if refresh else held

    def request(self) -> pb2.GetAuthorizationRequest:
        """
        Return it as a message.

        Raises:
            TypeError: a part is of a type that it cannot be.
            ValueError: a part cannot be sent.
        """
        request = pb2.GetAuthorizationRequest(
            scope=self.key.scope,
            thread_id=self.key.thread,
            identity=self.key.identity,
            target_url=self.target_url or "",
        )
        if self.min_validity:
            if not math.isfinite(self.min_validity):
                raise ValueError("min_validity is a number of seconds")
            request.min_validity.FromNanoseconds(round(self.min_validity * 1e9))
        return request

    def answered(self, entries: Entries, asked: Asked, answer: Authorization, now: float) -> Authorization | None:
        """Keep the answer. Returns what to give, or None where it was withdrawn meanwhile: ask again."""
        given = entries.answered(asked, answer, now, self.min_validity, self.origin)
        if given is not None and self.target_url is not None and given.connection_tag != answer.connection_tag:
            return None  # what came on the stream may be for another backend than the one that allows this target
        return given

    def failed(self, entries: Entries, asked: Asked, failure: Failure, now: float) -> None:
        """Keep or drop what is held, as the failure says."""
        if self == Question(self.key):
            if failure.refused:
                entries.refused(asked)
            else:
                entries.refresh_failed(asked, failure, now)


@dataclass(frozen=True, slots=True)
class Report:
    """
    The backend answered 401 to these headers: which are better?

    Attributes:
        key: what they were asked for.
        revision: of the headers.
        detail: what the backend said; cut to what the broker takes.
    """

    rpc: ClassVar = "ReportRejected"
    is_given_late: ClassVar = True  # though not kept, what the end of the task overtook: one report is enough

    key: Key
    revision: str
    detail: str = field(default="", compare=False)

    def look(self, entries: Entries, now: float) -> Authorization | Ask:
        """Return what is held under another revision, which is better already, or what to ask."""
        entry = entries.by_key.get(self.key)
        if entry is None:
            return Ask(self)
        held = entry.held
        if held is not None and held.revision != self.revision and now < held.ends_at:
            entry.used = now
            return held
        # The withdrawal of what was rejected may come after the answer to its report, and take that away too. What
        # there is now is asked for: reporting the same again would tell the broker nothing.
        return Ask(Question(self.key) if entry.rejected == self.revision else self)

    def request(self) -> pb2.ReportRejectedRequest:
        """Return it as a message."""
        return pb2.ReportRejectedRequest(
            scope=self.key.scope,
            thread_id=self.key.thread,
            revision=self.revision,
            http_status=_UNAUTHORIZED,
            detail=self.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore"),
        )

    def answered(self, entries: Entries, asked: Asked, answer: Authorization, now: float) -> Authorization | None:
        """Keep the answer, if nothing but the rejection withdrew what was held. Returns it in any case."""
        entries.replaced(asked, self.revision, answer, now)
        return answer

    def failed(self, entries: Entries, asked: Asked, failure: Failure, now: float) -> None:
        """Drop what is held, if the broker refuses and it is what was rejected."""
        del now
        if failure.code is grpc.StatusCode.INVALID_ARGUMENT:
            return  # that is about the report, not about what is held
        entry = entries.by_key.get(self.key)
        if failure.refused and entry is not None and entry.held is not None and entry.held.revision == self.revision:
            entries.refused(asked)


class Patience:
    """What one who asks does with each answer: take it, fail, or ask again, but not for ever."""

    def __init__(self) -> None:
        self._withdrawn = 0

    def judge(self, answer: Authorization | Failure | None, *, joined: bool) -> Authorization | None:
        """
        Return the answer, or None to ask again.

        Args:
            answer: what the call brought; None: it was withdrawn before it came.
            joined: whether others had begun the call earlier.

        Raises:
            BrokerError: the call failed, or was withdrawn again and again.
        """
        if isinstance(answer, Failure):
            if joined and answer.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return None  # that was the time of those who began it, not of who asks
            raise BrokerError(answer)
        if answer is None:
            self._withdrawn += 1
            if self._withdrawn > _ASK_AGAIN:
                raise BrokerError(withdrawn_again_and_again())
        return answer
