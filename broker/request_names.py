"""
The caller's own names for what must not be done twice: a `request_id`, and a digest of what was asked under it.

The digest is keyed and covers the whole content, secrets included, so that the same id with other content is found out
and the store learns nothing of either.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.keyring import Keyring
from broker.model import IdentityName, Secret
from broker.store import CreateRequest

REQUEST_MEMORY_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class KeyChange:
    """The content of every request for a change of an identity's key."""

    name: IdentityName


class RequestNames:
    """Names requests as the store remembers them."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._key = keyring.derive_mac_key("create-request")
        self._clock = clock

    def of(self, request_id: str, order: object) -> CreateRequest:
        """Return what the store remembers of a request: `order` is a dataclass with all that was asked."""
        now = self._clock.now()
        content = json.dumps(_plain(order), sort_keys=True).encode()
        return CreateRequest(
            request_id=request_id,
            fingerprint=hmac.digest(self._key, content, hashlib.sha256),
            now=now,
            remember_until=now + REQUEST_MEMORY_SECONDS,
        )


def _plain(value: object) -> object:
    """Turn an order into JSON, secrets revealed: only for the keyed digest."""
    if isinstance(value, Secret):
        return value.reveal()
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        return value
    return {"type": type(value).__name__, **{name: _plain(getattr(value, name)) for name in fields}}
