"""`credential-broker watch`: authorizations kept current, live."""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
from credentialbroker.v1 import credential_broker_pb2 as api
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli.channel import Listener, Session, with_session
from broker.cli.failures import CallFailedError
from broker.cli.help import examples
from broker.cli.output import document_of, echo_line, printable, show_seconds, table_of, word

HIDDEN: Final = "(hidden)"
FIRST_WAIT_SECONDS: Final = 0.5
LONGEST_WAIT_SECONDS: Final = 30.0
_REDRAWS_A_SECOND: Final = 4


@dataclass(slots=True)
class Watched:
    """
    One subscription, as far as it is known here.

    Attributes:
        wish: what was asked for.
        held: the value that may be used; None when there is none.
        since: when that came, on this machine's monotonic clock.
        state: the last event in a word or two.
        values: how many values came.
    """

    wish: api.Subscribe
    held: api.Authorization | None = None
    since: float = 0.0
    state: str = "asked for"
    values: int = 0

    def note(self, event: api.WatchAuthorizationsResponse, now: float) -> None:
        """Take in what came for it."""
        match event.WhichOneof("event"):
            case "authorization":
                self.held, self.since, self.state = event.authorization, now, "current"
                self.values += 1
            case "withdrawal":
                self.held, self.state = None, f"withdrawn: {word(event.withdrawal, 'reason')}"
            case "error":
                self.state = f"failing: {word(event.error.status, 'reason')}"

    def left_until(self, time_field: str, now: float) -> float:
        """Return the seconds to one of the value's times, counted from its receipt as callers are told to."""
        if self.held is None:
            return 0.0
        time: Timestamp = getattr(self.held, time_field)
        return (time.ToNanoseconds() - self.held.server_time.ToNanoseconds()) / 1e9 - (now - self.since)

    def asked_again(self, now: float) -> api.Subscribe:
        """Return what to subscribe with on the next stream: with what is held, while that is fresh."""
        again = api.Subscribe()
        again.CopyFrom(self.wish)
        if self.held is not None and self.left_until("refresh_time", now) > 0:
            again.known_revision = self.held.revision
        return again


@click.command(
    epilog=examples(
        "credential-broker watch --scope inference --thread t1",
        "credential-broker watch --scope inference --scope thread.files --thread t1",
        "# one JSON object a line, for programs; without --show-secrets the credentials are left out",
        "credential-broker watch --scope control_plane.models --format json | jq -r .authorization.expire_time",
        "# until the first value came",
        "credential-broker watch --scope inference --thread t1 --count 1",
    )
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    help="What the calls are for; may be repeated. `credential-broker scopes` lists them.",
)
@click.option("--thread", "thread_id", default="", metavar="ID", help="Your id of the conversation or run.")
@click.option("--identity", default="", metavar="NAME", help="Whose; needed where there are several.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many values; unset, only Ctrl-C ends it.")
@click.option("--show-secrets", is_flag=True, help="Print the credentials too. Keep them out of logs and files.")
@with_session(Listener.CALLERS, timeout=None)
def watch(
    session: Session, *, scopes: tuple[str, ...], thread_id: str, identity: str, count: int | None, show_secrets: bool
) -> None:
    """
    Watch authorizations: each new value, withdrawal and error as it comes.

    On a terminal it is a table that stays up to date; elsewhere, and with --format json, each event is one line of
    JSON, whose `subscription_id` counts the scopes as they are named. When the broker ends the stream or is away, it is
    opened again with what is held. Ctrl-C ends it.
    """
    watched = {
        str(number): Watched(
            api.Subscribe(subscription_id=str(number), scope=scope, thread_id=thread_id, identity=identity)
        )
        for number, scope in enumerate(dict.fromkeys(scopes), 1)
    }
    is_table = session.form == "table" and sys.stdout.isatty()
    showing = _live_table(watched, show_secrets=show_secrets) if is_table else contextlib.nullcontext(_say_nothing)
    try:
        with showing as say:
            for event in _events(session, watched, say):
                if not is_table:
                    echo_line(_document(event, show_secrets=show_secrets))
                if sum(one.values for one in watched.values()) == count:
                    break
    except KeyboardInterrupt:
        return  # the way a watch ends


Say = Callable[[str], None]
"""Shows how the stream itself is doing."""


def _say_nothing(_text: str) -> None:
    """Lines of JSON say it themselves."""


def _events(
    session: Session, watched: dict[str, Watched], say: Say
) -> Iterator[api.WatchAuthorizationsResponse | CallFailedError]:
    """
    Yield every event, for ever, and keep `watched` up to date; streams are opened again as callers should.

    Raises:
        CallFailedError: the stream failed in a way that trying again does not mend.
    """
    wait = FIRST_WAIT_SECONDS
    while True:
        delay = 0.0
        now = time.monotonic()
        requests = [api.WatchAuthorizationsRequest(subscribe=one.asked_again(now)) for one in watched.values()]
        try:
            for event in session.converse(session.callers.WatchAuthorizations, requests):
                wait = FIRST_WAIT_SECONDS
                say("connected")
                if event.subscription_id in watched:
                    watched[event.subscription_id].note(event, time.monotonic())
                if event.HasField("closing"):
                    delay = event.closing.retry_delay.ToNanoseconds() / 1e9
                yield event
        except CallFailedError as error:
            if error.failure.is_final:
                raise
            yield error
            delay = max(error.failure.retry_seconds or 0.0, wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads callers
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            say(f"{error.failure.reason or error.failure.code}: trying again")
        time.sleep(delay)


def _document(event: api.WatchAuthorizationsResponse | CallFailedError, *, show_secrets: bool) -> dict[str, Any]:
    if isinstance(event, CallFailedError):
        return event.document
    document = document_of(event)
    for header in document.get("authorization", {}).get("headers", ()):
        if header["sensitive"] and not show_secrets:
            header["value"] = HIDDEN
    return document


@contextlib.contextmanager
def _live_table(watched: dict[str, Watched], *, show_secrets: bool) -> Iterator[Say]:
    """Show all subscriptions, drawn anew as time passes; yield what sets the line below them."""
    # Only here: nothing but a terminal pays for it.
    from rich.console import Console, Group, RenderableType  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    standing = "connecting"

    def draw() -> RenderableType:
        now = time.monotonic()
        rows = [_row(one, now, show_secrets=show_secrets) for one in watched.values()]
        head = (*_HEAD, "headers") if show_secrets else _HEAD
        return Group(table_of(head, rows), Text(standing, style="dim"))

    def say(text: str) -> None:
        nonlocal standing
        standing = text

    console = Console(highlight=False)
    with Live(get_renderable=draw, console=console, refresh_per_second=_REDRAWS_A_SECOND):
        yield say


_HEAD: Final = ("scope", "identity", "kind", "state", "values", "next in", "usable for")


def _row(one: Watched, now: float, *, show_secrets: bool) -> tuple[str, ...]:
    held = one.held
    if held is None:
        empty = (one.wish.scope, one.wish.identity or "-", "-", one.state, str(one.values), "-", "-")
        return (*empty, "-") if show_secrets else empty
    shown = (
        one.wish.scope,
        printable(held.identity),
        word(held, "kind"),
        one.state,
        str(one.values),
        show_seconds(max(0.0, one.left_until("refresh_time", now))),
        show_seconds(max(0.0, one.left_until("expire_time", now))),
    )
    headers = ", ".join(f"{header.name}: {header.value}" for header in held.headers)
    return (*shown, printable(headers)) if show_secrets else shown
