"""
What every call passes before and after its handler: one ordered, named chain.

The order, outermost first, and why: errors are mapped around everything, so nothing leaves unmapped; counting is next, so
that refused calls are counted; the guard header and the caller come before anything that costs; the deadline is bounded last,
when it is known whose call it is. The chain is composed once a method, not once a call.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from grpc import aio

from broker.errors import (
    BrokerError,
    DeadlineTooShortError,
    DrainingError,
    GuardHeaderMissingError,
    InternalError,
    WarmingUpError,
)
from broker.model import Caller
from broker.rpc.status import DETAILS_KEY, code_of, is_our_fault, status_of
from broker.telemetry import Metrics, logger

GUARD_HEADER: Final = "x-credential-broker"
GUARD_VALUE: Final = "1"
REQUEST_ID_HEADER: Final = "x-request-id"
SHORTEST_DEADLINE_SECONDS: Final = 0.05
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG: Final = logger(__name__)

Context = aio.ServicerContext[Any, Any]


class Call:
    """One call on its way through the chain."""

    __slots__ = ("caller", "deadline", "request_id")

    def __init__(self, request_id: str, caller: Caller) -> None:
        self.request_id = request_id
        self.caller = caller
        self.deadline = 0.0
        """On `time.monotonic`; set by the last link."""


Unary = Callable[[Any, Context, Call], Awaitable[Any]]
Stream = Callable[[Any, Context, Call], AsyncIterator[Any]]
CALL_KEY: Final = "_broker_call"


@dataclass(frozen=True, slots=True)
class Method:
    """The method a chain is composed for."""

    full_name: str
    kind: str

    @property
    def service(self) -> str:
        """The service's full name."""
        return self.full_name.split("/")[1]

    @property
    def name(self) -> str:
        """The method's own name."""
        return self.full_name.rpartition("/")[2]


class ServingGate:
    """Whether calls are taken: opened when warm, closed when draining."""

    __slots__ = ("refusal",)

    def __init__(self) -> None:
        self.refusal: type[BrokerError] | None = WarmingUpError

    def open(self) -> None:
        """Take calls."""
        self.refusal = None

    def close(self) -> None:
        """Refuse new calls: another replica answers them."""
        self.refusal = DrainingError
