"""
The ladder of rejections: what was tried because a backend rejected an identity's credentials, and what is tried next.

Pure and total: `climb` is given the ladder as it stands and one report, and returns the ladder as it shall stand and
the step that this report leads to. Each step is taken at most once a window however many report, in whatever order. A
step that was recorded and may not have been carried out (a crash, a backend that is away) is named again, and its
window begins anew; so whoever carries one out does so by what cannot happen twice: the version of the task, the key
that is on its way.

An assertion: a fresh upstream task; then, where that is rejected too, the mark of the route, which alone rejects; then,
where a second route rejects or the backend refuses to register a task, another agent; then the end. The backend has
accepted a signature of the agent for each fresh task, so a single route that rejects speaks against that route only.
A bearer: one refresh; then the end of that token. The two never touch what is the other's.

The ladder is kept as a JSON document in a row of the identity's, of bounded size, which all processes share.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Final, Literal, assert_never

from pydantic import Field, TypeAdapter, ValidationError

from broker.model import ScopeName, UpstreamKey

MOST_TASKS: Final = 256
"""Fresh tasks of one window that are remembered one by one; beyond, only tasks older than a window are replaced."""
MOST_BEARERS: Final = 16
_MOST_READ: Final = 1024


_Until = Annotated[float, Field(allow_inf_nan=False)]
"""Until when a record counts, in Unix seconds."""


class LadderUnreadableError(ValueError):
    """A document that a later version of the broker wrote, or that is none; the text is a constant."""


class Step(StrEnum):
    """What a report leads to."""

    REPLACE_TASK = "REPLACE_TASK"
    """Register a fresh upstream task in the place of the rejected one."""
    MARK_ROUTE = "MARK_ROUTE"
    """Nothing more: the ladder says that this route takes no assertions until the window ends."""
    REGISTER_ANEW = "REGISTER_ANEW"
    """Give the identity another agent."""
    REJECT_IDENTITY = "REJECT_IDENTITY"
    """Nothing is left to try: the identity is REJECTED, which its row must say before this ladder is kept."""
    REFRESH_BEARER = "REFRESH_BEARER"
    """Have the source obtain another token than this one."""
    END_BEARER = "END_BEARER"
    """Nothing is left to try: the ladder says that this token is no longer handed out."""
    LEAVE = "LEAVE"
    """Do nothing: what was reported is of the past, or it is not for this report to act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertionRejected:
    """The backend rejected assertions of an upstream task that is the current one."""

    generation: int
    """Of the identity, as its row has it now."""
    upstream_key: UpstreamKey
    version: int
    """Of the upstream task that was rejected."""
    register_time: float
    """When that was registered, in Unix seconds."""
    route: ScopeName
    can_register: bool
    """Whether the identity may be given another agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRefused:
    """The backend answered 401 or 403 to the registration of a task, and no clock is to blame."""

    generation: int
    can_register: bool
    reported: bool
    """Whether a rejection led to the registration; without one, an identity that cannot register is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BearerRejected:
    """The backend rejected the bearer that is the current one."""

    bearer: str
    """A keyed digest that names the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BearerUnchanged:
    """The refresh of a rejected bearer brought the same token, or showed that only a person can bring another."""

    bearer: str


Report = AssertionRejected | RegistrationRefused | BearerRejected | BearerUnchanged


@dataclass(frozen=True, slots=True)
class Replacement:
    """One fresh task that was ordered: for which version of the upstream task, and how long it counts."""

    version: int
    until: _Until


@dataclass(frozen=True, slots=True)
class Mark:
    """A route that alone rejects, and until when it is believed to."""

    route: ScopeName
    until: _Until


@dataclass(frozen=True, slots=True)
class Renewal:
    """One other agent that was ordered: for an identity of which generation, and how long it counts."""

    generation: int
    until: _Until


@dataclass(frozen=True, slots=True)
class Refresh:
    """One refresh that was ordered: because of which token, and how long it counts."""

    bearer: str
    until: _Until


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """
    What was tried so far. All times are Unix seconds.

    `replacements` (by the digest of the upstream key) and `mark` are about the agent of `generation`; another agent
    begins without them.
    """

    format: Literal[1] = 1
    """Of the document; what changes the meaning of the others comes with another one."""
    generation: int = 0
    replacements: Mapping[str, Replacement] = field(default_factory=dict)
    mark: Mark | None = None
    renewal: Renewal | None = None
    refresh: Refresh | None = None
    rejected_bearers: tuple[str, ...] = ()
    """Tokens that are over, the latest last. Not bound to a window: only another token helps."""


# --- climbing ---------------------------------------------------------------------------------------------------------


def climb(ladder: Ladder, report: Report, *, now: float, window: float) -> tuple[Ladder, Step]:
    """
    Say what a report leads to.

    Args:
        ladder: as it stands.
        report: what was rejected.
        now: the time, in Unix seconds.
        window: seconds for which a step that was taken is not taken again.

    Returns:
        The ladder as it shall stand before the step is carried out, equal to the given one when there is nothing new
        to record; and the step.
    """
    match report:
        case AssertionRejected() | RegistrationRefused():
            if ladder.generation > report.generation:
                # Another process has given the identity another agent, and this one has yet to hear of it.
                return ladder, Step.LEAVE
            ladder = _of_generation(ladder, report.generation, now)
            if isinstance(report, RegistrationRefused):
                return _agent_refused(ladder, report, now, window)
            return _assertion_rejected(ladder, report, now, window)
        case BearerRejected():
            return _bearer_rejected(ladder, report.bearer, now, window)
        case BearerUnchanged():
            return _without(ladder, report.bearer), Step.END_BEARER
        case _:
            assert_never(report)


def _of_generation(ladder: Ladder, generation: int, now: float) -> Ladder:
    """Let go of what is over: its window, or the agent it was about."""
    renewal = ladder.renewal
    # One generation on, the other agent is there; two on, somebody else has changed the identity since.
    if renewal is not None and (renewal.until <= now or renewal.generation not in (generation, generation - 1)):
        renewal = None
    if ladder.generation != generation:
        return replace(ladder, generation=generation, replacements={}, mark=None, renewal=renewal)
    mark = ladder.mark
    return replace(
        ladder,
        replacements={key: one for key, one in ladder.replacements.items() if one.until > now},
        mark=None if mark is not None and mark.until <= now else mark,
        renewal=renewal,
    )


def _assertion_rejected(ladder: Ladder, report: AssertionRejected, now: float, window: float) -> tuple[Ladder, Step]:
    if ladder.renewal is not None and ladder.renewal.generation == report.generation:
        return _another_agent(ladder, report, now, window)
    ordered = _with_fresh_task(ladder, report, now, window)
    if ordered is not None:
        return ordered, Step.REPLACE_TASK
    if ladder.mark is None:
        return replace(ladder, mark=Mark(report.route, now + window)), Step.MARK_ROUTE
    if ladder.mark.route == report.route:
        return ladder, Step.MARK_ROUTE
    return _another_agent(ladder, report, now, window)


def _with_fresh_task(ladder: Ladder, report: AssertionRejected, now: float, window: float) -> Ladder | None:
    """Order a fresh task; None when the task that was rejected is a fresh one itself."""
    if ladder.renewal is not None:
        return None  # the agent is new, and so are all of its tasks
    key = digest(report.upstream_key)
    known = ladder.replacements.get(key)
    if known is not None and known.version != report.version:
        return None
    if known is not None or len(ladder.replacements) < MOST_TASKS:
        return replace(ladder, replacements={**ladder.replacements, key: Replacement(report.version, now + window)})
    return ladder if report.register_time <= now - window else None


def _agent_refused(ladder: Ladder, report: RegistrationRefused, now: float, window: float) -> tuple[Ladder, Step]:
    if not report.can_register and not report.reported:
        return ladder, Step.LEAVE
    return _another_agent(ladder, report, now, window)


def _another_agent(
    ladder: Ladder, report: AssertionRejected | RegistrationRefused, now: float, window: float
) -> tuple[Ladder, Step]:
    had_one = ladder.renewal is not None and ladder.renewal.generation != report.generation
    if had_one or not report.can_register:
        # Whoever makes it serve again, a person, begins at the foot of the ladder.
        return replace(ladder, replacements={}, mark=None, renewal=None), Step.REJECT_IDENTITY
    return replace(ladder, renewal=Renewal(report.generation, now + window)), Step.REGISTER_ANEW


def _bearer_rejected(ladder: Ladder, bearer: str, now: float, window: float) -> tuple[Ladder, Step]:
    if bearer in ladder.rejected_bearers:
        return ladder, Step.END_BEARER
    refresh = ladder.refresh
    if refresh is not None and refresh.until > now and refresh.bearer != bearer:
        return _without(ladder, bearer), Step.END_BEARER  # it is what the refresh brought
    return replace(ladder, refresh=Refresh(bearer, now + window)), Step.REFRESH_BEARER


def _without(ladder: Ladder, bearer: str) -> Ladder:
    if bearer in ladder.rejected_bearers:
        return ladder
    return replace(ladder, rejected_bearers=(*ladder.rejected_bearers, bearer)[-MOST_BEARERS:])


# --- asking -----------------------------------------------------------------------------------------------------------


def rejected_routes(document: str, *, generation: int, now: float) -> tuple[ScopeName, ...]:
    """
    Return the scopes whose routes are believed to take no assertions of the agent of a generation.

    A document that cannot be read says nothing, here and below: only whoever would write it must understand it.
    """
    ladder = _readable(document)
    mark = ladder.mark
    if mark is None or mark.until <= now or ladder.generation != generation:
        return ()
    return (mark.route,)


def rejected_bearers(document: str) -> tuple[str, ...]:
    """Return the tokens that are over, by their keyed digests."""
    return _readable(document).rejected_bearers


def digest(upstream_key: UpstreamKey) -> str:
    """Name an upstream task in few characters: its key may hold a whole thread id."""
    return hashlib.blake2b(upstream_key.encode(), digest_size=9).hexdigest()


# --- the document -----------------------------------------------------------------------------------------------------


def write(ladder: Ladder) -> str:
    """Return the document of a ladder."""
    return _DOCUMENT.dump_json(ladder).decode()


@functools.lru_cache(maxsize=_MOST_READ)
def read(document: str) -> Ladder:
    """
    Return the ladder of a document; an empty one is a ladder on which nothing was tried.

    Members that this version does not know are ignored: what changes the meaning of others comes with another format.

    Raises:
        LadderUnreadableError: a later version of the broker wrote it in another format, or it is not a ladder.
    """
    if not document:
        return Ladder()
    try:
        return _DOCUMENT.validate_json(document, strict=True)
    except ValidationError:
        raise LadderUnreadableError("the document is not a ladder that this version of the broker can read") from None


def _readable(document: str) -> Ladder:
    try:
        return read(document)
    except LadderUnreadableError:
        return Ladder()


_DOCUMENT: Final = TypeAdapter(Ladder)
