"""The golden values of the backend's protocol, in both directions."""

import importlib.util
import json
from base64 import b64decode, b64encode, urlsafe_b64decode
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from nacl.public import SealedBox
from nacl.signing import SigningKey as NaClSigningKey
from nacl.signing import VerifyKey

from broker import assertion, sealed_box
from broker.keys import InvalidKeyError, KeyProblem, SigningKey, parse_ssh_public_key

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "agent_identity.json").read_text())

REFUSALS = {
    "embedded public key belongs to another key": KeyProblem.PUBLIC_KEY_MISMATCH,
    "truncated": KeyProblem.WRONG_SIZE,
    "trailing byte": KeyProblem.WRONG_SIZE,
    "not base64": KeyProblem.NOT_BASE64,
    "X25519 algorithm identifier": KeyProblem.NOT_ED25519,
    "empty": KeyProblem.WRONG_SIZE,
}

each_assertion = pytest.mark.parametrize("vector", VECTORS["assertions"], ids=lambda vector: vector["agent_runtime_id"])
each_sealed = pytest.mark.parametrize("vector", VECTORS["sealed_task_ids"], ids=lambda vector: vector["task_id"])


def key_of(vector: dict[str, str]) -> SigningKey:
    """Return the vector's key, from its seed."""
    return SigningKey.from_seed(bytes.fromhex(vector["seed_hex"]))


@each_assertion
@pytest.mark.parametrize("form", ["pkcs8_v1_base64", "pkcs8_v2_base64"])
def test_both_forms_are_read(vector: dict[str, str], form: str) -> None:
    """Each PKCS#8 form gives the vector's key, and v2 is written back."""
    key = SigningKey.from_pkcs8_base64(vector[form])
    assert key.public_key_bytes.hex() == vector["public_key_hex"]
    assert key.to_pkcs8_base64() == vector["pkcs8_v2_base64"]


@each_assertion
def test_the_public_key_has_its_names(vector: dict[str, str]) -> None:
    """The ssh text goes both ways and the X25519 side is the vector's."""
    key = key_of(vector)
    assert key.ssh_public_key == vector["ssh_public_key"]
    assert parse_ssh_public_key(vector["ssh_public_key"]).hex() == vector["public_key_hex"]
    assert bytes(key.to_x25519().public_key).hex() == vector["x25519_public_hex"]


@each_assertion
def test_a_registration_is_signed_byte_for_byte(vector: dict[str, str]) -> None:
    """The broker's registration signature equals the vector's, and the vector's verifies over its payload."""
    signature = assertion.registration_signature(key_of(vector), vector["agent_runtime_id"], vector["timestamp"])
    assert signature == vector["registration_signature_base64"]
    payload = VerifyKey(bytes.fromhex(vector["public_key_hex"])).verify(
        vector["registration_payload"].encode(), b64decode(vector["registration_signature_base64"])
    )
    assert payload.decode() == f"{vector['agent_runtime_id']}:{vector['timestamp']}"


@each_assertion
def test_a_header_is_made_byte_for_byte(vector: dict[str, str]) -> None:
    """The broker's header equals the vector's."""
    header = assertion.authorization_header(
        key_of(vector), vector["agent_runtime_id"], vector["task_id"], vector["timestamp"]
    )
    assert header == vector["header_value"]


@each_assertion
def test_a_header_is_taken_apart_to_the_vectors_stages(vector: dict[str, str]) -> None:
    """The vector's header decodes to its envelope, and the envelope's signature verifies over the payload."""
    encoded = vector["header_value"].removeprefix("AgentAssertion ")
    envelope = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    assert envelope == vector["envelope_json"]
    fields = json.loads(envelope)
    assert fields["signature"] == vector["assertion_signature_base64"]
    payload = VerifyKey(bytes.fromhex(vector["public_key_hex"])).verify(
        vector["assertion_payload"].encode(), b64decode(fields["signature"])
    )
    assert payload.decode() == f"{fields['agent_runtime_id']}:{fields['task_id']}:{fields['timestamp']}"


@each_assertion
def test_a_timestamp_goes_both_ways(vector: dict[str, str]) -> None:
    """The vector's timestamp is what its Unix time is written as."""
    unix_seconds = int(datetime.fromisoformat(vector["timestamp"]).timestamp())
    assert assertion.timestamp(unix_seconds) == vector["timestamp"]


@each_sealed
def test_a_sealed_task_id_is_opened(vector: dict[str, str]) -> None:
    """The vector's sealed id opens with the vector's key."""
    opened = sealed_box.open_task_id(key_of(vector), vector["encrypted_task_id_base64"])
    assert opened == vector["task_id"]


@each_sealed
def test_a_task_id_sealed_anew_is_opened(vector: dict[str, str]) -> None:
    """What a backend seals to the registered public key opens, whatever random key it used."""
    public_key = NaClSigningKey(bytes.fromhex(vector["seed_hex"])).verify_key.to_curve25519_public_key()
    sealed = b64encode(SealedBox(public_key).encrypt(vector["task_id"].encode())).decode()
    assert sealed_box.open_task_id(key_of(vector), sealed) == vector["task_id"]


@each_sealed
def test_another_key_does_not_open_it(vector: dict[str, str]) -> None:
    """The vector's sealed id stays closed to another identity."""
    with pytest.raises(sealed_box.SealedTaskIdUndecryptableError):
        sealed_box.open_task_id(SigningKey.from_seed(bytes(32)), vector["encrypted_task_id_base64"])


@pytest.mark.parametrize("vector", VECTORS["keys_to_refuse"], ids=lambda vector: vector["why"])
def test_a_key_to_refuse_is_refused_for_its_reason(vector: dict[str, str]) -> None:
    """Each key that no reader may accept is refused, and for the reason the vector gives."""
    with pytest.raises(InvalidKeyError) as refused:
        SigningKey.from_pkcs8_base64(vector["pkcs8_base64"])
    assert refused.value.reason == REFUSALS[vector["why"]]


def test_the_vectors_are_what_their_script_makes() -> None:
    """Building the file anew, with code that shares nothing with the broker, changes nothing."""
    assert load("build").build() == (FOLDER / "agent_identity.json").read_text()


def load(name: str) -> ModuleType:
    """Import a script that stands beside the vectors."""
    spec = importlib.util.spec_from_file_location(f"vectors_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
