"""The commands of operators about identities: `identity create`, `import`, `list`, `show` and the rest."""

import base64
import json
import sys
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click
from credentialbroker.v1 import broker_admin_pb2 as admin
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli.channel import Listener, Session, with_session
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_table, number_of, show_time, word, words_of
from broker.cli.parameters import Moment, Secret, SecretFile, refuse_typed_secrets
from broker.clock import SystemClock

Function = TypeVar("Function", bound=Callable[..., Any])

_MODE = admin.IdentityMode.DESCRIPTOR
_STATE = admin.IdentityState.DESCRIPTOR
_JWT_PARTS = 3
_CREATION_TIMEOUT = "60s"
"""Creations wait for the backend; the broker's own limit for them."""

_name = click.argument("name", metavar="NAME")
_etag = click.option("--etag", default="", help="Only if it is unchanged since this etag was read.")
_comment = click.option("--comment", default="", help="Why, for the audit record.")


@click.group()
def identity() -> None:
    """
    Create, import, look at, renew and switch identities.

    An identity is what the broker authenticates as at one backend. In mode AGENT it has a key of its own, which never
    leaves the broker, and signs an assertion for each task; in mode BEARER it has a token.
    """


def _creation_options(function: Function) -> Function:
    """Give a command what `create` and `import` have in common."""
    options = (
        _name,
        click.option(
            "--backend", default="default", show_default=True, help="Which backend, by its name in the configuration."
        ),
        click.option(
            "--mode",
            type=click.Choice(words_of(_MODE), case_sensitive=False),
            default="AGENT",
            show_default=True,
            help="What it authenticates with: a key of its own, or only a bearer.",
        ),
        click.option("--bearer-source", metavar="SOURCE", help="Its bearer comes from this configured source."),
        click.option("--token-file", type=SecretFile(), help="Its bearer is the token or API key in this file."),
        click.option("--token-expire-time", type=Moment(), help="When that token ends, if it does not say so."),
        click.option(
            "--oauth-source",
            metavar="SOURCE",
            help="Its bearer is a login that this configured source of type oauth keeps fresh.",
        ),
        click.option(
            "--oauth-tokens",
            type=SecretFile(),
            help="With --oauth-source: the issuer's answer as JSON, or a refresh token alone.",
        ),
        click.option("--no-assertions", is_flag=True, help="Do not make assertions for it: bearers only, for now."),
        click.option("--expire-time", type=Moment(), help="When it stops serving."),
        _request_id("creation"),
        _comment,
        refuse_typed_secrets(
            {"--token": "--token-file", "--api-key": "--token-file", "--refresh-token": "--oauth-tokens"}
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


class _Creation:
    """The options of `_creation_options`, as the fields that both requests have."""

    def __init__(
        self,
        *,
        name: str,
        backend: str,
        mode: str,
        bearer_source: str | None,
        token_file: Secret | None,
        token_expire_time: datetime | None,
        oauth_source: str | None,
        oauth_tokens: Secret | None,
        no_assertions: bool,
        expire_time: datetime | None,
        request_id: str | None,
        comment: str,
    ) -> None:
        if sum(source is not None for source in (bearer_source, token_file, oauth_source)) > 1:
            raise click.UsageError("name one of --bearer-source, --token-file and --oauth-source")
        if token_expire_time is not None and token_file is None:
            raise click.UsageError("--token-expire-time belongs to --token-file")
        if oauth_tokens is not None and oauth_source is None:
            raise click.UsageError("--oauth-tokens belongs to --oauth-source")
        self.request = _Request(request_id)
        self.fields: dict[str, Any] = {
            "request_id": self.request.id,
            "name": name,
            "backend": backend,
            "mode": number_of(_MODE, mode),
            "comment": comment,
            "expire_time": _timestamp(expire_time),
        }
        if bearer_source is not None:
            self.fields["bearer_source"] = bearer_source
        if token_file is not None:
            self.fields["static_bearer"] = admin.StaticBearer(
                token=token_file.text, expire_time=_timestamp(token_expire_time)
            )
        if oauth_source is not None:
            self.fields["oauth_bearer"] = _oauth_bearer(oauth_source, oauth_tokens)
        if no_assertions:
            self.fields["assertions_enabled"] = False


class _Request:
    """The name of one request that must not be done twice: the one that was given, else a new one."""

    def __init__(self, request_id: str | None) -> None:
        self._given = request_id is not None
        self.id = request_id or str(uuid.uuid4())

    def announce(self, session: Session) -> str:
        """Print it before anything is sent, so that a cut leaves it behind; return how to go on."""
        resume = f"--request-id {self.id}"
        if session.form != "json" and not self._given:
            click.echo(f"cut off? run the same command again with {resume}", err=True)
        return resume


def _request_id(what: str) -> Callable[[Function], Function]:
    return click.option(
        "--request-id", help=f"Go on with the {what} of this id, after one that was cut off; made where unset."
    )


def _oauth_bearer(source: str, tokens: Secret | None) -> admin.OauthBearer:
    """Read what an issuer answered at a login; an `auth.json` holds the same under `tokens`."""
    bearer = admin.OauthBearer(source=source)
    if tokens is None:
        return bearer
    if not tokens.text.startswith("{"):
        bearer.refresh_token = tokens.text
        return bearer
    try:
        document = json.loads(tokens.text)
    except ValueError:
        raise click.UsageError("the tokens are neither JSON nor one refresh token") from None
    document = document.get("tokens", document)
    fields = {name: document.get(name) for name in ("refresh_token", "access_token", "id_token")}
    if not isinstance(fields["refresh_token"], str):
        raise click.UsageError("the tokens hold no refresh_token; for an access token alone there is --token-file")
    for name, value in fields.items():
        if isinstance(value, str):
            setattr(bearer, name, value)
    lifetime = document.get("expires_in")
    if isinstance(lifetime, int | float) and not isinstance(lifetime, bool) and "access_token" in document:
        bearer.expire_time.FromMilliseconds(int((SystemClock().now() + lifetime) * 1000))
    return bearer


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


@identity.command(
    "create",
    epilog=examples(
        "# with a token of the backend beside a running `credential-broker dev`",
        "credential-broker emulator token | credential-broker identity create agents --token-file -",
        "# an identity without a key, which only ever gives its token",
        "credential-broker emulator token | credential-broker identity create plain --mode BEARER --token-file -",
        "# with a bearer source of the configuration",
        "credential-broker identity create agents-prod --bearer-source mounted --comment 'for the fleet'",
        "# with the login of a Codex CLI, which a source of type oauth keeps fresh",
        "credential-broker identity create mine --oauth-source chatgpt --oauth-tokens ~/.codex/auth.json",
    ),
)
@_creation_options
@click.option("--account-id", default="", help="The account it acts for; unset, what its bearer says.")
@click.option("--user-id", default="", help="The user it acts for; unset, what its bearer says.")
@click.option("--fedramp", is_flag=True, help="The account is a FedRAMP one.")
@with_session(Listener.ADMIN, timeout=_CREATION_TIMEOUT)
def create(session: Session, *, account_id: str, user_id: str, fedramp: bool, **options: Any) -> None:
    """
    Create an identity.

    In mode AGENT the broker makes its key and registers it at the backend, for which it needs a bearer. A creation
    that is cut off goes on by itself; running the command again with the printed --request-id joins it and never makes
    a second one.
    """
    creation = _Creation(**options)
    request = admin.CreateIdentityRequest(**creation.fields, account_id=account_id, user_id=user_id, fedramp=fedramp)
    response = session.ask(
        session.admin.CreateIdentity,
        request,
        resume=creation.request.announce(session),
        next_steps={"IDENTITY_REJECTED": _REGISTRATION_REFUSED},
    )
    session.show(response, lambda: _show_identity(response.identity))


@identity.command(
    "import",
    epilog=examples(
        "# an Agent Identity JWT of the backend beside a running `credential-broker dev`",
        "credential-broker emulator identity | credential-broker identity import imported --jwt-file -",
        "# the login of a Codex CLI, kept fresh; without --oauth-source its token is used until it ends",
        "credential-broker identity import mine --mode bearer --auth-json ~/.codex/auth.json --oauth-source chatgpt",
        "# a bare key",
        "credential-broker identity import moved --key-file agent.key --agent-runtime-id RUNTIME_ID"
        " --account-id ACCOUNT_ID",
    ),
)
@_creation_options
@click.option("--auth-json", type=SecretFile(), help="A Codex auth.json, of any version.")
@click.option("--jwt-file", type=SecretFile(), help="An Agent Identity JWT; it holds the private key.")
@click.option(
    "--key-file", type=SecretFile(), help="An Ed25519 private key: PKCS#8, as PEM or as the base64 of its DER."
)
@click.option("--agent-runtime-id", default="", help="With --key-file: the id that the backend gave it.")
@click.option("--account-id", default="", help="With --key-file: the account it acts for.")
@click.option("--user-id", default="", help="With --key-file: the user it acts for.")
@click.option("--fedramp", is_flag=True, help="With --key-file: the account is a FedRAMP one.")
@click.option("--expected-account-id", default="", help="Refuse what belongs to another account.")
@click.option("--expected-user-id", default="", help="Refuse what belongs to another user.")
@refuse_typed_secrets({"--jwt": "--jwt-file", "--key": "--key-file", "--private-key": "--key-file"})
@with_session(Listener.ADMIN, timeout=_CREATION_TIMEOUT)
def import_identity(
    session: Session,
    *,
    auth_json: Secret | None,
    jwt_file: Secret | None,
    key_file: Secret | None,
    agent_runtime_id: str,
    account_id: str,
    user_id: str,
    fedramp: bool,
    expected_account_id: str,
    expected_user_id: str,
    **options: Any,
) -> None:
    """
    Take over an identity that exists elsewhere.

    Exactly one of a Codex auth.json, an Agent Identity JWT (verified against the backend's published keys before
    anything it says is used) and a bare key. Secrets are sealed on arrival and never shown again.
    """
    if sum(source is not None for source in (auth_json, jwt_file, key_file)) != 1:
        raise click.UsageError("name exactly one of --auth-json, --jwt-file and --key-file")
    if key_file is None and (agent_runtime_id or account_id or user_id or fedramp):
        raise click.UsageError(
            "--agent-runtime-id, --account-id, --user-id and --fedramp belong to --key-file; to check what is imported"
            " there are --expected-account-id and --expected-user-id"
        )
    creation = _Creation(**options)
    request = admin.ImportIdentityRequest(
        **creation.fields, expected_account_id=expected_account_id, expected_user_id=expected_user_id
    )
    if auth_json is not None:
        request.auth_json = auth_json.content
    elif jwt_file is not None:
        request.identity_jwt = jwt_file.text
    elif key_file is not None:
        if not agent_runtime_id or not account_id:
            raise click.UsageError("--key-file needs --agent-runtime-id and --account-id: a bare key does not say them")
        bare_key = admin.BareKey(
            private_key=_pkcs8_base64(key_file.text),
            agent_runtime_id=agent_runtime_id,
            account_id=account_id,
            user_id=user_id,
            fedramp=fedramp,
        )
        request.bare_key.CopyFrom(bare_key)
    response = session.ask(session.admin.ImportIdentity, request, resume=creation.request.announce(session))
    session.show(response, lambda: _show_identity(response.identity))


def _pkcs8_base64(text: str) -> str:
    """Return a key as the API takes it: PEM is the same base64 between two lines, in lines of 64."""
    lines = text.split()
    if text.startswith("-----BEGIN"):
        lines = [line.strip() for line in text.splitlines() if not line.startswith("-----")]
    return "".join(lines)


@identity.command(
    "list",
    epilog=examples("credential-broker identity list", "credential-broker identity list --state ACTIVE"),
)
@click.option("--backend", default="", metavar="NAME", help="Only identities of this backend.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(words_of(_STATE), case_sensitive=False),
    help="Only identities in this state; may be repeated. Unset: every state but DELETED.",
)
@with_session(Listener.ADMIN)
def list_identities(session: Session, *, backend: str, states: tuple[str, ...]) -> None:
    """
    List identities.

    With their public keys and the ids the backend gave them, to be found again in its records.
    """
    request = admin.ListIdentitiesRequest(
        backend=backend,
        states=[admin.IdentityState.ValueType(number_of(_STATE, state)) for state in states],
        page_size=1000,
    )
    response = admin.ListIdentitiesResponse()
    for page in session.ask_pages(session.admin.ListIdentities, request):
        response.identities.extend(page.identities)
    filtered = bool(backend or states)
    session.show(response, lambda: _show_identities(response, filtered=filtered))


def _show_identities(response: admin.ListIdentitiesResponse, *, filtered: bool) -> None:
    echo_table(
        ("name", "backend", "mode", "state", "account", "runtime id", "public key"),
        [
            (
                each.name,
                each.backend,
                word(each, "mode"),
                word(each, "state"),
                each.account_id,
                each.agent_runtime_id,
                each.public_key,
            )
            for each in response.identities
        ],
        empty="no such identities"
        if filtered
        else "no identities; make one with: credential-broker identity create NAME",
    )


@identity.command("show", epilog=examples("credential-broker identity show dev"))
@_name
@with_session(Listener.ADMIN)
def show(session: Session, *, name: str) -> None:
    """Show one identity; never a secret."""
    response = session.ask(session.admin.GetIdentity, admin.GetIdentityRequest(name=name))
    session.show(response, lambda: _show_identity(response.identity))


def _show_identity(shown: admin.Identity) -> None:
    echo_fields(
        (
            ("identity", shown.name),
            ("id", shown.id),
            ("backend", shown.backend),
            ("mode", word(shown, "mode")),
            ("state", word(shown, "state")),
            ("because", word(shown, "state_reason")),
            ("origin", word(shown, "origin")),
            ("can register itself", "yes" if shown.can_register else "no"),
            ("account", shown.account_id),
            ("user", shown.user_id),
            ("email", shown.email),
            ("plan", shown.plan_type),
            ("fedramp", "yes" if shown.fedramp else ""),
            ("bearer source", shown.bearer_source),
            ("assertions", "on" if shown.assertions_enabled else "off"),
            ("runtime id", shown.agent_runtime_id),
            ("public key", shown.public_key),
            ("generation", str(shown.generation)),
            ("version", str(shown.version)),
            ("etag", shown.etag),
            ("created", show_time(shown.create_time)),
            ("changed", show_time(shown.update_time)),
            ("expires", show_time(shown.expire_time)),
            ("last used", show_time(shown.last_use_time)),
        )
    )


@identity.command(
    "update",
    epilog=examples(
        "credential-broker identity update dev --expire-time 2030-01-31T00:00:00Z",
        "# give it another bearer, which erases one of its own",
        "credential-broker identity update agents-prod --bearer-source mounted",
        "# let scopes that only prefer an assertion get a bearer for now",
        "credential-broker identity update dev --no-assertions",
    ),
)
@_name
@click.option("--bearer-source", metavar="SOURCE", help="Its bearer comes from this source; empty for none.")
@click.option("--assertions/--no-assertions", default=None, help="Whether assertions are made for it.")
@click.option("--expire-time", type=Moment(), help="When it stops serving.")
@click.option("--no-expire-time", is_flag=True, help="It serves without an end.")
@_etag
@_comment
@with_session(Listener.ADMIN)
def update(
    session: Session,
    *,
    name: str,
    bearer_source: str | None,
    assertions: bool | None,
    expire_time: datetime | None,
    no_expire_time: bool,
    etag: str,
    comment: str,
) -> None:
    """
    Change settings of an identity.

    Its mode, backend, account, user and key cannot be changed: create another identity instead.
    """
    if expire_time is not None and no_expire_time:
        raise click.UsageError("name one of --expire-time and --no-expire-time")
    wanted = admin.Identity(
        name=name,
        bearer_source=bearer_source or "",
        assertions_enabled=bool(assertions),
        expire_time=_timestamp(expire_time),
    )
    paths = {
        "bearer_source": bearer_source is not None,
        "assertions_enabled": assertions is not None,
        "expire_time": expire_time is not None or no_expire_time,
    }
    mask = FieldMask(paths=[path for path, named in paths.items() if named])
    if not mask.paths:
        raise click.UsageError("name what to change: --bearer-source, --assertions, --expire-time")
    request = admin.UpdateIdentityRequest(identity=wanted, update_mask=mask, etag=etag, comment=comment)
    response = session.ask(session.admin.UpdateIdentity, request)
    session.show(response, lambda: _show_identity(response.identity))


@identity.command(
    "rotate",
    epilog=examples("credential-broker identity rotate dev --comment 'every quarter'"),
)
@_name
@_request_id("rotation")
@_etag
@_comment
@with_session(Listener.ADMIN, timeout=_CREATION_TIMEOUT)
def rotate(session: Session, *, name: str, request_id: str | None, etag: str, comment: str) -> None:
    """
    Give an identity a new key.

    The broker registers a new agent with it and proves that it works before anything changes; until then, and if the
    backend refuses the new one, the old key goes on serving. No call is refused meanwhile. Only an identity that can
    register itself has this; one that was imported as a JWT or a bare key gets a new login instead (reauthenticate).
    """
    named = _Request(request_id)
    request = admin.RotateIdentityKeyRequest(request_id=named.id, name=name, etag=etag, comment=comment)
    response = session.ask(
        session.admin.RotateIdentityKey,
        request,
        resume=named.announce(session),
        next_steps={"IDENTITY_REJECTED": "see in the broker's log what the backend answered, then rotate again"},
    )
    session.show(response, lambda: _show_identity(response.identity))


_REGISTRATION_REFUSED = (
    "see in the broker's log what the backend answered: 404 is a wrong `authapi_base_url`, 401 or 403 a bearer that may"
    " not register agents; mended, it is registered by itself"
)

_LOGIN_KINDS = ("auth-json", "jwt", "token", "oauth")


@identity.command(
    "reauthenticate",
    epilog=examples(
        "# the login of a Codex CLI, after `codex login`",
        "credential-broker identity reauthenticate mine --from ~/.codex/auth.json",
        "# a new Agent Identity JWT, or a new API key, through a pipe",
        "credential-broker emulator identity | credential-broker identity reauthenticate imported --from -",
        "# the tokens of a new login at an ordinary issuer",
        "credential-broker identity reauthenticate agents --oauth-source login --from tokens.json",
    ),
)
@_name
@click.option(
    "--from", "login", type=SecretFile(), required=True, help="The new login: auth.json, JWT, token or tokens."
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(_LOGIN_KINDS),
    help="What --from holds; unset, it is recognised.",
)
@click.option("--oauth-source", metavar="SOURCE", help="Let this configured source of type oauth keep it fresh.")
@click.option("--token-expire-time", type=Moment(), help="When a token ends, if it does not say so.")
@_request_id("re-authentication")
@_etag
@_comment
@refuse_typed_secrets({"--token": "--from", "--jwt": "--from", "--api-key": "--from"})
@with_session(Listener.ADMIN, timeout=_CREATION_TIMEOUT)
def reauthenticate(
    session: Session,
    *,
    name: str,
    login: Secret,
    kind: str | None,
    oauth_source: str | None,
    token_expire_time: datetime | None,
    request_id: str | None,
    etag: str,
    comment: str,
) -> None:
    """
    Give an identity a new login, in the place of one that has ended or is refused.

    It must be of the same account and user. Tasks go on unless the new login brings another key. Whoever else holds a
    refresh token that is given here must stop using it: two users of one lock each other out.
    """
    kind = kind or ("oauth" if oauth_source is not None else _kind_of(login))
    if (kind == "oauth") != (oauth_source is not None):
        raise click.UsageError(
            "the tokens of a login need the source that keeps them fresh: --oauth-source SOURCE"
            if kind == "oauth"
            else "--oauth-source is for the tokens of a login: leave it or --as out"
        )
    if token_expire_time is not None and kind != "token":
        raise click.UsageError("--token-expire-time belongs to a token")
    named = _Request(request_id)
    request = admin.ReauthenticateIdentityRequest(request_id=named.id, name=name, etag=etag, comment=comment)
    if kind == "auth-json":
        request.auth_json = login.content
    elif kind == "jwt":
        request.identity_jwt = login.text
    elif kind == "oauth":
        request.oauth_bearer.CopyFrom(_oauth_bearer(oauth_source or "", login))
    else:
        token = admin.StaticBearer(token=login.text, expire_time=_timestamp(token_expire_time))
        request.static_bearer.CopyFrom(token)
    response = session.ask(
        session.admin.ReauthenticateIdentity,
        request,
        resume=named.announce(session),
        next_steps={"REAUTH_REQUIRED": "what was given has ended or is refused: log in again, and give that"},
    )
    session.show(response, lambda: _show_identity(response.identity))


def _kind_of(login: Secret) -> str:
    """Recognise a login by its form: an issuer's answer, another JSON object, a JWT with an agent's key, a token."""
    if login.content.startswith(b"{"):
        try:
            document = json.loads(login.content)
        except (ValueError, RecursionError):
            return "auth-json"  # the broker says what is wrong with it
        # An auth.json has its tokens a level deeper.
        return "oauth" if "refresh_token" in document else "auth-json"
    parts = login.content.split(b".")
    if len(parts) == _JWT_PARTS:
        try:
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
        except ValueError:
            return "token"
        if isinstance(claims, dict) and "agent_private_key" in claims:
            return "jwt"
    return "token"


@identity.command(
    "disable", epilog=examples("credential-broker identity disable dev --comment 'until the audit is done'")
)
@_name
@_etag
@_comment
@with_session(Listener.ADMIN)
def disable(session: Session, *, name: str, etag: str, comment: str) -> None:
    """
    Stop an identity for now.

    Calls are refused with IDENTITY_REVOKED at once; what callers hold ends within minutes, and nothing made before is
    valid again after `enable`.
    """
    request = admin.DisableIdentityRequest(name=name, etag=etag, comment=comment)
    response = session.ask(session.admin.DisableIdentity, request)
    session.show(response, lambda: _show_identity(response.identity))


@identity.command("enable", epilog=examples("credential-broker identity enable dev"))
@_name
@_etag
@_comment
@with_session(Listener.ADMIN)
def enable(session: Session, *, name: str, etag: str, comment: str) -> None:
    """Let a disabled identity serve again."""
    request = admin.EnableIdentityRequest(name=name, etag=etag, comment=comment)
    response = session.ask(session.admin.EnableIdentity, request)
    session.show(response, lambda: _show_identity(response.identity))


@identity.command("delete", epilog=examples("credential-broker identity delete agents --comment 'no longer used'"))
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@_etag
@_comment
@with_session(Listener.ADMIN)
def delete(session: Session, *, name: str, yes: bool, etag: str, comment: str) -> None:
    """
    Delete an identity for good.

    Its key and tokens are erased and its tasks revoked; a record without secrets stays for the audit. What was
    registered at the backend stays there, without its key.
    """
    if not yes:
        if not _somebody_is_there():
            raise click.UsageError(f"nobody is there to ask whether to erase the key of {name} for good: add --yes")
        click.confirm(f"Erase the key of {name} for good?", abort=True, err=True)
    request = admin.DeleteIdentityRequest(name=name, etag=etag, comment=comment)
    response = session.ask(session.admin.DeleteIdentity, request)
    session.show(response, lambda: _show_identity(response.identity))


def _somebody_is_there() -> bool:
    """Say whether a question would be answered by a person."""
    return sys.stdin.isatty()
