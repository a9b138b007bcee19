"""
What a warm GetAuthorization costs the server, in CPU, beside the least that `grpc.aio` can do.

Four servers are up together on one core: the broker, an echo with the same messages, a second one like it, and an echo of
bare bytes. The echoes get the broker's own request and answer with one of its own answers, so what passes over the wire is
the same to the byte. Rounds of one short window each, in random order, are compared within the round; what the two equal
echoes differ by is noise, and says whether the run is void.
"""

import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.bench.answers import WrongAnswerError
from tests.bench.load import OK, Load, Run
from tests.bench.processes import Cores, Server, cpu_between, cpu_by_thread
from tests.bench.product import (
    DECISIONS,
    HANDLED,
    Metrics,
    Product,
    check_samples,
    get_authorization,
)
from tests.bench.ratios import AA_HIGH, AA_LOW, Comparison, Estimate, Round, Window, compare, orders
from tests.bench.report import Figure, Verdict

GOAL: Final = 0.85
AIM: Final = 0.95
WINDOW_SECONDS: Final = 0.5
CONNECTIONS: Final = 8
STREAMS: Final = 8
SAMPLE_EVERY: Final = 100
_WARM_UP_SECONDS: Final = 1.0
_PRODUCT, _ECHO, _TWIN, _BYTES = "broker", "echo", "second echo", "echo of bytes"


def measure_cost(cores: Cores, *, rounds: int, seed: int) -> Figure:
    """
    Measure with so many rounds of a window each.

    Raises:
        ServerError: a server did not start or ended.
        LoadError: the load could not be kept up.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="bench-cost-") as place, ExitStack() as running:
        folder = Path(place)
        product = running.enter_context(Product(folder, core=cores.servers))
        answer = product.answer()
        pids, loads = {_PRODUCT: product.pid}, {_PRODUCT: running.enter_context(_load(product.address))}
        for echo in (_ECHO, _TWIN, _BYTES):
            server = running.enter_context(
                start_echo(folder, echo, answer, core=cores.servers, as_bytes=echo == _BYTES)
            )
            pids[echo] = server.pid
            loads[echo] = running.enter_context(_load(server.next_event()["address"]))
        for load in loads.values():
            load.for_seconds(_WARM_UP_SECONDS)

        witness = product.witness()
        totals = {name: Run() for name in loads}
        before = product.metrics()
        measured: list[Round] = []
        for order in orders(list(loads), rounds, chance):
            one: Round = {}
            for name in order:
                spent = cpu_by_thread(pids[name])
                run = loads[name].for_seconds(WINDOW_SECONDS)
                one[name] = Window(run.calls, cpu_between(spent, cpu_by_thread(pids[name])))
                totals[name].outcomes += run.outcomes
                totals[name].samples += run.samples
                if name == _PRODUCT:
                    totals[name].latencies += run.latencies
                    try:
                        check_samples(witness, run.samples)
                    except WrongAnswerError as error:
                        return _invalid(f"an answer is wrong: {error}")
            measured.append(one)
        after = product.metrics()

    trouble = _trouble(totals, before, after, answer)
    if trouble is not None:
        return _invalid(trouble)
    comparison = compare(measured, product=_PRODUCT, baseline=_ECHO, twin=_TWIN, beside=[_BYTES], chance=chance)
    return _figure(comparison, measured, totals, size=len(answer), seed=seed)


def start_echo(folder: Path, name: str, answer: bytes, *, core: int | None, as_bytes: bool = False) -> Server:
    """Start an echo of the broker's main call that answers with these bytes; it then says where it listens."""
    file = folder / f"{name}.answer"
    file.write_bytes(answer)
    return Server(
        name,
        "tests.bench.echo",
        ["--answer", str(file), *(["--bytes"] if as_bytes else [])],
        folder=folder,
        core=core,
    )


def _load(address: str) -> Load:
    return Load(address, get_authorization(), connections=CONNECTIONS, streams=STREAMS, sample_every=SAMPLE_EVERY)


def _trouble(totals: dict[str, Run], before: Metrics, after: Metrics, answer: bytes) -> str | None:
    """Say what makes the run invalid: a call that did not end OK, here or in the broker's own count, or a wrong answer."""
    for name, total in totals.items():
        if total.failures:
            return f"{name}: {total.failures} calls of {total.calls} did not end OK: {dict(total.outcomes)}"
        if len(total.samples) < total.calls // SAMPLE_EVERY:
            return f"{name}: only {len(total.samples)} answers of {total.calls} were looked at"
    if any(sample.message != answer for name in (_ECHO, _TWIN, _BYTES) for sample in totals[name].samples):
        return "an echo answered something else than it was given"
    calls = totals[_PRODUCT].calls
    counted = {
        f"{HANDLED}{{grpc_code=OK}}": _grown(before, after, HANDLED, grpc_method="GetAuthorization", grpc_code=OK),
        HANDLED: _grown(before, after, HANDLED, grpc_method="GetAuthorization"),
        DECISIONS: _grown(before, after, DECISIONS, kind="AGENT_ASSERTION"),
    }
    wrong = {name: count for name, count in counted.items() if count != calls}
    return f"{calls} calls were answered, but the broker counted {wrong}" if wrong else None


def _grown(before: Metrics, after: Metrics, name: str, **labels: str) -> int:
    return after.total(name, **labels) - before.total(name, **labels)


def _figure(comparison: Comparison, rounds: list[Round], totals: dict[str, Run], *, size: int, seed: int) -> Figure:
    ratio, control = comparison.ratio, comparison.control
    verdict = Verdict.MET if ratio.median >= GOAL else Verdict.MISSED
    if comparison.void:
        verdict = Verdict.VOID
    latencies = sorted(totals[_PRODUCT].latencies)
    notes = [
        f"A/A control {_show(control)}, must be {AA_LOW} to {AA_HIGH}",
        f"beside an echo of bytes, without any message class: {_show(comparison.beside[_BYTES])}",
        f"{totals[_PRODUCT].calls} calls, all OK at both ends, {len(totals[_PRODUCT].samples)} verified as signatures",
        "CPU per call, for orientation: "
        + ", ".join(f"{name} {value:.0f} µs" for name, value in comparison.medians_us.items()),
    ]
    return Figure(
        name="warm GetAuthorization, CPU of a bare echo over ours",
        value=_show(ratio),
        goal=f">= {GOAL} (aim {AIM})",
        verdict=verdict,
        notes=notes,
        details={
            "ratio": _json(ratio),
            "aa_control": _json(control),
            "ratio_to_bytes": _json(comparison.beside[_BYTES]),
            "median_us_per_call": comparison.medians_us,
            "calls": {name: total.calls for name, total in totals.items()},
            "verified": len(totals[_PRODUCT].samples),
            "answer_bytes": size,
            "in_flight": CONNECTIONS * STREAMS,
            "latency_ms": {f"p{percent}": 1000 * latencies[len(latencies) * percent // 100] for percent in (50, 99)},
            "seed": seed,
            "rounds": [{name: [one.calls, one.cpu_ns] for name, one in turn.items()} for turn in rounds],
        },
    )


def _invalid(reason: str) -> Figure:
    return Figure(
        name="warm GetAuthorization, CPU of a bare echo over ours",
        value="-",
        goal=f">= {GOAL} (aim {AIM})",
        verdict=Verdict.INVALID,
        notes=[reason],
    )


def _show(estimate: Estimate) -> str:
    return f"{estimate.median:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _json(estimate: Estimate) -> dict[str, Any]:
    return {"median": estimate.median, "low": estimate.low, "high": estimate.high}
