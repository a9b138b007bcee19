import json
import re
from base64 import b64decode, urlsafe_b64decode
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from broker import assertion
from broker.assertion import InvalidBackendIdError
from broker.keys import SigningKey

KEY = SigningKey.from_seed(b"\x07" * 32)
HEADER = re.compile(r"AgentAssertion [A-Za-z0-9_-]+", re.ASCII)
ENVELOPE = re.compile(
    r'\{"agent_runtime_id":"[A-Za-z0-9._-]{1,128}","signature":"[A-Za-z0-9+/]{86}=="'
    r',"task_id":"[A-Za-z0-9._-]{1,128}","timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\}',
    re.ASCII,
)

ids = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True).filter(lambda value: value not in {".", ".."})
short_ids = st.text(alphabet="ab.-", min_size=1, max_size=3).filter(lambda value: value not in {".", ".."})
times = st.integers(min_value=0, max_value=253_402_300_799)
close_times = st.integers(min_value=0, max_value=2)

small = settings(max_examples=100, deadline=None)


def opened(header: str) -> bytes:
    """Return the envelope of a header."""
    encoded = header.removeprefix("AgentAssertion ")
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


@small
@given(st.one_of(ids, st.text(max_size=200)), st.one_of(ids, st.text(max_size=200)), times)
def test_a_header_follows_its_grammar_or_is_not_made(agent_runtime_id: str, task_id: str, unix_seconds: int) -> None:
    """Whatever ids a backend gave, a header is of the strict grammar, verifies, or does not exist."""
    at = assertion.timestamp(unix_seconds)
    try:
        header = assertion.authorization_header(KEY, agent_runtime_id, task_id, at)
    except InvalidBackendIdError:
        return
    envelope = opened(header)
    assert HEADER.fullmatch(header)
    assert ENVELOPE.fullmatch(envelope.decode())
    fields = json.loads(envelope)
    assert (fields["agent_runtime_id"], fields["task_id"], fields["timestamp"]) == (agent_runtime_id, task_id, at)
    VerifyKey(KEY.public_key_bytes).verify(
        f"{agent_runtime_id}:{task_id}:{at}".encode(), b64decode(fields["signature"], validate=True)
    )


@small
@given(st.sets(st.tuples(short_ids, st.none() | short_ids, close_times), min_size=2, max_size=6))
def test_different_things_have_different_signatures(purposes: set[tuple[str, str | None, int]]) -> None:
    """No two of (purpose, fields) are ever signed as the same bytes; Ed25519 is deterministic, so this shows."""
    signatures = []
    for agent_runtime_id, task_id, unix_seconds in purposes:
        at = assertion.timestamp(unix_seconds)
        if task_id is None:
            signatures.append(assertion.registration_signature(KEY, agent_runtime_id, at))
        else:
            header = assertion.authorization_header(KEY, agent_runtime_id, task_id, at)
            signatures.append(json.loads(opened(header))["signature"])
    assert all(one != other for one, other in combinations(signatures, 2))


@small
@given(times, times)
def test_timestamps_keep_the_order_of_time(one: int, other: int) -> None:
    """A later time is a later text, and the same time the same text."""
    assert (one < other) == (assertion.timestamp(one) < assertion.timestamp(other))
