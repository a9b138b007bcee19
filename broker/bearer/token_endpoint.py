"""
An issuer's token endpoint (RFC 6749 section 3.2): how it is asked, how its answers are read, what its refusals mean.

What is asked for is the grants' business. A library (oauthlib, Authlib) would write the form and read the answer, both
less strictly than here; docs/adr/0018 has the comparison.
"""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote_plus

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer
from broker.bearer.file import LARGEST_TOKEN_BYTES, BearerFileError, as_token, read_token
from broker.clock import Clock
from broker.errors import BrokerError, IssuerDownError, ReauthRequiredError
from broker.model import Secret
from broker.outbound import FailureKind, GuardedHttp, OutboundFailure

_OPERATION: Final = "obtain_token"
_REQUEST_TIMEOUT: Final = 408
_TRANSIENT_CODES: Final = frozenset({"server_error", "slow_down", "temporarily_unavailable"})
"""What some issuers say with a 400 although nothing is wrong with the request."""
_TRANSIENT_FILE_ERRORS: Final = (FileNotFoundError, InterruptedError, TimeoutError, BlockingIOError)
_LONGEST_LIFETIME: Final = 366 * 86400.0

ClientAuth = Literal["basic", "post"]


class ProofFile:
    """
    A file whose content proves who asks: a client's secret, a platform's token. It is read anew for each exchange.

    It remembers what was read last, so that after a refusal for good nobody asks again with the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: Secret | None = None

    async def read(self) -> Secret:
        """
        Return what the file holds now.

        Raises:
            IssuerDownError: it is not there, or cannot be read now.
            ReauthRequiredError: it holds nothing usable, or may not be read.
        """
        try:
            self._read = await asyncio.to_thread(read_token, self._path)
        except BearerFileError as error:
            self._read = None
            transient = isinstance(error.__cause__, _TRANSIENT_FILE_ERRORS)
            raise (IssuerDownError if transient else ReauthRequiredError)(note=str(error)) from error
        return self._read

    async def changed(self) -> bool:
        """Say whether the file holds something usable that was not read last."""
        try:
            return await asyncio.to_thread(read_token, self._path) != self._read
        except BearerFileError:
            return False


@dataclass(frozen=True, slots=True)
class Client:
    """As which client the issuer is asked, and how it proves that."""

    client_id: str
    secret_file: ProofFile | None
    auth: ClientAuth = "basic"

    async def proof(self) -> tuple[dict[str, str | Secret], dict[str, str | Secret]]:
        """
        Return the headers and the form fields that say and prove who asks.

        Raises:
            IssuerDownError: the secret cannot be read now.
            ReauthRequiredError: there is no usable secret.
        """
        if self.secret_file is None:
            return {}, {"client_id": self.client_id}
        secret = await self.secret_file.read()
        if self.auth == "post":
            return {}, {"client_id": self.client_id, "client_secret": secret}
        # Both are encoded as in a form before they are put together (RFC 6749 section 2.3.1).
        pair = f"{quote_plus(self.client_id)}:{quote_plus(secret.reveal())}"
        return {"authorization": Secret(f"Basic {base64.b64encode(pair.encode()).decode()}")}, {}

    async def changed(self) -> bool:
        """Say whether the secret is another than the one that was sent last."""
        return self.secret_file is not None and await self.secret_file.changed()


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """What an issuer answered, its token already checked."""

    access_token: Secret
    send_time: float
    """Unix seconds, taken before the request was sent: from then on the token's life counts."""
    body: Mapping[str, Any] = field(repr=False)

    def text(self, name: str) -> str:
        """
        Return a field that must be a text with more than spaces in it.

        Raises:
            IssuerDownError: it is not.
        """
        value = self.body.get(name)
        if not isinstance(value, str) or not value.strip():
            raise unusable(f"the answer's {name} is missing or blank")
        return value

    def bearer(self, *, lifetime: float | None) -> Bearer:
        """
        Return the token with its end: the earlier of what the answer and the token itself say.

        Args:
            lifetime: seconds that it may be used where neither of them says.

        Raises:
            IssuerDownError: `expires_in` is no number of seconds.
        """
        lives = self.body.get("expires_in")
        ends = []
        if lives is not None:
            if isinstance(lives, str) and lives.isascii() and lives.isdecimal():  # as some issuers write it
                lives = int(lives)
            if not isinstance(lives, int | float) or isinstance(lives, bool):
                raise unusable("the answer's expires_in is no number of seconds")
            ends.append(self.send_time + min(lives, _LONGEST_LIFETIME))
        said = unverified_expire_time(self.access_token)
        if said is not None:
            ends.append(said)
        if not ends and lifetime is not None:
            ends.append(self.send_time + lifetime)
        return Bearer(self.access_token, min(ends, default=None), self.send_time)


class TokenEndpoint:
    """
    One issuer's token endpoint.

    Args:
        http: where requests go out; allows the endpoint's origin.
        clock: times the requests.
        url: the endpoint.
        timeout: seconds that an exchange may take.
    """

    def __init__(self, http: GuardedHttp, clock: Clock, *, url: str, timeout: float) -> None:
        self._http = http
        self._clock = clock
        self._url = url
        self._timeout = timeout

    async def ask(self, fields: Mapping[str, str | Secret | None], *, client: Client | None = None) -> TokenAnswer:
        """
        Send one request and read its answer.

        Args:
            fields: the form; what is None is left out.
            client: who asks, where the grant does not say so by itself.

        Raises:
            IssuerDownError: the issuer was not reached, failed, asks to wait, or answered with what cannot be used.
            ReauthRequiredError: it refused, and will again until something is changed.
        """
        headers, proof = ({}, {}) if client is None else await client.proof()
        form = {name: value for name, value in fields.items() if value is not None} | proof
        send_time = self._clock.now()
        try:
            answer = await self._http.send_form(
                _OPERATION,
                self._url,
                form,
                headers=headers,
                timeout=self._timeout,
                deadline=self._clock.monotonic() + self._timeout,
            )
        except OutboundFailure as failure:
            raise _meaning(failure) from failure
        token = answer.body.get("access_token")
        access_token = as_token(token) if isinstance(token, str) else None
        if access_token is None:
            raise unusable(f"the answer's access_token is not one token of at most {LARGEST_TOKEN_BYTES} bytes")
        token_type = answer.body.get("token_type")
        if not isinstance(token_type, str) or token_type.lower() != "bearer":
            raise unusable("the answer's token_type is not bearer")
        return TokenAnswer(access_token, send_time, answer.body)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def unusable(problem: str) -> IssuerDownError:
    """Return what an answer is that cannot be used: the issuer may mend it, and nobody here can."""
    return IssuerDownError(note=f"{_OPERATION}: {problem}")


def _meaning(failure: OutboundFailure) -> BrokerError:
    # 408, 429, 5xx and the network are worth another try, as upstream has it; any other 4xx is for good.
    transient = failure.status == _REQUEST_TIMEOUT or (failure.code or "") in _TRANSIENT_CODES
    if failure.kind is FailureKind.REFUSED and not transient:
        return ReauthRequiredError(note=failure.note)
    return IssuerDownError(retry_after=failure.retry_after, note=failure.note)
