"""
WatchAuthorizations: authorizations kept current for whoever subscribed to them.

A *topic* is one request of one principal. However many subscriptions it has, in however many streams, its value is
worked out once: at first, before it is due, and when the snapshots tell that something it depends on changed. A
*stream* only notes which of its subscriptions have something new, and its sender takes what is current at that moment.
So a reader that is slow skips values instead of queueing them, and memory is bounded by the number of subscriptions.

Nothing leaves on a decision of earlier: what is taken to be sent was decided on what the snapshots hold right then, and
is recorded in the audit log before. docs/adr/0026 says why it is built so.
"""

from broker.watch.hub import EARLIEST_END, LATEST_END, LONGEST_REOPENING_SECONDS, WatchHub, WatchSettings
from broker.watch.stream import MOST_SUBSCRIPTIONS, WatchStream
from broker.watch.topics import Closing, Event, Failed, Heartbeat, Subscription, Value, WithdrawalReason, Withdrawn

__all__ = [
    "EARLIEST_END",
    "LATEST_END",
    "LONGEST_REOPENING_SECONDS",
    "MOST_SUBSCRIPTIONS",
    "Closing",
    "Event",
    "Failed",
    "Heartbeat",
    "Subscription",
    "Value",
    "WatchHub",
    "WatchSettings",
    "WatchStream",
    "WithdrawalReason",
    "Withdrawn",
]
