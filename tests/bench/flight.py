"""
How many calls at once the broker withstands without failing one.

grpcio cancels calls above some thousand in flight unless `grpc.server.max_pending_requests` and its hard limit are raised.
A bare echo with grpcio's defaults gets the same load as a control: when it fails no call, the load was not what it claims.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.answers import WrongAnswerError
from tests.bench.cost import start_echo
from tests.bench.load import Load, Run
from tests.bench.processes import Cores
from tests.bench.product import Product, check_samples, get_authorization
from tests.bench.report import Figure, Verdict

IN_FLIGHT: Final = 4096
STREAMS: Final = 32
"""
Calls in flight on each connection: less than half of the 100 that the broker allows.

grpcio counts a call until the write of its trailers has returned, so a caller that has read them and goes on at once may
find its old and its new calls counted together. Above the limit grpcio answers REFUSED_STREAM, which says that nothing was
done and which gRPC's own clients repeat unseen; this generator does not hide it.
"""
_SAMPLE_EVERY: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """What the broker and the control did under the same number of calls in flight."""

    product: Run
    control: Run


def observe_flight(product: Product, *, in_flight: int, calls: int, control_core: int | None = None) -> Flight:
    """
    Make calls at the broker, so many at once, then at an echo with grpcio's own limits.

    Args:
        product: the broker.
        in_flight: how many at once, a multiple of `STREAMS`.
        calls: how many in all.
        control_core: the core the echo is bound to.

    Raises:
        LoadError: the load could not be kept up.
        WrongAnswerError: the broker answered what no backend would accept.
    """
    answer = product.answer()
    witness = product.witness()
    with ExitStack() as running:
        server = running.enter_context(start_echo(product.folder, "control", answer, core=control_core))
        runs = []
        for address in (product.address, server.next_event()["address"]):
            with Load(
                address,
                get_authorization(),
                connections=in_flight // STREAMS,
                streams=STREAMS,
                sample_every=_SAMPLE_EVERY,
            ) as load:
                runs.append(load.for_calls(calls))
    check_samples(witness, runs[0].samples)
    return Flight(product=runs[0], control=runs[1])


def measure_flight(cores: Cores, *, calls: int) -> Figure:
    """Measure so many calls, `IN_FLIGHT` at once."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-flight-") as folder,
        Product(Path(folder), core=cores.servers) as product,
    ):
        try:
            flight = observe_flight(product, in_flight=IN_FLIGHT, calls=calls, control_core=cores.servers)
        except WrongAnswerError as error:
            return _figure("-", Verdict.INVALID, [f"an answer is wrong: {error}"])
    run, control = flight.product, flight.control
    notes = [
        f"control, an echo with grpcio's own limits: {control.failures} of {control.calls} failed",
        f"the broker's answers: {dict(run.outcomes)}",
    ]
    if not control.failures or run.peak_in_flight != IN_FLIGHT:
        return _figure("-", Verdict.INVALID, [*notes, "the load was too small to prove anything"])
    verdict = Verdict.MISSED if run.failures else Verdict.MET
    return _figure(f"{run.failures} errors in {run.calls} calls", verdict, notes, flight)


def _figure(value: str, verdict: Verdict, notes: list[str], flight: Flight | None = None) -> Figure:
    details = {}
    if flight is not None:
        details = {
            "peak_in_flight": flight.product.peak_in_flight,
            "seconds": flight.product.seconds,
            "outcomes": dict(flight.product.outcomes),
            "control_outcomes": dict(flight.control.outcomes),
        }
    return Figure(
        name=f"{IN_FLIGHT} calls in flight", value=value, goal="0 errors", verdict=verdict, notes=notes, details=details
    )
