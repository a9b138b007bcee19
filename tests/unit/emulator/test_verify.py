"""The emulator's own checks: what the protocol's writer makes is accepted, every near miss is refused by name."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from broker.emulator.refusal import Refusal
from broker.emulator.verify import (
    canonical_json,
    check_freshness,
    format_ssh_public_key,
    parse_agent_registration,
    parse_assertion,
    parse_json_object,
    parse_ssh_public_key,
    parse_task_registration,
    parse_timestamp,
)
from tests.support.codex_client import agent_body, b64, b64url, compact, envelope, task_body

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "agent_identity.json").read_text())
KEY = SigningKey(b"\x07" * 32)
PUBLIC = bytes(KEY.verify_key)
AT = "2026-04-23T00:00:00Z"
SIGNED = envelope(KEY, "agent-123", "task-123", AT)


def refusal(call: Any, *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Run a check that must refuse; return status and code."""
    with pytest.raises(Refusal) as caught:
        call(*args, **kwargs)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("vector", VECTORS["assertions"], ids=lambda vector: vector["agent_runtime_id"])
def test_accepts_the_golden_assertions(vector: dict[str, str]) -> None:
    """Each golden header parses, verifies under its key and re-encodes to the golden envelope."""
    assertion = parse_assertion(vector["header_value"].removeprefix("AgentAssertion "))
    assertion.verify_signature(bytes.fromhex(vector["public_key_hex"]))
    fields = {
        "agent_runtime_id": assertion.agent_runtime_id,
        "signature": b64(assertion.signature),
        "task_id": assertion.task_id,
        "timestamp": assertion.timestamp,
    }
    assert vector["envelope_json"].encode() == canonical_json(fields)


@pytest.mark.parametrize("vector", VECTORS["assertions"], ids=lambda vector: vector["agent_runtime_id"])
def test_accepts_the_golden_task_registrations(vector: dict[str, str]) -> None:
    """Each golden registration signature verifies under its key."""
    body = {"timestamp": vector["timestamp"], "signature": vector["registration_signature_base64"]}
    registration = parse_task_registration(body, allow_external_task_ref=False)
    registration.verify_signature(vector["agent_runtime_id"], bytes.fromhex(vector["public_key_hex"]))


@pytest.mark.parametrize("vector", VECTORS["assertions"], ids=lambda vector: vector["agent_runtime_id"])
def test_reads_and_writes_the_golden_public_keys(vector: dict[str, str]) -> None:
    """The ssh form converts to the raw key and back."""
    public_key = parse_ssh_public_key(vector["ssh_public_key"])
    assert bytes.fromhex(vector["public_key_hex"]) == public_key
    assert vector["ssh_public_key"] == format_ssh_public_key(public_key)


def _reordered() -> bytes:
    order = ("task_id", "agent_runtime_id", "signature", "timestamp")
    return json.dumps({name: SIGNED[name] for name in order}, separators=(",", ":")).encode()


def _duplicated() -> bytes:
    return compact(SIGNED).replace(b"{", b'{"agent_runtime_id":"agent-123",', 1)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(_reordered(), "assertion_not_canonical", id="keys not sorted"),
        pytest.param(json.dumps(SIGNED, sort_keys=True).encode(), "assertion_not_canonical", id="spaces"),
        pytest.param(_duplicated(), "assertion_not_canonical", id="duplicate key"),
        pytest.param(
            compact(SIGNED).replace(b"task-123", b"t\\u0061sk-123"), "assertion_not_canonical", id="needless escape"
        ),
        pytest.param(compact(SIGNED).replace(b"task-123", b"\\ud800"), "assertion_not_canonical", id="lone surrogate"),
        pytest.param(compact({**SIGNED, "extra": "x"}), "assertion_fields_invalid", id="extra field"),
        pytest.param(compact({**SIGNED, "task_id": ""}), "assertion_fields_invalid", id="empty field"),
        pytest.param(compact(SIGNED).replace(b'"task-123"', b"123"), "assertion_fields_invalid", id="number"),
        pytest.param(b"[]", "assertion_fields_invalid", id="list"),
        pytest.param(b"{}", "assertion_fields_invalid", id="no field"),
        pytest.param(b"\xff", "assertion_json_invalid", id="not UTF-8"),
        pytest.param(b"{", "assertion_json_invalid", id="not JSON"),
        pytest.param(b"[" * 6000, "assertion_json_invalid", id="deep"),
        pytest.param(compact({**SIGNED, "timestamp": "2026-04-23T00:00:00.0Z"}), "timestamp_invalid", id="fraction"),
        pytest.param(compact({**SIGNED, "timestamp": "2026-04-23 00:00:00"}), "timestamp_invalid", id="no zone"),
        pytest.param(compact({**SIGNED, "timestamp": "2026-13-23T00:00:00Z"}), "timestamp_invalid", id="month 13"),
        pytest.param(
            compact({**SIGNED, "signature": SIGNED["signature"].rstrip("=")}),
            "signature_encoding_invalid",
            id="signature without padding",
        ),
        pytest.param(compact({**SIGNED, "signature": b64(b"\x00" * 63)}), "signature_encoding_invalid", id="63 bytes"),
        pytest.param(
            compact({**SIGNED, "signature": SIGNED["signature"].replace("w==", "x==")}),
            "signature_encoding_invalid",
            id="stray bits in the signature",
        ),
        pytest.param(
            compact({**SIGNED, "signature": "_" + SIGNED["signature"][1:]}),
            "signature_encoding_invalid",
            id="URL-safe signature",
        ),
    ],
)
def test_refuses_an_envelope_the_writer_cannot_produce(raw: bytes, code: str) -> None:
    """Anything but the one canonical envelope is refused with its own code."""
    assert (401, code) == refusal(parse_assertion, b64url(raw))


# Its length leaves two bits over in base64: padding and stray bits are both possible.
ODD = b64url(compact({**SIGNED, "task_id": "t"}))


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        pytest.param(ODD + "==", "assertion_padded", id="padded"),
        pytest.param(ODD.removesuffix("fQ") + "fR", "assertion_encoding_invalid", id="stray bits"),
        pytest.param(base64.b64encode(b"\xfb\xff\xfe").decode(), "assertion_encoding_invalid", id="standard alphabet"),
        pytest.param(ODD + "\n", "assertion_encoding_invalid", id="line end"),
        pytest.param("", "assertion_encoding_invalid", id="empty"),
        pytest.param("A", "assertion_encoding_invalid", id="one character"),
        pytest.param("A" * 8193, "assertion_too_long", id="too long"),
    ],
)
def test_refuses_other_spellings_of_base64(credentials: str, code: str) -> None:
    """Padding, the standard alphabet and stray bits are refused, even where a lenient reader would accept them."""
    assert parse_assertion(ODD).task_id == "t"
    assert refusal(parse_assertion, credentials) == (401, code)


@pytest.mark.parametrize("field", ["agent_runtime_id", "task_id", "timestamp"])
def test_every_signed_field_is_covered_by_the_signature(field: str) -> None:
    """Changing any field after signing makes the signature invalid."""
    changed = {**SIGNED, field: "2026-04-23T00:00:01Z" if field == "timestamp" else "other"}
    assertion = parse_assertion(b64url(compact(changed)))
    assert refusal(assertion.verify_signature, PUBLIC) == (401, "signature_invalid")


def test_another_key_does_not_verify() -> None:
    """A signature of one key is refused under another, for assertions and registrations alike."""
    other = bytes(SigningKey(b"\x08" * 32).verify_key)
    assertion = parse_assertion(b64url(compact(SIGNED)))
    assert refusal(assertion.verify_signature, other) == (401, "signature_invalid")
    registration = parse_task_registration(task_body(KEY, "agent-123", AT), allow_external_task_ref=False)
    assert refusal(registration.verify_signature, "agent-123", other) == (401, "signature_invalid")
    assert refusal(registration.verify_signature, "agent-124", PUBLIC) == (401, "signature_invalid")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"extra": "x"}, "body_fields_invalid"),
        ({"external_task_ref": "thread-1"}, "body_fields_invalid"),
        ({"timestamp": 5}, "body_fields_invalid"),
        ({"timestamp": "now"}, "timestamp_invalid"),
        ({"signature": "AA=="}, "signature_encoding_invalid"),
    ],
)
def test_task_registration_takes_exactly_two_fields(change: dict[str, Any], code: str) -> None:
    """Unknown, wrong and malformed fields are each refused."""
    body = {**task_body(KEY, "agent-123", AT), **change}
    assert (400, code) == refusal(parse_task_registration, body, allow_external_task_ref=False)


def test_task_registration_may_carry_a_reference_where_allowed() -> None:
    """With the reference allowed, it is optional, must be a non-empty string, and is not signed."""
    bare = task_body(KEY, "agent-123", AT)
    assert parse_task_registration(bare, allow_external_task_ref=True).external_task_ref is None
    named = parse_task_registration({**bare, "external_task_ref": "thread-1"}, allow_external_task_ref=True)
    assert named.external_task_ref == "thread-1"
    named.verify_signature("agent-123", PUBLIC)
    empty = {**bare, "external_task_ref": ""}
    assert refusal(parse_task_registration, empty, allow_external_task_ref=True) == (400, "body_fields_invalid")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"extra": 1}, "body_fields_invalid"),
        ({"abom": {"agent_version": "1"}}, "abom_invalid"),
        ({"abom": {"agent_version": "1", "agent_harness_id": "", "running_location": "x"}}, "abom_invalid"),
        ({"capabilities": []}, "capabilities_invalid"),
        ({"capabilities": ["responsesapi", "x"]}, "capabilities_invalid"),
        ({"ttl": 3600}, "ttl_invalid"),
        ({"agent_public_key": "ssh-rsa AAAA"}, "public_key_invalid"),
    ],
)
def test_agent_registration_takes_exactly_the_protocols_fields(change: dict[str, Any], code: str) -> None:
    """Each departure from the body of generation D is refused with its own code."""
    body = {**agent_body(KEY), **change}
    assert (400, code) == refusal(parse_agent_registration, body, capabilities=("responsesapi",), ttl=True)


def test_agent_registration_differs_by_generation() -> None:
    """`ttl` must be sent in generation D and must be absent before."""
    early, late = agent_body(KEY, generation="A"), agent_body(KEY, generation="D")
    assert parse_agent_registration(early, capabilities=(), ttl=False) == PUBLIC
    assert parse_agent_registration(late, capabilities=("responsesapi",), ttl=True) == PUBLIC
    assert refusal(parse_agent_registration, early, capabilities=(), ttl=True) == (400, "body_fields_invalid")
    late_options = {"capabilities": ("responsesapi",), "ttl": False}
    assert refusal(parse_agent_registration, late, **late_options) == (400, "body_fields_invalid")


_GOOD_KEY = format_ssh_public_key(PUBLIC)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="null"),
        pytest.param(_GOOD_KEY + " me@host", id="comment"),
        pytest.param(_GOOD_KEY.replace(" ", "  "), id="two spaces"),
        pytest.param(_GOOD_KEY[:-4], id="short"),
        pytest.param(
            "ssh-ed25519 " + b64(b"\x00\x00\x00\x0bssh-ed25518\x00\x00\x00\x20" + PUBLIC), id="other type inside"
        ),
        pytest.param(format_ssh_public_key(b"\x02" + bytes(31)), id="not a point of the curve"),
        pytest.param(format_ssh_public_key(b"\x01" + bytes(31)), id="point of small order"),
    ],
)
def test_refuses_other_public_keys(text: object) -> None:
    """Only an ssh-ed25519 line without a comment, holding a point that can verify, is a key."""
    assert refusal(parse_ssh_public_key, text) == (400, "public_key_invalid")


@pytest.mark.parametrize(
    ("age", "code"),
    [
        (300, None),
        (301, "timestamp_stale"),
        (-300, None),
        (-301, "timestamp_in_future"),
    ],
)
def test_freshness_window_is_closed_on_both_sides(age: int, code: str | None) -> None:
    """A timestamp exactly at the window's edge is fresh, a second beyond it is not."""
    now = datetime(2026, 4, 23, tzinfo=UTC) + timedelta(seconds=age)
    window = timedelta(seconds=300)
    if code is None:
        check_freshness(AT, now=now, window=window)
    else:
        assert (401, code) == refusal(check_freshness, AT, now=now, window=window)


@pytest.mark.parametrize("text", ["2026-04-23T00:00:00z", "2026-04-23T00:00:00+00:00", "٢026-04-23T00:00:00Z", ""])
def test_timestamps_have_one_form(text: str) -> None:
    """Other spellings of a time are refused, also digits of another script."""
    assert refusal(parse_timestamp, text) == (401, "timestamp_invalid")


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (None, b"{}", (415, "content_type_invalid")),
        ("text/plain", b"{}", (415, "content_type_invalid")),
        ("application/json; charset=latin-1", b"{}", (415, "content_type_invalid")),
        ("application/json", b"[]", (400, "body_not_json")),
        ("application/json", b"{", (400, "body_not_json")),
        ("application/json", b"\xff", (400, "body_not_json")),
        ("application/json", b'{"a":1,"a":1}', (400, "body_not_json")),
        ("application/json", b'{"a":{"b":1,"b":1}}', (400, "body_not_json")),
        ("application/json", b'{"a":"\\ud800"}', (400, "body_not_json")),
        ("application/json", b"[" * 100_000, (400, "body_not_json")),
    ],
)
def test_refuses_bodies_that_are_not_one_clear_object(
    content_type: str | None, body: bytes, expected: tuple[int, str]
) -> None:
    """A wrong content type, another JSON type, duplicates and impossible text are refused."""
    assert expected == refusal(parse_json_object, content_type, body)


def test_accepts_json_with_the_only_charset_json_has() -> None:
    """A charset parameter naming UTF-8 is accepted."""
    assert parse_json_object("Application/JSON; charset=UTF-8", b'{"a":"\xc3\xa9"}') == {"a": "é"}


def test_canonical_json_escapes_only_what_json_demands() -> None:
    """Control characters take their short or four-digit form, everything else stands as UTF-8."""
    assert canonical_json({"b": '"\\\n\x01é', "a": "\x7f"}) == '{"a":"\x7f","b":"\\"\\\\\\n\\u0001é"}'.encode()
