"""Page tokens: where a list goes on, authenticated, so that nobody can make one up or use it for another list."""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from broker.errors import PageTokenInvalidError
from broker.keyring import Keyring

_TAG_BYTES: Final = 12


class PageTokens:
    """Makes and reads the tokens of all lists; replicas that share the key ring understand each other's."""

    def __init__(self, keyring: Keyring) -> None:
        self._key = keyring.derive_mac_key("page-token")

    def make(self, listing: str, after: str | None) -> str:
        """Return the token for the page behind `after`; empty when there is none. `listing` names list and filter."""
        if after is None:
            return ""
        place = after.encode()
        return base64.urlsafe_b64encode(self._tag(listing, place) + place).rstrip(b"=").decode("ascii")

    def read(self, listing: str, token: str) -> str:
        """
        Return where to go on; empty for the first page.

        Raises:
            PageTokenInvalidError: it was not made for this list with this filter.
        """
        if not token:
            return ""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        tag, place = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not place or not hmac.compare_digest(tag, self._tag(listing, place)):
            raise PageTokenInvalidError(violations={"page_token": "is not one that this list gave out"})
        return place.decode("utf-8", errors="replace")

    def _tag(self, listing: str, place: bytes) -> bytes:
        return hmac.digest(self._key, listing.encode() + b"\0" + place, hashlib.sha256)[:_TAG_BYTES]
