"""Reading the configuration for a command, and the commands `check-config` and `migrate`."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.app import store_of
from broker.cli.failures import exit_at_start
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_json
from broker.config import Config, load_config
from broker.errors import StartupError, StoreDownError

Function = TypeVar("Function", bound=Callable[..., Any])


def config_options(function: Function) -> Function:
    """Give a command the options that name the configuration; pass what they give to `load`."""
    options = (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            envvar="CREDENTIAL_BROKER_CONFIG",
            show_envvar=True,
            help="The configuration, TOML; unset, every setting has its default.",
        ),
        click.option(
            "--state-dir",
            type=click.Path(path_type=Path),
            help="Where database, keys and audit log stand; unset, $XDG_STATE_HOME/credential-broker.",
        ),
        click.option(
            "--dev", is_flag=True, help="Allow plain http to backends on loopback, and only loopback listeners."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def load(*, config_file: Path | None, state_dir: Path | None, dev: bool, says: str = "cannot start") -> Config:
    """Return the settings, or print every problem (after what they come to, `says`) and end with exit code 78."""
    overrides = {"broker": {"state_dir": str(state_dir)}} if state_dir is not None else None
    try:
        return load_config(config_file, environment(), dev=dev, overrides=overrides)
    except StartupError as error:
        exit_at_start(error, says=says)


def environment() -> Mapping[str, str]:
    """Return the environment of the process: the one place where commands take it from."""
    return os.environ  # noqa: TID251 - handed to broker.config, which is where settings are read


@click.command(
    "check-config",
    epilog=examples(
        "credential-broker check-config --config broker.toml",
        "# with every default filled in",
        "credential-broker check-config --config broker.toml --format json",
        "# a setting from the environment, as `serve` would take it",
        "CREDENTIAL_BROKER_LOG__LEVEL=debug credential-broker check-config",
    ),
)
@config_options
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check_config(*, form: str, **where: Any) -> None:
    """
    Check a configuration and name every problem at once.

    It reads what `serve` would read, the environment included, and touches nothing else: no database, no key, no
    backend. Exit code 78 when something is wrong.
    """
    config = load(**where, says="wrong")
    if form == "json":
        echo_json(config.model_dump(mode="json"))
        return
    echo_fields(
        (
            ("callers", ", ".join(config.listen.callers)),
            ("admin", ", ".join(config.listen.admin)),
            ("http", config.listen.http or "off"),
            ("tls", "on" if config.listen.tls else "off"),
            ("store", config.store_url),
            ("audit log", str(config.audit_file)),
            ("scopes", str(len(config.scope_catalogue()))),
            *(
                (f"backend {name}", f"{backend.base_url} ({backend.profile})")
                for name, backend in config.backends.items()
            ),
            *(
                (f"bearer source {name}", f"{source.type}, {source.summary}")
                for name, source in config.bearer_sources.items()
            ),
        )
    )
    click.echo("the configuration is sound")


@click.command(
    epilog=examples(
        "credential-broker migrate --config broker.toml",
        "# a copy of the state directory, to see whether this version takes it",
        "credential-broker migrate --state-dir ./copy",
    )
)
@config_options
def migrate(**where: Any) -> None:
    """
    Bring the database to this version's schema and say its revision.

    `serve` does so by itself; this is for doing it before, or for trying it on a copy. An empty database is made. It is
    safe beside running brokers: migrations run once, under a lock, whole or not at all.
    """
    says = "cannot migrate"
    config = load(**where, says=says)
    try:
        revision = asyncio.run(_migrate(config))
    except StartupError as error:
        exit_at_start(error, says=says)
    except StoreDownError as error:
        exit_at_start(StartupError(f"{config.store_url}: {error.note or error.text}", exit_code=69), says=says)
    click.echo(f"{config.store_url} has revision {revision}")


async def _migrate(config: Config) -> str:
    store = store_of(config)
    await store.open()
    try:
        return (await store.statistics()).schema_version
    finally:
        await store.close()
