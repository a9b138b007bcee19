"""What the broker hands out, with its times on this machine's monotonic clock."""

import time
from typing import Final, NamedTuple, NoReturn

from credentialbroker.v1 import credential_broker_pb2 as pb2

_NANOSECONDS: Final = 1e9


class Key(NamedTuple):
    """What an authorization is kept under, each as it was asked for; an empty identity is the caller's default."""

    identity: str
    scope: str
    thread: str


class Headers(tuple[tuple[str, str], ...]):
    """Names, in lower case, and values; `dict(headers)` suits most HTTP clients. Printed, it shows the names only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{', '.join(name for name, _ in self)}>"


class Authorization:
    """
    All headers for calls of one scope and thread. It never changes, and may be shared by threads and tasks.

    Attach all headers or none, each in the place of any of its name, and only to calls to the identity's backend. Keep
    it in memory only: printing it shows no value, and it cannot be pickled.

    Attributes:
        headers: what to attach.
        kind: a value of the enum `CredentialKind`.
        reason: a value of the enum `DecisionReason`: why it is of this kind.
        revision: names the credential; what `report_rejected` sends.
        identity: whose headers these are.
        connection_tag: connections that were authenticated under another tag must be closed.
        stale: whether the answer may lag behind; the headers are usable all the same.
        key: what was asked for.
    """

    __slots__ = (
        "connection_tag",
        "ends_at",
        "headers",
        "identity",
        "key",
        "kind",
        "reason",
        "refresh_at",
        "revision",
        "stale",
    )

    def __init__(self, message: pb2.Authorization, key: Key, received: float) -> None:
        """
        Take over a message.

        Args:
            message: from the broker.
            key: what was asked for.
            received: when it came, in seconds of `time.monotonic()`. The broker's times are counted from then: its
                clock and this machine's are never compared.
        """
        sent = message.server_time.ToNanoseconds()
        self.headers: Final = Headers((header.name, header.value) for header in message.headers)
        self.kind: Final = message.kind
        self.reason: Final = message.reason
        self.revision: Final = message.revision
        self.identity: Final = message.identity
        self.connection_tag: Final = message.connection_tag
        self.stale: Final = message.stale
        self.key: Final = key
        self.refresh_at: Final = received + (message.refresh_time.ToNanoseconds() - sent) / _NANOSECONDS
        self.ends_at: Final = received + (message.expire_time.ToNanoseconds() - sent) / _NANOSECONDS

    @property
    def kind_text(self) -> str:
        """The bare word of the kind, `AGENT_ASSERTION` or `BEARER`; the number of one that is not known here."""
        known = pb2.CredentialKind.DESCRIPTOR.values_by_number.get(self.kind)
        return known.name.removeprefix("CREDENTIAL_KIND_") if known else str(self.kind)

    @property
    def reason_text(self) -> str:
        """The bare word of the reason, for example `TASK_ASSERTION`; the number of one that is not known here."""
        known = pb2.DecisionReason.DESCRIPTOR.values_by_number.get(self.reason)
        return known.name.removeprefix("DECISION_REASON_") if known else str(self.reason)

    def expires_in(self) -> float:
        """Return for how many seconds the headers may still be used; negative after their end."""
        return self.ends_at - time.monotonic()

    def refresh_in(self) -> float:
        """Return in how many seconds the broker wants to be asked again; negative when that is due."""
        return self.refresh_at - time.monotonic()

    def __repr__(self) -> str:
        return (
            f"<Authorization {self.kind_text} {self.reason_text} of {self.identity!r}"
            f" for {self.key.scope!r} {self.key.thread!r}, {self.expires_in():.1f} s left>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("an authorization holds secrets and is kept in memory only")
