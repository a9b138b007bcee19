"""Events and metrics: one event a line, no secret through any door, no label that names anybody."""

import io
import json
import logging
from collections.abc import Iterator
from enum import StrEnum

import pytest
import structlog
from prometheus_client import generate_latest

from broker.model import CredentialKind, DecisionReason, Secret
from broker.telemetry import Metrics, configure_logging, logger, redact

CREDENTIALS = [
    "Bearer abc.def-ghi",
    "AgentAssertion eyJhbGciOiJub25lIn0",
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "sk-abcdefgh12345678",
    "at-abcdefgh12345678",
    "rt-abcdefgh12345678",
    "MC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAA",
    "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----",
]


class Colour(StrEnum):
    """A text that is a class of its own."""

    RED = "red"


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Leave logging as it was found: it belongs to the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configured(style: str, level: str = "debug") -> io.StringIO:
    """Send every event to a buffer."""
    stream = io.StringIO()
    configure_logging(level, style, stream)
    return stream


def failure(secret: str) -> Exception:
    """Make an exception with a cause, as a failed parse of a secret raises it."""
    try:
        int(secret)
    except ValueError as cause:
        try:
            raise RuntimeError(f"cannot use {secret}") from cause  # noqa: TRY301 - the point is to catch it
        except RuntimeError as error:
            return error
    raise AssertionError("a secret is no number")


@pytest.mark.parametrize("text", CREDENTIALS)
def test_what_looks_like_a_credential_is_cut_out(text: str) -> None:
    """Every shape of a credential that the broker handles is cut out of a text around it."""
    shown = redact(f"before {text}")
    assert shown.startswith("before [redacted]")
    assert all(part not in shown for part in text.split()[1:])


def test_a_long_text_is_bounded() -> None:
    """A stranger's megabyte does not become a megabyte of log."""
    shown = redact("word " * 200_000)
    assert len(shown) < 2100
    assert "(1000000 characters)" in shown


@pytest.mark.parametrize("text", CREDENTIALS)
def test_no_field_shows_a_credential(text: str) -> None:
    """Neither the event, nor a value, nor a key, however deep, carries a credential into the line."""
    stream = configured("json")
    logger("m").info(f"event {text}", plain=text, deep=[{"key": (text,)}, {text: 1}], enum=Colour.RED)
    (line,) = stream.getvalue().splitlines()
    assert max(text.split(), key=len) not in line
    assert json.loads(line)["enum"] == "red"


def test_only_plain_values_pass() -> None:
    """Secrets, bytes and objects are shown as their type, whatever their repr would say."""

    class Talkative:
        def __repr__(self) -> str:
            return "hunter2-in-repr"

    stream = configured("json")
    logger("m").info("event", a=Secret("hunter2"), b=b"hunter2-bytes", c=Talkative(), d={"e": [Talkative()]}, n=1.5)
    line = json.loads(stream.getvalue())
    assert (line["a"], line["b"], line["c"], line["d"]) == (
        "<Secret>",
        "<bytes>",
        "<Talkative>",
        {"e": ["<Talkative>"]},
    )
    assert line["n"] == 1.5
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("style", ["json", "console"])
def test_an_exception_shows_where_it_arose_and_not_what_it_says(style: str) -> None:
    """An exception, of ours or of a library, is its types and places; its text may quote a secret and stays out."""
    stream = configured(style)
    error = failure("hunter2")
    logger("m").error("ours", exc_info=error)
    logging.getLogger("library").error("theirs", exc_info=error)
    ours, theirs = stream.getvalue().splitlines()
    for line in (ours, theirs):
        assert "RuntimeError at test_telemetry.py:" in line
        assert "caused by ValueError at test_telemetry.py:" in line
        assert "hunter2" not in line


def test_the_exception_at_hand_is_found() -> None:
    """Within `except`, `exc_info=True` names what is being handled."""
    stream = configured("json")
    try:
        int("hunter2")
    except ValueError:
        logger("m").error("failed", exc_info=True)
    assert json.loads(stream.getvalue())["error"].startswith("ValueError at ")


@pytest.mark.parametrize("style", ["json", "console"])
def test_one_event_is_one_line(style: str) -> None:
    """No text can begin a line of its own or steer a terminal, neither in the event nor in a value."""
    stream = configured(style)
    hostile = "one\ntwo\r\x1b[31mred\x85\u2028three"
    logger("m").info(hostile, value=hostile)
    logging.getLogger("library").warning("%s", hostile)
    text = stream.getvalue()
    assert text.count("\n") == len(text.splitlines()) == 2
    assert "\x1b" not in text


def test_json_lines_are_json() -> None:
    """A line parses, is ASCII, and has its time, level and module."""
    stream = configured("json")
    logger("broker.x").warning("café", count=2)
    assert stream.getvalue().isascii()
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["module"], line["count"]) == ("café", "warning", "broker.x", 2)
    assert line["time"].endswith("Z")


def test_the_level_holds_for_ours_and_libraries_stay_quieter() -> None:
    """Events below the level are dropped; what libraries say below a warning is dropped at every level."""
    stream = configured("json", "info")
    logger("m").debug("too low")
    logger("m").info("shown")
    logging.getLogger("httpx").info("GET https://example.org/?token=hunter2")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["shown"]
    stream = configured("json", "debug")
    logging.getLogger("httpx").info("GET https://example.org/?token=hunter2")
    logger("m").debug("now shown")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["now shown"]


def test_a_fallback_is_counted_as_a_decision_and_as_a_fallback() -> None:
    """An answer counts once by kind and reason, and once more when it is weaker than the scope prefers."""
    metrics = Metrics()
    for scope, kind, reason, fallback_from in (
        ("a", CredentialKind.AGENT_ASSERTION, DecisionReason.TASK_ASSERTION, None),
        ("b", CredentialKind.BEARER, DecisionReason.TASK_UNAVAILABLE, CredentialKind.AGENT_ASSERTION),
    ):
        for tally in metrics.decision_tallies(scope, kind, reason, fallback_from):
            tally.value += 1
    text = generate_latest(metrics.registry).decode()
    assert 'credential_broker_decisions_total{kind="AGENT_ASSERTION",reason="TASK_ASSERTION",scope="a"} 1.0' in text
    assert 'credential_broker_fallbacks_total{reason="TASK_UNAVAILABLE",scope="b"} 1.0' in text
    assert 'credential_broker_fallbacks_total{reason="TASK_ASSERTION"' not in text


def test_no_metric_has_a_label_that_names_anybody() -> None:
    """Labels are few and come from closed sets: no identity, thread, principal or task."""
    metrics = Metrics()
    labels = {name for metric in metrics.registry.collect() for sample in metric.samples for name in sample.labels}
    labels |= {name for family in vars(metrics).values() for name in getattr(family, "label_names", ())}
    assert "scope" in labels
    assert labels <= {
        "grpc_type",
        "grpc_service",
        "grpc_method",
        "grpc_code",
        "scope",
        "kind",
        "reason",
        "backend",
        "operation",
        "outcome",
        "step",
        "method",
        "state",
        "version",
        "le",
        "source",
        "what",
    }


def test_two_brokers_in_one_process_count_apart() -> None:
    """Metrics live in a registry of their own."""
    one, other = Metrics(), Metrics()
    one.count(one.signatures)
    assert one.registry.get_sample_value("credential_broker_signatures_total") == 1
    assert other.registry.get_sample_value("credential_broker_signatures_total") == 0


def test_a_counter_takes_as_many_labels_as_it_has() -> None:
    """A count under too few labels is a defect that raises, not a series that nobody finds."""
    metrics = Metrics()
    with pytest.raises(ValueError, match="reason"):
        metrics.count(metrics.refusals)
    metrics.count(metrics.refusals, "STORE_DOWN")
    assert metrics.registry.get_sample_value("credential_broker_refusals_total", {"reason": "STORE_DOWN"}) == 1


def test_durations_are_cumulative() -> None:
    """Each bucket counts all that took at most as long, a value on a bound included, and the last counts everything."""
    metrics = Metrics()
    method = ("unary", "service", "method")
    for seconds in (0.0005, 0.0006, 0.3, 60.0):
        metrics.rpc_seconds.labels(*method).observe(seconds)
    labels = dict(zip(("grpc_type", "grpc_service", "grpc_method"), method, strict=True))
    name = "grpc_server_handling_seconds"

    def bucket(bound: str) -> float | None:
        return metrics.registry.get_sample_value(f"{name}_bucket", {**labels, "le": bound})

    assert [bucket(bound) for bound in ("0.0005", "0.001", "0.25", "0.5", "10.0", "+Inf")] == [1, 2, 2, 3, 3, 4]
    assert metrics.registry.get_sample_value(f"{name}_count", labels) == 4
    assert metrics.registry.get_sample_value(f"{name}_sum", labels) == pytest.approx(60.3011)
