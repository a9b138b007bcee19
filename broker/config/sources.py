"""The tables of the sources of bearers: one section a kind, told apart by `type`."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from broker.config.fields import ScopeToken, Seconds, Section, Text
from broker.origins import OriginError, parse_origin


class SourceSection(Section):
    """What every kind of bearer source has."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Where its bearers come from, on one line."""

    def problems(self, *, dev: bool) -> Iterator[str]:  # noqa: ARG002 - of kinds that have something to look at
        """Find what does not fit together, each with the key that it is about."""
        return iter(())


class StaticSourceSection(SourceSection):
    """A token that never changes: an API key. Its file is read once, at the start."""

    type: Literal["static"]
    """Says that it is of this kind."""
    path: Path
    """The file that holds the token: one line, and not writable by everybody."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when it was read, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return str(self.path)


class FileSourceSection(SourceSection):
    """A token in a file that something else renews; the file is looked into every second."""

    type: Literal["file"]
    """Says that it is of this kind."""
    path: Path
    """The file that holds the token: one line, and not writable by everybody."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when it was read, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return str(self.path)


class JwtIdentitySourceSection(SourceSection):
    """No bearer at all: for identities whose only login is their Agent Identity JWT. Such a source has no settings."""

    type: Literal["jwt_identity"]
    """Says that it is of this kind."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return "none"


class _RefreshedSection(SourceSection):
    """A source whose bearers are refreshed ahead of their end."""

    advisory_seconds: Seconds | None = None
    """How long before its end a bearer is refreshed while it is still handed out; at most half of its life. Unset, a
    quarter of its life, at most 15 minutes."""
    mandatory_seconds: Seconds | None = None
    """How long before its end callers wait for the new one; at most half of its life. Unset, a twentieth of its life,
    at least 10 s and at most a minute."""

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        advisory, mandatory = self.advisory_seconds, self.mandatory_seconds
        if advisory is not None and mandatory is not None and advisory < mandatory:
            yield "advisory_seconds: must not be shorter than mandatory_seconds"


class _IssuerSection(_RefreshedSection):
    """A source that exchanges something for tokens at an issuer's token endpoint."""

    refreshes_per_second: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)] = 20.0
    """How many exchanges this process begins within a second at the issuer; where several sources have the same
    issuer (the origin of `token_url`), the least of theirs counts for all of them. Whoever waits for a token goes
    first."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 10.0
    """How long one exchange may take."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The URL of the token endpoint."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return self.endpoint

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        try:
            parse_origin(self.endpoint, allow_loopback_http=dev)
        except OriginError as error:
            yield f"token_url: {error}"
        else:
            if "?" in self.endpoint:
                yield "token_url: must not have a query"


class OauthSourceSection(_IssuerSection):
    """
    The issuer of logins that are refreshed with a refresh token (RFC 6749 section 6).

    The tokens are each identity's own: they come in with `identity create`, `identity import` or `identity
    reauthenticate`.
    """

    type: Literal["oauth"]
    """Says that it is of this kind."""
    token_url: str = "https://auth.openai.com/oauth/token"  # noqa: S105 - an address
    """The issuer's token endpoint."""
    client_id: Text = "app_EMoamEEZ73f0CkXaXp7hrann"
    """As which client the broker refreshes: the one that the logins were made with."""
    client_secret_file: Path | None = None
    """The file that holds the client's secret, for clients that have one; read again for each exchange."""
    lease_seconds: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 45.0
    """How long a refresh is claimed for one process; after that another finds out what came of it. Longer than
    `timeout_seconds`."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if self.lease_seconds <= self.timeout_seconds:
            yield "lease_seconds: must be longer than timeout_seconds"


class ClientCredentialsSourceSection(_IssuerSection):
    """Tokens that the broker asks for in a name of its own (RFC 6749 section 4.4)."""

    type: Literal["client_credentials"]
    """Says that it is of this kind."""
    token_url: str
    """The issuer's token endpoint."""
    client_id: Text
    """The name that the broker is registered under."""
    client_secret_file: Path
    """The file that holds its secret: one line, and not writable by everybody; read again for each exchange."""
    auth: Literal["basic", "post"] = "basic"
    """How the secret is shown: `basic` in the Authorization header, `post` in the form."""
    scopes: tuple[ScopeToken, ...] = ()
    """What the token shall be good for; none leaves it to the issuer."""
    audience: Text | None = None
    """Whom the token shall be for, where the issuer wants to be told (`audience`)."""
    resource: Text | None = None
    """The same as the URI of RFC 8707 (`resource`)."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used, where neither the answer nor the token itself says."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url


class WorkloadIdentitySourceSection(_IssuerSection):
    """Tokens for which a projected token of the platform is exchanged: Kubernetes, a CI system, a cloud."""

    type: Literal["workload_identity"]
    """Says that it is of this kind."""
    grant: Literal["jwt_bearer", "token_exchange"] = "jwt_bearer"
    """How: `jwt_bearer` as OpenAI's workload identity has it, `token_exchange` by RFC 8693."""
    token_url: str | None = None
    """The issuer's token endpoint; unset, that of OpenAI, for `jwt_bearer` only."""
    identity_token_file: Path
    """The file, absolute, that the platform's token is read from for each exchange."""
    federation_rule_id: Text | None = None
    """`jwt_bearer`, required: the rule by which the issuer trusts the platform."""
    context_file: Path | None = None
    """`jwt_bearer`: the file that holds the workload identity context, where one is used."""
    account_id: Text | None = None
    """`jwt_bearer`: the only account that tokens may be of; unset, the account of the first one."""
    subject_token_type: Text = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - the name of a kind
    """`token_exchange`: what the platform's token is."""
    scopes: tuple[ScopeToken, ...] = ()
    """`token_exchange`: what the token shall be good for; none leaves it to the issuer."""
    audience: Text | None = None
    """`token_exchange`: whom the token shall be for (`audience`)."""
    resource: Text | None = None
    """`token_exchange`: the same as a URI (`resource`)."""
    client_id: Text | None = None
    """`token_exchange`: as which client, where the issuer wants one."""
    client_secret_file: Path | None = None
    """`token_exchange`: the file that holds the client's secret, where it has one; needs `client_id`."""
    auth: Literal["basic", "post"] = "basic"
    """`token_exchange`: how the secret is shown: `basic` in the Authorization header, `post` in the form."""
    lifetime_seconds: Seconds | None = None
    """`token_exchange`: how long a token may be used, where neither the answer nor the token itself says."""
    advisory_seconds: Seconds | None = None
    """How long before its end a bearer is refreshed while it is still handed out; at most half of its life. Unset, a
    quarter of its life and at most 15 minutes, for `jwt_bearer` half of it and at most 2 minutes."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 30.0
    """How long one exchange may take."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url or _OPENAI_TOKEN_URL

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if not self.identity_token_file.is_absolute():
            yield "identity_token_file: must be an absolute path"
        if self.grant == "jwt_bearer" and self.federation_rule_id is None:
            yield "federation_rule_id: is required for grant jwt_bearer"
        if self.grant == "token_exchange" and self.token_url is None:
            yield "token_url: is required for grant token_exchange"
        if self.client_secret_file is not None and self.client_id is None:
            yield "client_id: is required with client_secret_file"
        of_the_other = _TOKEN_EXCHANGE_KEYS if self.grant == "jwt_bearer" else _JWT_BEARER_KEYS
        for key in sorted(self.model_fields_set & of_the_other):
            yield f"{key}: has no meaning for grant {self.grant}"


class CommandSourceSection(_RefreshedSection):
    """Tokens that a program prints: a cloud's command line, a password manager."""

    type: Literal["command"]
    """Says that it is of this kind."""
    command: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The program, by its absolute path, and its arguments; no shell is between. The first line it prints is the
    token. No secret may stand here: everybody on the machine sees the arguments."""
    pass_environment: tuple[Text, ...] = ()
    """The environment variables of the broker that the program gets, beside `PATH`, `HOME` and `LANG`."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 10.0
    """How long it may run; then it is killed, with all that it began."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when the program was begun, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return self.command[0]

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if not Path(self.command[0]).is_absolute():
            yield "command: the program must be named by its absolute path"


_JWT_BEARER_KEYS: Final = frozenset({"federation_rule_id", "context_file", "account_id"})
_TOKEN_EXCHANGE_KEYS: Final = frozenset(
    {
        "subject_token_type",
        "scopes",
        "audience",
        "resource",
        "client_id",
        "client_secret_file",
        "auth",
        "lifetime_seconds",
    }
)
_OPENAI_TOKEN_URL: Final = "https://auth.openai.com/oauth/token"  # noqa: S105 - an address

BearerSourceSection = Annotated[
    StaticSourceSection
    | FileSourceSection
    | OauthSourceSection
    | ClientCredentialsSourceSection
    | WorkloadIdentitySourceSection
    | CommandSourceSection
    | JwtIdentitySourceSection,
    Field(discriminator="type"),
]
"""One named source of bearers, by its `type`."""

SOURCE_SECTIONS: Final[dict[str, type[SourceSection]]] = {
    get_args(section.model_fields["type"].annotation)[0]: section
    for section in get_args(get_args(BearerSourceSection)[0])
}
