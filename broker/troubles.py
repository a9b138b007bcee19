"""
What is remembered of task registrations that failed: nobody is asked again before it makes sense.

A transient failure is held against its own upstream task and cools down with growing, spread-out waits; any other is
held against the whole identity, since the backend would say the same to every task of it. A failure is forgotten when
its registration succeeds, when the identity has another generation, and when its row was written since, by whichever
process: an operator changed something, and wants to see at once whether it helped.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from broker.errors import BrokerError
from broker.model import Identity, IdentityId, UpstreamKey
from broker.policy import TaskFact

_SHORTEST: Final = 1.0
_LONGEST: Final = 60.0
_REFUSED: Final = 60.0
_LONGEST_REFUSED: Final = 3600.0
_MOST: Final = 100_000

_Key = tuple[IdentityId, int, UpstreamKey | None]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a registration is not tried now, and until when (monotonic)."""

    fact: TaskFact
    outcome: type[BrokerError]
    until: float
    strikes: int
    """How many failures in a row there were, those of one moment counted once."""
    identity_version: int
    """The version of the identity that failed; a later one starts with a clean slate."""
    status: int | None = None
    """What the backend answered; None when it did not, or the failure was not the backend's."""
    since: float = 0.0
    """When the last of them was (monotonic)."""


class Troubles:
    """The failures of this process's registrations; as many as fit, the oldest go first. Times are monotonic."""

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._known: OrderedDict[_Key, Trouble] = OrderedDict()

    def of(self, identity: Identity, upstream_key: UpstreamKey, *, now: float) -> Trouble | None:
        """Return why an upstream task of an identity cannot be registered now; None when nothing speaks against it."""
        return next((trouble for trouble in self._of(identity, upstream_key) if trouble.until > now), None)

    def last(self, identity: Identity, upstream_key: UpstreamKey) -> Trouble | None:
        """Return how the last registration failed, even if it may be tried again now; None when the last went well."""
        return next(self._of(identity, upstream_key), None)

    def _of(self, identity: Identity, upstream_key: UpstreamKey) -> Iterator[Trouble]:
        for upstream in (None, upstream_key):
            trouble = self._standing((identity.id, identity.generation, upstream), identity)
            if trouble is not None:
                yield trouble

    def note(
        self,
        identity: Identity,
        upstream_key: UpstreamKey,
        fact: TaskFact,
        error: BrokerError,
        *,
        now: float,
        status: int | None = None,
    ) -> Trouble:
        """Remember a failure for a time that grows with each in a row, and return what is held from here on."""
        whole_identity = fact is not TaskFact.COOLING_DOWN
        key = (identity.id, identity.generation, None if whole_identity else upstream_key)
        before = self._standing(key, identity)
        earlier = 0 if before is None else before.strikes
        strikes = earlier if before is not None and before.until > now else earlier + 1
        doubled = 2.0 ** min(strikes - 1, 10)
        if whole_identity:
            seconds = min(_REFUSED * doubled, _LONGEST_REFUSED)
        else:
            seconds = min(_SHORTEST * doubled, _LONGEST)
            seconds = max(seconds * self._jitter.uniform(0.5, 1.0), error.retry_after or 0.0)
        trouble = Trouble(fact, type(error), now + seconds, strikes, identity.version, status, now)
        self._known[key] = trouble
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return trouble

    def _standing(self, key: _Key, identity: Identity) -> Trouble | None:
        trouble = self._known.get(key)
        return None if trouble is None or trouble.identity_version < identity.version else trouble

    def settle(self, identity: Identity, upstream_key: UpstreamKey) -> None:
        """Forget what a registration that went well has disproved."""
        for upstream in (None, upstream_key):
            self._known.pop((identity.id, identity.generation, upstream), None)

    def forget(self, identity_id: IdentityId) -> None:
        """Forget all that is held against an identity."""
        for key in [key for key in self._known if key[0] == identity_id]:
            del self._known[key]
