"""One request as the backend sees it, and one answer as it gives it; no socket is known here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from broker.emulator.accounts import fingerprint
from broker.emulator.ledger import Entry
from broker.emulator.refusal import Refusal
from broker.emulator.routing import Operation, Route
from broker.emulator.token_request import peek
from broker.emulator.verify import ASSERTION_SCHEME

BISCUIT_HEADER = "x-openai-authorization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, read completely.

    Attributes:
        method: The HTTP method.
        path: The raw path.
        url: Scheme, host and raw path as the client addressed them, without the query.
        route: What the path means.
        headers: All header fields, names in lower case, repeats kept.
        body: The whole body.
        now: The backend's time for this call.
        entry: Its line in the ledger, to be filled.
        grant: The `grant_type` it asks for, when it is a token request that can be read.
    """

    method: str
    path: str
    url: str
    route: Route
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    now: datetime
    entry: Entry
    grant: str | None = None

    def header(self, name: str) -> str | None:
        """Return a header's only value, or None.

        Raises:
            Refusal: `header_repeated` (400) when it was sent more than once.
        """
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise Refusal(400, "header_repeated", f"{name} was sent more than once")
        return values[0] if values else None

    def forbid(self, name: str) -> None:
        """Refuse the call if it carries a header that this operation does not have.

        Raises:
            Refusal: `header_unexpected` (400).
        """
        if self.header(name) is not None:
            raise Refusal(400, "header_unexpected", f"{name} is not part of this call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back; `body` may hold a secret the caller asked for, so it is not shown."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def as_json(value: dict[str, Any], *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer of compact JSON."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status=status, body=body, headers=headers)


def refuse(refusal: Refusal, *, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The answer that says why not."""
    return as_json(refusal.as_json(), status=refusal.status, headers=(*refusal.headers, *headers))


def note_credential(call: Call) -> Call:
    """Write into the ledger what kind of credential a call presents, before anything is decided about it.

    Returns the call, with the grant it asks for where it is a token request.
    """
    sent = dict(call.headers)
    if call.route.operation in (Operation.OAUTH, Operation.OAUTH_REVOKE):
        presented = peek(sent.get("content-type"), call.body, sent.get("authorization"))
        call.entry.credential_kind = presented.kind
        call.entry.credential_fingerprint = presented.fingerprint
        return replace(call, grant=presented.grant)
    if (authorization := sent.get("authorization")) is not None:
        scheme, _, value = authorization.partition(" ")
        kinds = {ASSERTION_SCHEME: "agent_assertion", "Bearer": "bearer"}
        call.entry.credential_kind = kinds.get(scheme, "other")
        call.entry.credential_fingerprint = fingerprint(value)
    elif (biscuit := sent.get(BISCUIT_HEADER)) is not None:
        call.entry.credential_kind = "biscuit"
        call.entry.credential_fingerprint = fingerprint(biscuit)
    elif call.route.operation is Operation.TASK_REGISTER:
        call.entry.credential_kind = "signature"
    return call
