import json
from base64 import b64decode, urlsafe_b64decode

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from broker import assertion
from broker.assertion import InvalidBackendIdError
from broker.keys import SigningKey

KEY = SigningKey.from_seed(b"\x07" * 32)
AT = "2026-04-23T00:00:00Z"

UNSAFE_IDS = [
    "",
    ".",
    "..",
    "a:b",
    "a/b",
    "a b",
    "a\n",
    "\r\nx-evil: 1",
    "a%2f",
    "ä",
    "٣",
    "a\x00",
    "a" * 129,
    "a" * 10_240,
]


@pytest.mark.parametrize("value", ["a", "agent-123", "agnt_01HZX3", "0.9", "...", "-", "A" * 128])
def test_a_safe_id_is_returned_unchanged(value: str) -> None:
    """Every id of the allowed characters and length passes."""
    assert assertion.validate_backend_id(value) == value


@pytest.mark.parametrize("value", UNSAFE_IDS)
def test_an_unsafe_id_is_refused_and_not_repeated(value: str) -> None:
    """An id that could change a payload, a path or a header is refused with a constant text."""
    with pytest.raises(InvalidBackendIdError) as refused:
        assertion.validate_backend_id(value)
    assert refused.value.args == InvalidBackendIdError().args


@pytest.mark.parametrize("value", UNSAFE_IDS)
def test_an_unsafe_id_is_never_signed(value: str) -> None:
    """Each id of each purpose is checked before the key is used."""
    with pytest.raises(InvalidBackendIdError):
        assertion.registration_signature(KEY, value, AT)
    with pytest.raises(InvalidBackendIdError):
        assertion.authorization_header(KEY, value, "task-123", AT)
    with pytest.raises(InvalidBackendIdError):
        assertion.authorization_header(KEY, "agent-123", value, AT)


@pytest.mark.parametrize(
    "at",
    [
        "",
        "now",
        "2026-04-23T00:00:00+00:00",
        "2026-04-23T00:00:00.0Z",
        "2026-04-23T00:00:00Z\n",
        "x:" + AT,
        "٢٠٢٦-04-23T00:00:00Z",
    ],
)
def test_a_timestamp_of_another_form_is_never_signed(at: str) -> None:
    """A timestamp cannot smuggle a field into a payload: a registration stays a registration."""
    with pytest.raises(ValueError, match="signed timestamp"):
        assertion.registration_signature(KEY, "agent-123", at)
    with pytest.raises(ValueError, match="signed timestamp"):
        assertion.authorization_header(KEY, "agent-123", "task-123", at)


@pytest.mark.parametrize(
    ("unix_seconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_776_902_400, "2026-04-23T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ],
)
def test_a_timestamp_is_utc_in_whole_seconds(unix_seconds: int, text: str) -> None:
    """Unix seconds become RFC 3339 with Z."""
    assert assertion.timestamp(unix_seconds) == text


@pytest.mark.parametrize("unix_seconds", [-1, 253_402_300_800, 10**30])
def test_a_time_outside_of_the_form_is_refused(unix_seconds: int) -> None:
    """A time that RFC 3339 cannot write is an error, not a wrong text."""
    with pytest.raises(ValueError, match="years 1970 to 9999"):
        assertion.timestamp(unix_seconds)


def test_a_registration_signs_runtime_and_time() -> None:
    """The signature is over the runtime id and the timestamp, joined by a colon."""
    signature = b64decode(assertion.registration_signature(KEY, "agent-123", AT), validate=True)
    assert VerifyKey(KEY.public_key_bytes).verify(b"agent-123:2026-04-23T00:00:00Z", signature)


def test_a_header_carries_what_was_signed() -> None:
    """The envelope is sorted compact JSON and its signature is over the three fields it names."""
    scheme, encoded = assertion.authorization_header(KEY, "agent-123", "task-123", AT).split(" ")
    assert scheme == "AgentAssertion"
    envelope = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    fields = json.loads(envelope)
    assert list(fields) == ["agent_runtime_id", "signature", "task_id", "timestamp"]
    assert json.dumps(fields, separators=(",", ":")).encode() == envelope
    signature = b64decode(fields["signature"], validate=True)
    assert VerifyKey(KEY.public_key_bytes).verify(b"agent-123:task-123:2026-04-23T00:00:00Z", signature)


def test_a_registration_is_no_assertion() -> None:
    """A registration's signature does not verify as any assertion of the same ids."""
    signature = b64decode(assertion.registration_signature(KEY, "agent-123", AT))
    with pytest.raises(BadSignatureError):
        VerifyKey(KEY.public_key_bytes).verify(b"agent-123:task-123:2026-04-23T00:00:00Z", signature)
