"""What the parts of a client share, whichever runtime it is for."""

from contextlib import AbstractContextManager
from typing import Any, Final, Generic

import grpc

from credentialbroker.channels import Channels, ChannelT
from credentialbroker.entries import Entries
from credentialbroker.errors import ClosedError, Failure
from credentialbroker.flights import Flights, LandedT
from credentialbroker.watch import Health, Watch


class Core(Generic[ChannelT, LandedT]):
    """
    The state of a client.

    Attributes:
        lock: held while what follows is read or changed, and never during I/O.
        entries: what is held.
        health: whether the broker is away.
        watch: the streams.
        flights: the calls under way.
        is_closed: whether the client was closed.
        channels: the connections to the broker, with a lock of their own.
        watches: whether there are to be streams.
        timeout: seconds that a call may take.
        silence: seconds without a message after which a stream is dead.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        entries: Entries,
        channels: Channels[ChannelT],
        *,
        watches: bool,
        timeout: float,
        silence: float,
    ) -> None:
        """Put a client together that holds nothing yet. Args: as the attributes."""
        self.lock = lock
        self.entries: Final = entries
        self.health: Final = Health(entries)
        self.watch: Final = Watch(entries, self.health)
        self.flights: Flights[LandedT] = Flights(entries, self.health)
        self.is_closed = False
        self.channels = channels
        self.watches: Final = watches
        self.timeout: Final = timeout
        self.silence: Final = silence

    def check_open(self) -> None:
        """Raise ClosedError if the client was closed."""
        if self.is_closed:
            raise ClosedError

    def seconds(self, timeout: float | None) -> float:
        """Return how long a call may take whose caller gave that time."""
        return self.timeout if timeout is None else min(timeout, self.timeout)

    def silent(self) -> Failure:
        """Return the failure of a stream that is dead."""
        return Failure(code=grpc.StatusCode.UNAVAILABLE, message=f"the stream was silent for {self.silence:g} s")

    def close(self) -> None:
        """Forget what is held; whoever waits is to be told. The lock must be held."""
        self.is_closed = True
        self.entries.outbox = None
        self.entries.clear()
        self.entries.stream_is(up=False)

    def in_child(self, lock: AbstractContextManager[Any]) -> None:
        """
        Go on in a child made by a fork, with what is held.

        The calls under way are the parent's, and so are the sockets. If this fails the client is closed in the child.
        """
        was_closed, self.is_closed = self.is_closed, True
        self.lock = lock
        self.flights = Flights(self.entries, self.health)
        if not was_closed:
            self.channels = self.channels.in_child()
            self.entries.look_at_all_again()
            self.is_closed = False
