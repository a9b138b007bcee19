"""`python -m tests.bench`: measure, print a table or JSON, and say by the exit code what came of it."""

import os
import sys
from collections.abc import Callable

import click

from tests.bench.load import LoadError
from tests.bench.processes import Cores, ServerError
from tests.bench.report import Figure, as_json, as_table, exit_code

Measurement = Callable[[Cores], list[Figure]]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="For people or programs.")
@click.pass_context
def bench(context: click.Context, form: str) -> None:
    """Measure the broker's figures. docs/performance.md says how to read them.

    Exit codes: 0 every goal is met; 1 one is missed, or something was wrong with what was measured; 75 the machine was
    too noisy to say anything, run again.
    """
    context.obj = form


def _report(form: str, measure: Measurement) -> None:
    """Keep this process, the load, to one core and leave the other to the servers; measure, and print."""
    try:
        cores = Cores.choose()
        os.sched_setaffinity(0, {cores.load})
        figures = measure(cores)
    except (ServerError, LoadError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(as_json(figures) if form == "json" else as_table(figures))
    sys.exit(exit_code(figures))


_ROUNDS = click.option("--rounds", default=28, type=click.IntRange(4, 1000), help="Rounds of four windows of 0.5 s.")
_SEED = click.option("--seed", default=None, type=int, help="Repeats the order of the windows of another run.")
_CALLS = click.option(
    "--calls", default=16_384, type=click.IntRange(4096, 1_000_000), help="How many calls, 4,096 of them at once."
)
_SECONDS = click.option(
    "--watch-seconds",
    "seconds",
    default=40.0,
    type=click.FloatRange(10, 120),
    help="For how long it is looked whether values come in time.",
)
_TIMES = click.option("--times", default=5, type=click.IntRange(1, 100), help="How often the program is started.")

_IDENTITIES = click.option(
    "--identities", default=10_000, type=click.IntRange(1, 1_000_000), help="How many are there at a start with many."
)


@bench.command()
@_ROUNDS
@_SEED
@click.pass_obj
def cost(form: str, rounds: int, seed: int | None) -> None:
    """CPU of a warm GetAuthorization beside a bare grpc.aio echo."""
    _report(form, lambda cores: [_cost(cores, rounds, seed)])


@bench.command()
@_CALLS
@click.pass_obj
def flight(form: str, calls: int) -> None:
    """Errors with 4,096 calls in flight."""
    _report(form, lambda cores: [_flight(cores, calls)])


@bench.command("hot-path")
@click.pass_obj
def hot_path(form: str) -> None:
    """What 1,000 warm calls touch: seams by counters, files and sockets by strace."""
    _report(form, lambda cores: [_hot_path(cores)])


@bench.command()
@_ROUNDS
@_SEED
@_SECONDS
@click.pass_obj
def watch(form: str, rounds: int, seed: int | None, seconds: float) -> None:
    """Values over 1,000 watch streams: in time, their memory, and CPU beside unary answers."""
    _report(form, lambda cores: _watch(cores, rounds, seed, seconds))


@bench.command()
@_TIMES
@_IDENTITIES
@click.pass_obj
def startup(form: str, times: int, identities: int) -> None:
    """CPU of --help, and seconds from serve to SERVING, also with many identities."""
    _report(form, lambda _: _startup(times, identities))


@bench.command("dead-rows")
@click.option("--rows", default=1_000_000, type=click.IntRange(1_000, 10_000_000), help="How many expired tasks stand.")
@click.pass_obj
def dead_rows(form: str, rows: int) -> None:
    """Start-up beside very many tasks that are over, and the bites in which they are pruned."""
    _report(form, lambda _: _dead_rows(rows))


@bench.command()
@click.option("--revocations", default=500, type=click.IntRange(4, 100_000), help="Of all kinds in turn.")
@click.option("--workers", default=4, type=click.IntRange(1, 100), help="How many revoke at a time.")
@click.option("--callers", default=8, type=click.IntRange(1, 1000), help="How many call the other broker meanwhile.")
@click.pass_obj
def revocation(form: str, revocations: int, workers: int, callers: int) -> None:
    """Seconds until a revocation by one process is heeded by another on the same database."""
    _report(form, lambda cores: [_revocation(cores, revocations, workers, callers)])


@bench.command()
@click.option("--seconds", default=60.0, type=click.FloatRange(1, 3600), help="How long callers ask, in each round.")
@click.option("--rate", default=300, type=click.IntRange(1, 10_000), help="Calls a second.")
@click.option("--rotations", default=12, type=click.IntRange(1, 1000), help="Changes of key in each round.")
@click.pass_obj
def rotation(form: str, seconds: float, rate: int, rotations: int) -> None:
    """Headers rejected by the backend while the key is changed again and again."""
    _report(form, lambda cores: _rotation(cores, seconds, rate, rotations))


@bench.command()
@click.option("--rounds", default=10, type=click.IntRange(1, 1000), help="Of 100 parallel reports each.")
@click.option(
    "--reports", default=1000, type=click.IntRange(1, 1_000_000), help="To a backend that rejects everything."
)
@click.pass_obj
def rejection(form: str, rounds: int, reports: int) -> None:
    """What rejected credentials cost: 100 parallel reports of one, and reports that never help."""
    _report(form, lambda cores: _rejection(cores, rounds, reports))


@bench.command("all")
@_ROUNDS
@_SEED
@_CALLS
@_TIMES
@_IDENTITIES
@_SECONDS
@click.pass_obj
def everything(
    form: str, rounds: int, seed: int | None, calls: int, times: int, identities: int, seconds: float
) -> None:
    """All of these."""
    _report(
        form,
        lambda cores: [
            _cost(cores, rounds, seed),
            _flight(cores, calls),
            _hot_path(cores),
            *_watch(cores, rounds, seed, seconds),
            *_startup(times, identities),
        ],
    )


# Imported when measured, so that `--help` needs neither the broker's stubs nor an HTTP client.


def _cost(cores: Cores, rounds: int, seed: int | None) -> Figure:
    from tests.bench.cost import measure_cost

    return measure_cost(cores, rounds=rounds, seed=int.from_bytes(os.urandom(4), "big") if seed is None else seed)


def _flight(cores: Cores, calls: int) -> Figure:
    from tests.bench.flight import measure_flight

    return measure_flight(cores, calls=calls)


def _hot_path(cores: Cores) -> Figure:
    from tests.bench.hot_path import measure_hot_path

    return measure_hot_path(cores)


def _revocation(cores: Cores, revocations: int, workers: int, callers: int) -> Figure:
    from tests.bench.revocation import measure_revocation

    return measure_revocation(cores, revocations=revocations, workers=workers, callers=callers)


def _dead_rows(rows: int) -> list[Figure]:
    from tests.bench.dead_rows import measure_dead_rows

    return measure_dead_rows(rows=rows)


def _rotation(cores: Cores, seconds: float, rate: int, rotations: int) -> list[Figure]:
    from tests.bench.rotation import measure_rotation

    return measure_rotation(cores, seconds=seconds, rate=rate, rotations=rotations)


def _rejection(cores: Cores, rounds: int, reports: int) -> list[Figure]:
    from tests.bench.rejection import measure_rejection

    return measure_rejection(cores, rounds=rounds, reports=reports)


def _watch(cores: Cores, rounds: int, seed: int | None, seconds: float) -> list[Figure]:
    from tests.bench.watch import measure_in_time, measure_push

    push = measure_push(cores, rounds=rounds, seed=int.from_bytes(os.urandom(4), "big") if seed is None else seed)
    return [*measure_in_time(cores, seconds=seconds), push]


def _startup(times: int, identities: int) -> list[Figure]:
    from tests.bench.startup import measure_help, measure_many_identities, measure_serve

    return [
        measure_help(times=times),
        *measure_serve(times=times),
        measure_many_identities(identities=identities, times=times),
    ]


if __name__ == "__main__":
    bench()
