"""What is watched: topics, the subscriptions to them, and the events that these come to."""

import asyncio
import math
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from broker.authorization import Answer, Asking, AuthorizationRequest
from broker.errors import BrokerError
from broker.model import Identity, IdentityId

if TYPE_CHECKING:
    from broker.watch.stream import WatchStream


class WithdrawalReason(StrEnum):
    """Why a value must no longer be used."""

    IDENTITY_DISABLED = "IDENTITY_DISABLED"
    IDENTITY_DELETED = "IDENTITY_DELETED"
    IDENTITY_REJECTED = "IDENTITY_REJECTED"
    GENERATION_CHANGED = "GENERATION_CHANGED"
    TASK_ENDED = "TASK_ENDED"
    TASK_REVOKED = "TASK_REVOKED"
    CREDENTIAL_REJECTED = "CREDENTIAL_REJECTED"
    NOT_ALLOWED = "NOT_ALLOWED"


class Held(NamedTuple):
    """What is known of a value that a caller holds."""

    revision: str
    identity_id: IdentityId
    generation: int
    ladder_version: int


class Topic:
    """One request of one principal, with what it comes to now: an answer, an error, or neither while it is obtained."""

    __slots__ = (
        "answer",
        "basis",
        "call",
        "due",
        "epoch",
        "error",
        "failure_time",
        "failures",
        "held",
        "identity",
        "is_gone",
        "is_obtaining",
        "number",
        "obtaining",
        "place",
        "request",
        "subscriptions",
    )

    def __init__(self, call: Asking, request: AuthorizationRequest) -> None:
        self.call = call
        self.request = request
        self.answer: Answer | None = None
        self.held: Held | None = None
        """What who has the answer holds."""
        self.error: BrokerError | None = None
        self.number = 0
        """Grows whenever there is something new to send."""
        self.epoch = -1
        """For which epoch of the snapshots the answer was decided on."""
        self.identity: Identity | None = None
        """The row that the answer was made from."""
        self.basis: tuple[object, ...] = ()
        """What the answer rests on, to see quickly whether a change concerns it."""
        self.due = 0.0
        """When it is worked out next, on the monotonic clock."""
        self.failures = 0
        self.failure_time = -math.inf
        """When something could not be obtained for it last, on the monotonic clock."""
        self.place: IdentityId | None = None
        """The identity whose changes concern it; None when it is not known which."""
        self.is_obtaining = False
        """Whether a task or a bearer is being obtained for it; until then nothing new is sent."""
        self.obtaining: asyncio.Task[None] | None = None
        self.subscriptions: dict[Subscription, None] = {}
        self.is_gone = False


class Subscription:
    """
    One subscription of a stream.

    `name_bytes` is room for the edge: the subscription's name as it stands in messages.
    """

    __slots__ = ("held", "id", "is_resumed", "name_bytes", "resend_by", "seen", "stream", "topic")

    def __init__(self, subscription_id: str, stream: "WatchStream", topic: Topic, name_bytes: bytes) -> None:
        self.id = subscription_id
        self.name_bytes = name_bytes
        self.stream = stream
        self.topic = topic
        self.held: Held | None = None
        """What its caller holds and may use."""
        self.is_resumed = False
        """Whether it came with a value from an earlier stream that was not looked at yet."""
        self.resend_by: float | None = None
        """By when that value is replaced, on the monotonic clock, while it is still the one that is held."""
        self.seen = 0
        """The number of its topic that it was sent."""


class Value(NamedTuple):
    """The value to use from now on; it has been recorded in the audit log."""

    subscription: Subscription
    answer: Answer


class Withdrawn(NamedTuple):
    """The value that is held must not be used any more."""

    subscription: Subscription
    reason: WithdrawalReason


class Failed(NamedTuple):
    """No value can be given now; `retry_delay` is when it is tried again, None when it is not."""

    subscription_id: str
    error: BrokerError
    retry_delay: float | None


class Heartbeat(NamedTuple):
    """The stream lives."""


class Closing(NamedTuple):
    """The last event of a stream: it ends well, and the next should be opened after so many seconds."""

    retry_delay: float


Event = Value | Withdrawn | Failed | Heartbeat | Closing
