"""Tokens that the broker asks for in a name of its own: the client credentials grant (RFC 6749 section 4.4)."""

from broker.bearer import Bearer
from broker.bearer.token_endpoint import Client, TokenEndpoint


class ClientCredentials:
    """
    Obtains tokens by the client credentials grant.

    Args:
        endpoint: where.
        client: as whom.
        scopes: what the token shall be good for; none leaves it to the issuer.
        audience: whom it shall be for, as issuers understand it that know no RFC 8707.
        resource: the same as RFC 8707 has it, a URI.
        lifetime: seconds that a token may be used, where neither the answer nor the token says.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        client: Client,
        *,
        scopes: tuple[str, ...] = (),
        audience: str | None = None,
        resource: str | None = None,
        lifetime: float | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._client = client
        self._fields = {
            "grant_type": "client_credentials",
            "scope": " ".join(scopes) or None,
            "audience": audience,
            "resource": resource,
        }
        self._lifetime = lifetime

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:  # noqa: ARG002 - each token comes anew
        """
        Ask for a token.

        Raises:
            IssuerDownError: it cannot be had now.
            ReauthRequiredError: the issuer refuses this client, or there is no usable secret.
        """
        answer = await self._endpoint.ask(self._fields, client=self._client)
        return answer.bearer(lifetime=self._lifetime)

    async def changed(self) -> bool:
        """Say whether the client's secret is another than the one that was refused."""
        return await self._client.changed()

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
