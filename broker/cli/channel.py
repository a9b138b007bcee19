"""How commands reach a broker: addresses, TLS, deadlines, the guard header, and the options that say so."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

import click
import grpc
from credentialbroker.v1.broker_admin_pb2_grpc import BrokerAdminStub
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

from broker.cli.failures import CallFailedError, describe
from broker.cli.output import echo_json
from broker.cli.parameters import Address, Duration

GUARD_METADATA: Final = (("x-credential-broker", "1"),)
"""Every call must send it; see the API's description."""

CHANNEL_OPTIONS: Final = (
    # A broker is reached directly: a proxy named in the environment would be handed headers in plaintext.
    ("grpc.enable_http_proxy", 0),
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Command = Callable[..., None]


class Listener(Enum):
    """Which of a broker's two listeners; the values are the option, its variable and its default."""

    CALLERS = ("--address", "CREDENTIAL_BROKER_ADDRESS", "dns:///127.0.0.1:50051")
    ADMIN = ("--admin-address", "CREDENTIAL_BROKER_ADMIN_ADDRESS", "127.0.0.1:50052")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    Where a broker is, and how long it is waited for.

    Attributes:
        address: as gRPC names it.
        timeout: seconds for each call.
        tls_ca: PEM file of the authorities that sign the broker's certificate.
        tls_cert: PEM file of the certificate to show.
        tls_key: PEM file of its key.
    """

    address: str
    timeout: float
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls_ca is not None or self.tls_cert is not None


Dial = Callable[[Target], grpc.Channel]
"""Opens a channel; a test puts another one into the context's `obj`."""


def dial(target: Target) -> grpc.Channel:
    """
    Open a channel; nothing is sent yet.

    Raises:
        click.UsageError: a TLS file cannot be read.
    """
    if not target.tls:
        return grpc.insecure_channel(target.address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(target.tls_ca),
        private_key=_pem(target.tls_key),
        certificate_chain=_pem(target.tls_cert),
    )
    return grpc.secure_channel(target.address, credentials, options=CHANNEL_OPTIONS)


def _pem(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None


class _Paged(Protocol):
    next_page_token: str


PagedResponse = TypeVar("PagedResponse", bound=_Paged)


class Session:
    """
    A broker to talk to, for one command.

    Attributes:
        callers: the RPCs of callers.
        admin: the RPCs of operators.
        form: the word given to `--format`.
    """

    def __init__(self, channel: grpc.Channel, target: Target, *, form: str, start: str) -> None:
        self.callers: Final = CredentialBrokerStub(channel)
        self.admin: Final = BrokerAdminStub(channel)
        self.form: Final = form
        self._channel: Final = channel
        self._target: Final = target
        self._start: Final = start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def ask(
        self,
        rpc: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        resume: str = "",
        next_steps: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        """
        Call an RPC.

        Args:
            rpc: of `callers` or `admin`.
            request: what to ask.
            resume: the options that repeat the same creation, shown where the call fails.
            next_steps: by reason, what to do where this call fails with it, if that is not what is done elsewhere.

        Raises:
            CallFailedError: it failed.
        """
        try:
            return rpc(request, timeout=self._target.timeout, metadata=GUARD_METADATA)
        except grpc.RpcError as error:
            raise self._failed(error, resume=resume, next_steps=next_steps) from None

    def converse(
        self, rpc: "grpc.StreamStreamMultiCallable[Request, Response]", requests: Iterable[Request]
    ) -> Iterator[Response]:
        """
        Open a stream, say all that there is to say, and yield what comes until the broker ends it.

        Raises:
            CallFailedError: it ended with an error.
        """
        call = rpc(iter(requests), metadata=GUARD_METADATA)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failed(error) from None
        finally:
            call.cancel()

    def _failed(
        self, error: grpc.RpcError, *, resume: str = "", next_steps: Mapping[str, str] = MappingProxyType({})
    ) -> CallFailedError:
        target = self._target
        failure = describe(
            cast("grpc.Call", error), address=target.address, timeout=target.timeout, start=self._start, tls=target.tls
        )
        failure = replace(failure, next_step=next_steps.get(failure.reason, failure.next_step))
        return CallFailedError(failure, as_json=self.form == "json", resume=resume)

    def ask_pages(
        self, rpc: "grpc.UnaryUnaryMultiCallable[Any, PagedResponse]", request: Any
    ) -> Iterator[PagedResponse]:
        """
        Call a listing RPC until its last page.

        Raises:
            CallFailedError: a page failed.
        """
        while True:
            response = self.ask(rpc, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def show(self, response: Any, as_table: Callable[[], None]) -> None:
        """Print an answer: as JSON if that was asked for, else by `as_table`."""
        if self.form == "json":
            echo_json(response)
        else:
            as_table()


def with_session(
    listener: Listener, *, forms: tuple[str, ...] = ("table", "json"), timeout: str | None = "10s"
) -> Callable[[Command], Command]:
    """
    Give a command the options that say where the broker is, and an open `session`.

    Args:
        listener: which listener it talks to.
        forms: what `--format` may be; the first is the default.
        timeout: the default deadline of a call; None for a command whose call has none.
    """
    option, variable, default = listener.value
    options = (
        click.option(
            "--format", "form", type=click.Choice(forms), default=forms[0], show_default=True, help="How to print it."
        ),
        click.option(
            option,
            "address",
            type=Address(),
            default=default,
            show_default=True,
            envvar=variable,
            show_envvar=True,
            help="Where the broker listens; also unix:///PATH.",
        ),
        *(() if timeout is None else (_timeout(timeout),)),
        click.option(
            "--tls-ca",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Use TLS; PEM file of who signs the broker's certificate.",
        ),
        click.option(
            "--tls-cert",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Use TLS; PEM file of the certificate to show.",
        ),
        click.option(
            "--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="PEM file of that certificate's key."
        ),
    )

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_options(
            *,
            form: str,
            address: str,
            tls_ca: Path | None,
            tls_cert: Path | None,
            tls_key: Path | None,
            timeout: float = math.inf,
            **parameters: Any,
        ) -> None:
            if (tls_cert is None) != (tls_key is None):
                raise click.UsageError("--tls-cert and --tls-key go together")
            context = click.get_current_context()
            target = Target(address=address, timeout=timeout, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
            opened: grpc.Channel = (context.obj or dial)(target)
            session = Session(opened, target, form=form, start=_start_command(listener, address))
            command(context.with_resource(session), **parameters)

        decorated: Command = with_options
        for each in reversed(options):
            decorated = each(decorated)
        return decorated

    return decorate


def _timeout(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--timeout", type=Duration(), default=default, show_default=True, help="How long to wait for an answer."
    )


def _start_command(listener: Listener, address: str) -> str:
    """Return what would start a broker here: `dev` at its usual address, else `serve`."""
    usual = listener.value[2].rpartition("/")[2]
    return "credential-broker dev" if address.endswith(usual) else "credential-broker serve --config broker.toml"
