"""
Makes `agent_identity.json` anew, with PyNaCl and the standard library only.

It shares no code with the broker, so that a mistake cannot hide in both. Everything but the sealed task ids comes out
byte for byte the same each time; a sealed box holds a fresh random key, so those already in the file are kept, after
opening each. Run it as `python tests/vectors/build.py`; the file must not change.
"""

import base64
import json
from pathlib import Path
from typing import Any

from nacl.public import SealedBox
from nacl.signing import SigningKey

VECTORS = Path(__file__).with_name("agent_identity.json")

_COMMENT = "Ed25519, AgentAssertion and sealed task ids; made with PyNaCl, checked against a real client."
_ASSERTIONS = (
    ("07" * 32, "agent-123", "task-123", "2026-04-23T00:00:00Z"),
    (
        "47893f3d0c8f1f55a146f35b035e03ef9a04adb80e43ccbbd383620549d4e0b9",
        "agnt_01HZX3",
        "task_9f8e7d6c",
        "2026-11-20T23:59:59Z",
    ),
    ("21ca80b93eaa10f0a83d25b03a932bd8d1ecaf698ad5f4dcb83fa8d8848a97ad", "a", "t", "2030-01-01T00:00:00Z"),
)
_OTHER_PUBLIC_KEY = bytes.fromhex("e2096875c268a0993f20fa4b66e15ff651e9e55cd2c08dfbb24e1f4079c145ba")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _string(data: bytes) -> bytes:
    """Return an SSH wire string (RFC 4251 section 5)."""
    return len(data).to_bytes(4, "big") + data


def _tlv(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    return bytes([tag, len(body)]) + body


def pkcs8(seed: bytes, public_key: bytes | None, *, oid: bytes = b"\x2b\x65\x70") -> bytes:
    """Return PKCS#8 DER, built field by field: v1 without, v2 with a public key."""
    version = b"\x00" if public_key is None else b"\x01"
    public = b"" if public_key is None else _tlv(0x81, b"\x00" + public_key)
    algorithm = _tlv(0x30, _tlv(0x06, oid))
    return _tlv(0x30, _tlv(0x02, version), algorithm, _tlv(0x04, _tlv(0x04, seed)), public)


def assertion(seed_hex: str, agent_runtime_id: str, task_id: str, timestamp: str) -> dict[str, Any]:
    """Return every stage of one assertion, from the seed to the header."""
    seed = bytes.fromhex(seed_hex)
    key = SigningKey(seed)
    public_key = bytes(key.verify_key)
    registration_payload = f"{agent_runtime_id}:{timestamp}"
    assertion_payload = f"{agent_runtime_id}:{task_id}:{timestamp}"
    signature = _base64(key.sign(assertion_payload.encode()).signature)
    envelope = (
        f'{{"agent_runtime_id":"{agent_runtime_id}","signature":"{signature}"'
        f',"task_id":"{task_id}","timestamp":"{timestamp}"}}'
    )
    return {
        "seed_hex": seed_hex,
        "public_key_hex": public_key.hex(),
        "pkcs8_v1_base64": _base64(pkcs8(seed, None)),
        "pkcs8_v2_base64": _base64(pkcs8(seed, public_key)),
        "ssh_public_key": "ssh-ed25519 " + _base64(_string(b"ssh-ed25519") + _string(public_key)),
        "x25519_public_hex": bytes(key.verify_key.to_curve25519_public_key()).hex(),
        "agent_runtime_id": agent_runtime_id,
        "task_id": task_id,
        "timestamp": timestamp,
        "registration_payload": registration_payload,
        "registration_signature_base64": _base64(key.sign(registration_payload.encode()).signature),
        "assertion_payload": assertion_payload,
        "assertion_signature_base64": signature,
        "envelope_json": envelope,
        "header_value": "AgentAssertion " + base64.urlsafe_b64encode(envelope.encode()).decode().rstrip("="),
    }


def keys_to_refuse() -> list[dict[str, str]]:
    """Return private keys that no reader may accept, each with the reason."""
    seed = b"\x07" * 32
    good = pkcs8(seed, bytes(SigningKey(seed).verify_key))
    mismatched = pkcs8(seed, _OTHER_PUBLIC_KEY)
    return [
        {"why": "embedded public key belongs to another key", "pkcs8_base64": _base64(mismatched)},
        {"why": "truncated", "pkcs8_base64": _base64(good[:-5])},
        {"why": "trailing byte", "pkcs8_base64": _base64(good + b"\x00")},
        {"why": "not base64", "pkcs8_base64": "MFECAQEw***"},
        {"why": "X25519 algorithm identifier", "pkcs8_base64": _base64(pkcs8(seed, None, oid=b"\x2b\x65\x6e"))},
        {"why": "empty", "pkcs8_base64": ""},
    ]


def sealed_task_ids(kept: list[dict[str, str]]) -> list[dict[str, str]]:
    """
    Return the sealed task ids that are already in the file, each opened and compared.

    Raises:
        ValueError: one holds another id than it says.
    """
    for entry in kept:
        key = SigningKey(bytes.fromhex(entry["seed_hex"])).to_curve25519_private_key()
        opened = SealedBox(key).decrypt(base64.b64decode(entry["encrypted_task_id_base64"], validate=True))
        if opened.decode() != entry["task_id"]:
            raise ValueError(entry["task_id"])
    return kept


def build() -> str:
    """Return the file's text."""
    kept = json.loads(VECTORS.read_text())["sealed_task_ids"]
    vectors = {
        "comment": _COMMENT,
        "assertions": [assertion(*fields) for fields in _ASSERTIONS],
        "sealed_task_ids": sealed_task_ids(kept),
        "keys_to_refuse": keys_to_refuse(),
    }
    return json.dumps(vectors, indent=1)


if __name__ == "__main__":
    VECTORS.write_text(build())
