"""
What the broker touches while it answers warm calls: no store, no backend, no file but the audit log.

Two witnesses that know nothing of each other: the broker's own counters at the store and at the HTTP client, and a trace
of every syscall of the process. Both could be blind, so each run ends with a call that reads the store once, and counts
only if both see it.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.load import Load
from tests.bench.processes import Cores
from tests.bench.product import BACKEND_REQUESTS, STORE_CALLS, Product, explain_authorization, get_authorization
from tests.bench.report import Figure, Verdict
from tests.bench.syscalls import Expected, StraceMissingError, Syscall, Trace, sockets_of

CALLS: Final = 1000
_WARM_UP_CALLS: Final = 300
_CONTROL_CALLS: Final = 20
_CONNECTIONS: Final = 4
_STREAMS: Final = 8
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """
    What was seen during some calls.

    Attributes:
        calls: how many.
        failures: how many of them did not end OK.
        store_calls: by how much the broker's own count of store calls grew.
        backend_requests: the same of its requests to backends.
        answers_sent: how many syscalls wrote to callers: a trace without them saw nothing.
        unexpected: syscalls that answering a warm call does not need, with how often each came.
    """

    calls: int
    failures: int
    store_calls: int
    backend_requests: int
    answers_sent: int
    unexpected: Counter[Syscall]

    @property
    def seen(self) -> bool:
        """Whether the trace saw the calls at all."""
        return self.calls > 0 and self.failures == 0 and self.answers_sent > 0

    @property
    def counters_clean(self) -> bool:
        """Whether the broker counted nothing at its seams."""
        return self.store_calls == 0 and self.backend_requests == 0

    @property
    def trace_clean(self) -> bool:
        """Whether the trace holds nothing unexpected."""
        return not self.unexpected


def observe_hot_path(product: Product, *, calls: int) -> tuple[Observation, Observation]:
    """
    Trace warm calls, then a few among which one reads the store. Upkeep is paused and stays so.

    Returns:
        What was seen of the warm calls, and of the negative control.

    Raises:
        StraceMissingError: there is no strace.
        ServerError: the process may not be traced.
        LoadError: the load could not be kept up.
    """
    product.answer()
    with (
        Load(product.address, get_authorization(), connections=_CONNECTIONS, streams=_STREAMS) as warm,
        # Connected before the trace begins, so that the store read is all that tells the two observations apart.
        Load(product.address, explain_authorization("thread-nobody-used")) as reading,
    ):
        warm.for_calls(_WARM_UP_CALLS)
        product.pause_upkeep()
        return _observe(product, [(warm, calls)]), _observe(product, [(warm, _CONTROL_CALLS), (reading, 1)])


def _observe(product: Product, plan: list[tuple[Load, int]]) -> Observation:
    expected = Expected(
        port=product.settings.callers_port,
        audit_file=product.settings.audit_file,
        own_sockets=sockets_of(product.pid),
    )
    before = product.metrics()
    with Trace(product.pid, product.folder) as trace:
        runs = [load.for_calls(count) for load, count in plan]
    after = product.metrics()
    return Observation(
        calls=sum(run.calls for run in runs),
        failures=sum(run.failures for run in runs),
        store_calls=after.total(STORE_CALLS) - before.total(STORE_CALLS),
        backend_requests=after.total(BACKEND_REQUESTS) - before.total(BACKEND_REQUESTS),
        answers_sent=sum(1 for call in trace.calls if expected.sends_to_callers(call)),
        unexpected=Counter(expected.unexpected(trace.calls)),
    )


def measure_hot_path(cores: Cores) -> Figure:
    """Observe `CALLS` warm calls and the negative control."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-hot-path-") as folder,
        Product(Path(folder), core=cores.servers) as product,
    ):
        try:
            warm, control = observe_hot_path(product, calls=CALLS)
        except StraceMissingError:
            return _figure("-", Verdict.INVALID, ["strace is not on this machine; install it to measure this"])
    notes = [f"warm: {_show(warm)}", f"control, one store read: {_show(control)}"]
    if not (warm.seen and control.seen):
        return _figure("-", Verdict.INVALID, [*notes, "the trace did not see the calls"])
    if control.counters_clean or control.trace_clean:
        return _figure("-", Verdict.INVALID, [*notes, "a witness did not see the store read of the control"])
    clean = warm.counters_clean and warm.trace_clean
    value = f"{warm.store_calls} + {warm.backend_requests} counted, {warm.unexpected.total()} traced"
    return _figure(value, Verdict.MET if clean else Verdict.MISSED, notes, warm, control)


def _show(seen: Observation) -> str:
    shown = ", ".join(
        f"{call.name} {call.descriptor or ''} x{count}" for call, count in seen.unexpected.most_common(_SHOWN)
    )
    return (
        f"{seen.calls} calls, {seen.failures} failed; store calls {seen.store_calls}, backend requests"
        f" {seen.backend_requests}; unexpected syscalls {seen.unexpected.total()}" + (f": {shown}" if shown else "")
    )


def _figure(value: str, verdict: Verdict, notes: list[str], *observations: Observation) -> Figure:
    details = [
        {
            "calls": seen.calls,
            "store_calls": seen.store_calls,
            "backend_requests": seen.backend_requests,
            "answers_sent": seen.answers_sent,
            "unexpected": [[call.name, call.descriptor, count] for call, count in seen.unexpected.most_common()],
        }
        for seen in observations
    ]
    return Figure(
        name=f"store, backend and files touched in {CALLS} warm calls",
        value=value,
        goal="0 + 0 counted, 0 traced",
        verdict=verdict,
        notes=notes,
        details=dict(zip(("warm", "control"), details, strict=False)),
    )
