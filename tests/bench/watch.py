"""
What watching costs: values that come in time, memory of a stream, and CPU of a value beside that of a unary answer.

The second figure has three brokers up on one core: two that answer unary calls, of which one is the control, and one
whose watchers receive values all the time. CPU is that of each process alone, in rounds of one window of each.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from credentialbroker.v1 import credential_broker_pb2 as pb

from tests.bench.answers import WrongAnswerError
from tests.bench.cost import CONNECTIONS, STREAMS, WINDOW_SECONDS
from tests.bench.load import Load, LoadError, Run
from tests.bench.processes import Cores, cpu_between, cpu_by_thread
from tests.bench.product import IDENTITY, Product, check_samples, get_authorization
from tests.bench.ratios import AA_HIGH, AA_LOW, Comparison, Round, Window, compare, orders
from tests.bench.report import Figure, Verdict
from tests.bench.watchers import Watchers

STREAMS_WATCHING: Final = 1000
SCOPES: Final = (
    "inference",
    "inference.compaction",
    "inference.memories",
    "inference.realtime",
    "inference.review",
    "thread",
    "thread.files",
    "thread.safety",
    "control_plane.models",
    "control_plane.usage",
)
"""What a stream subscribes to: all that one run of an agent needs."""
SUBSCRIPTIONS: Final = len(SCOPES)
IN_TIME_LIFETIME: Final = 20
"""Seconds for which an assertion lives while it is looked whether values come in time: replaced within 10."""
IN_TIME_SECONDS: Final = 40.0
RATIO_GOAL: Final = 4.0
_RATIO_LIFETIME: Final = 4
_WATCH_WINDOW_SECONDS: Final = 1.5
_WARM_UP_SECONDS: Final = 2.0
_FIRST_VALUES_SECONDS: Final = 120.0
_SAMPLE_EVERY: Final = 500
_UNARY, _TWIN, _WATCH = "unary", "second unary", "watch"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_IN_TIME = f"{STREAMS_WATCHING} watch streams with {SUBSCRIPTIONS} subscriptions each, values that came late"
_MEMORY = "memory of an idle watch stream"
_RATIO = "values over watch streams for each unary answer, by CPU"


def measure_in_time(cores: Cores, *, seconds: float = IN_TIME_SECONDS) -> list[Figure]:
    """
    Hold so many streams, each subscription for a thread of its own, and see whether every value is replaced in time.

    Raises:
        ServerError: a server did not start or ended.
        LoadError: a stream ended, or values did not come.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-watch-") as place,
        Product(Path(place), core=cores.servers, assertion_lifetime=IN_TIME_LIFETIME) as product,
    ):
        product.answer()
        bare = _resident(product.pid)
        with Watchers(product.address, streams=STREAMS_WATCHING, subscriptions=lambda _: ()) as idle:
            time.sleep(_WARM_UP_SECONDS)
            idle.check()
            of_stream = (_resident(product.pid) - bare) / STREAMS_WATCHING
        return [*_in_time(product, seconds), _memory(of_stream)]


def _in_time(product: Product, seconds: float) -> Iterator[Figure]:
    total = STREAMS_WATCHING * SUBSCRIPTIONS
    before = _resident(product.pid)
    with Watchers(
        product.address,
        streams=STREAMS_WATCHING,
        subscriptions=own_thread,
        looks_at_times=True,
        sample_every=_SAMPLE_EVERY,
    ) as watchers:
        received = watchers.received
        end = time.monotonic() + _FIRST_VALUES_SECONDS
        while len(received.due) < total:
            watchers.check()
            if time.monotonic() > end:
                raise LoadError(f"{len(received.due)} subscriptions of {total} have a value")
            time.sleep(0.1)
        # Of the crowd at the start the last may be served seconds after their values were signed.
        received.samples.clear()
        first, spent, begun = received.values, cpu_by_thread(product.pid), time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(0.5)
            watchers.check()
        values, cpu = received.values - first, cpu_between(spent, cpu_by_thread(product.pid))
        late = received.late + watchers.overdue()
        watched = (_resident(product.pid) - before) / STREAMS_WATCHING
        try:
            check_samples(product.witness(), received.samples)
        except WrongAnswerError as error:
            yield Figure(name=_IN_TIME, value="-", goal="0", verdict=Verdict.INVALID, notes=[f"wrong: {error}"])
            return
    yield Figure(
        name=_IN_TIME,
        value=f"{late} of {values}",
        goal="0",
        verdict=Verdict.MET if late == 0 and values > total else Verdict.MISSED,
        notes=[
            f"{total} topics: each stream has a thread of its own; assertions live for {IN_TIME_LIFETIME} s",
            f"{values / seconds:.0f} values a second, {cpu / values / 1000:.0f} µs of CPU each",
            f"{len(received.samples)} verified as signatures; {received.others} other events",
            f"memory of a stream with {SUBSCRIPTIONS} such subscriptions: {watched / 1024:.1f} KiB",
        ],
        details={"values": values, "late": late, "cpu_ns": cpu, "seconds": seconds, "bytes_a_stream": watched},
    )


def _memory(of_stream: float) -> Figure:
    return Figure(
        name=_MEMORY,
        value=f"{of_stream / 1024:.1f} KiB",
        goal="printed",
        verdict=Verdict.MET,
        notes=["growth of the resident memory by streams without subscriptions, gRPC's part included"],
        details={"bytes": of_stream},
    )


def measure_push(cores: Cores, *, rounds: int, seed: int) -> Figure:
    """
    Compare values that are pushed with values that are asked for.

    Raises:
        ServerError: a server did not start or ended.
        LoadError: the load could not be kept up.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="bench-push-") as place, ExitStack() as running:
        folder = Path(place)
        products: dict[str, Product] = {}
        for name in (_UNARY, _TWIN, _WATCH):
            own = folder / name.replace(" ", "-")
            own.mkdir()
            lifetime = _RATIO_LIFETIME if name == _WATCH else None
            products[name] = running.enter_context(Product(own, core=cores.servers, assertion_lifetime=lifetime))
            products[name].answer()
        loads = {
            name: running.enter_context(
                Load(products[name].address, get_authorization(), connections=CONNECTIONS, streams=STREAMS)
            )
            for name in (_UNARY, _TWIN)
        }
        watchers = running.enter_context(
            Watchers(
                products[_WATCH].address,
                streams=STREAMS_WATCHING,
                subscriptions=shared_thread,
                sample_every=_SAMPLE_EVERY,
            )
        )
        watchers.wait_for_events(2 * STREAMS_WATCHING * SUBSCRIPTIONS, seconds=_FIRST_VALUES_SECONDS)
        for load in loads.values():
            load.for_seconds(_WARM_UP_SECONDS)
        measured: list[Round] = []
        failures = 0
        for order in orders([*loads, _WATCH], rounds, chance):
            one: Round = {}
            for name in order:
                spent = cpu_by_thread(products[name].pid)
                if name == _WATCH:
                    before = watchers.received.values
                    time.sleep(_WATCH_WINDOW_SECONDS)
                    watchers.check()
                    done = watchers.received.values - before
                else:
                    run: Run = loads[name].for_seconds(WINDOW_SECONDS)
                    failures += run.failures
                    done = run.calls
                one[name] = Window(done, cpu_between(spent, cpu_by_thread(products[name].pid)))
            measured.append(one)
        samples = watchers.received.samples
        try:
            check_samples(products[_WATCH].witness(), samples)
        except WrongAnswerError as error:
            return _ratio("-", Verdict.INVALID, [f"a value is wrong: {error}"])
    if failures:
        return _ratio("-", Verdict.INVALID, [f"{failures} unary calls did not end OK"])
    comparison = compare(measured, product=_WATCH, baseline=_UNARY, twin=_TWIN, chance=chance)
    return _push_figure(comparison, measured, len(samples), seed)


def _push_figure(comparison: Comparison, measured: list[Round], verified: int, seed: int) -> Figure:
    ratio, control = comparison.ratio, comparison.control
    verdict = Verdict.MET if ratio.median >= RATIO_GOAL else Verdict.MISSED
    if comparison.void:
        verdict = Verdict.VOID
    values = sum(one[_WATCH].calls for one in measured)
    notes = [
        f"A/A control {control.median:.3f}, must be {AA_LOW} to {AA_HIGH}",
        f"{STREAMS_WATCHING} streams with the same {SUBSCRIPTIONS} subscriptions",
        f"{values} values, {verified} verified as signatures",
        "CPU, for orientation: " + ", ".join(f"{name} {value:.0f} µs" for name, value in comparison.medians_us.items()),
    ]
    return _ratio(
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        verdict,
        notes,
        {
            "ratio": ratio.median,
            "control": control.median,
            "median_us": comparison.medians_us,
            "values": values,
            "seed": seed,
            "rounds": [{name: [one.calls, one.cpu_ns] for name, one in turn.items()} for turn in measured],
        },
    )


def _ratio(value: str, verdict: Verdict, notes: list[str], details: dict[str, object] | None = None) -> Figure:
    return Figure(
        name=_RATIO, value=value, goal=f">= {RATIO_GOAL}", verdict=verdict, notes=notes, details=details or {}
    )


def own_thread(stream: int) -> list[pb.Subscribe]:
    """Return what a stream subscribes to that works on a thread of its own."""
    return _subscriptions(f"thread-{stream}")


def shared_thread(_stream: int) -> list[pb.Subscribe]:
    """Return what streams subscribe to that all work on one thread."""
    return _subscriptions("thread-bench")


def _subscriptions(thread_id: str) -> list[pb.Subscribe]:
    return [
        pb.Subscribe(subscription_id=scope, scope=scope, thread_id=thread_id, identity=IDENTITY) for scope in SCOPES
    ]


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
