"""
Tokens for which a platform's token is exchanged: workload identity.

`WorkloadIdentity` is OpenAI's (codex-rs/workload-identity/src/exchange.rs and login/src/auth/workload_identity.rs at
343074d4207d), with the jwt-bearer grant and rules of its own; `TokenExchange` is RFC 8693, for other issuers.
"""

from dataclasses import dataclass
from typing import Final

from broker.auth_json import unverified_claims
from broker.bearer import Bearer
from broker.bearer.kept import Windows
from broker.bearer.token_endpoint import Client, ProofFile, TokenAnswer, TokenEndpoint, unusable
from broker.errors import ReauthRequiredError

WORKLOAD_IDENTITY_WINDOWS: Final = Windows(longest_advisory=120.0, advisory_share=1 / 2)
"""Upstream refreshes min(120 s, half of the life) ahead."""
LARGEST_ANSWER_BYTES: Final = 1024 * 1024
_LONGEST_LIFE_SECONDS: Final = 3600
_ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a kind


@dataclass(frozen=True, slots=True)
class _Subject:
    """Whom tokens are for; the same for as long as the broker runs."""

    account_id: str
    account_user_id: str
    user_id: str


class WorkloadIdentity:
    """
    Exchanges a platform's token by OpenAI's jwt-bearer grant.

    Args:
        endpoint: where.
        identity_token: the platform's token.
        federation_rule_id: the rule by which the issuer trusts the platform.
        context: the workload identity context, where one is used.
        account_id: the only account that tokens may be of; None takes that of the first one.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        identity_token: ProofFile,
        *,
        federation_rule_id: str,
        context: ProofFile | None = None,
        account_id: str | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._identity_token = identity_token
        self._federation_rule_id = federation_rule_id
        self._context = context
        self._account_id = account_id
        self._subject: _Subject | None = None

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:  # noqa: ARG002 - each token comes anew
        """
        Exchange the platform's token as it is now.

        Raises:
            IssuerDownError: it cannot be had now.
            ReauthRequiredError: the issuer refuses the platform's token, there is no usable one, or the token that came
                is of somebody else than those before.
        """
        answer = await self._endpoint.ask(
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "assertion": await self._identity_token.read(),
                "federation_rule_id": self._federation_rule_id,
                "workload_identity_context": None if self._context is None else await self._context.read(),
            }
        )
        lives = answer.body.get("expires_in")
        if type(lives) is not int or not 0 < lives <= _LONGEST_LIFE_SECONDS:
            raise unusable(f"the answer's expires_in is not from 1 to {_LONGEST_LIFE_SECONDS}")
        if answer.text("issued_token_type") != _ACCESS_TOKEN_TYPE:
            raise unusable("the answer's issued_token_type is not an access token's")
        answer.text("scope")
        if answer.body.get("chatgpt_plan_type") is not None:
            answer.text("chatgpt_plan_type")
        self._pin(answer)
        return answer.bearer(lifetime=None)

    async def changed(self) -> bool:
        """Say whether the platform's token, or the context, is another than the one that was refused."""
        return await self._identity_token.changed() or (self._context is not None and await self._context.changed())

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    def _pin(self, answer: TokenAnswer) -> None:
        """Take tokens of one subject only: whoever changes it at the issuer must not change who we are here."""
        subject = _Subject(
            answer.text("chatgpt_account_id"), answer.text("chatgpt_account_user_id"), answer.text("user_id")
        )
        if unverified_claims(answer.access_token).unverified_user_id != subject.user_id:
            raise ReauthRequiredError(note="the token that came is of another user than the answer says")
        if self._account_id not in (None, subject.account_id):
            raise ReauthRequiredError(note="the token that came is of another account than the configured one")
        if self._subject not in (None, subject):
            raise ReauthRequiredError(note="the token that came is of another account or user than those before")
        self._subject = subject


class TokenExchange:
    """
    Exchanges a platform's token by RFC 8693.

    Args:
        endpoint: where.
        identity_token: the platform's token.
        subject_token_type: what kind of token that is.
        client: as whom, where the issuer wants a client.
        scopes: what the token shall be good for; none leaves it to the issuer.
        audience: whom it shall be for, by name.
        resource: whom it shall be for, as a URI.
        lifetime: seconds that a token may be used, where neither the answer nor the token says.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        identity_token: ProofFile,
        *,
        subject_token_type: str,
        client: Client | None = None,
        scopes: tuple[str, ...] = (),
        audience: str | None = None,
        resource: str | None = None,
        lifetime: float | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._identity_token = identity_token
        self._client = client
        self._fields = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": subject_token_type,
            "requested_token_type": _ACCESS_TOKEN_TYPE,
            "scope": " ".join(scopes) or None,
            "audience": audience,
            "resource": resource,
        }
        self._lifetime = lifetime

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:  # noqa: ARG002 - each token comes anew
        """
        Exchange the platform's token as it is now.

        Raises:
            IssuerDownError: it cannot be had now.
            ReauthRequiredError: the issuer refuses the platform's token or the client, or there is no usable one.
        """
        subject_token = await self._identity_token.read()
        answer = await self._endpoint.ask({**self._fields, "subject_token": subject_token}, client=self._client)
        if answer.text("issued_token_type") != _ACCESS_TOKEN_TYPE:
            raise unusable("the answer's issued_token_type is not an access token's")
        return answer.bearer(lifetime=self._lifetime)

    async def changed(self) -> bool:
        """Say whether the platform's token, or the client's secret, is another than the one that was refused."""
        return await self._identity_token.changed() or (self._client is not None and await self._client.changed())

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
