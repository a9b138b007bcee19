"""`credential-broker serve`."""

from typing import Any

import click

from broker import app
from broker.cli.config import config_options, load
from broker.cli.failures import exit_at_start
from broker.cli.help import examples
from broker.errors import StartupError


@click.command(
    epilog=examples(
        "credential-broker check-config --config broker.toml",
        "credential-broker serve --config broker.toml",
        "# with a setting from the environment",
        "CREDENTIAL_BROKER_LOG__LEVEL=debug credential-broker serve --config broker.toml",
        "# against an emulated backend",
        "CREDENTIAL_BROKER_BACKENDS__DEFAULT__BASE_URL=http://127.0.0.1:8089/backend-api"
        " credential-broker serve --dev --state-dir ./state",
    )
)
@config_options
@click.pass_context
def serve(context: click.Context, /, **where: Any) -> None:
    """
    Run the broker.

    It listens for callers and operators where the configuration says, and logs one event a line to standard error.
    Until callers are authenticated these are loopback addresses and Unix sockets only. SIGTERM and Ctrl-C let accepted
    calls end first.

    Every key of the configuration can be overridden by CREDENTIAL_BROKER_<SECTION>__<KEY>.
    """
    config = load(**where)
    try:
        code = app.run(config)
    except StartupError as error:
        exit_at_start(error)
    except KeyboardInterrupt:  # while it was starting; later, `run` takes signals itself
        code = 0
    context.exit(code)
