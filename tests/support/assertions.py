"""Opens and verifies an assertion as a backend does, with PyNaCl; shares no code with what signs."""

import base64
import json
from dataclasses import dataclass

from credentialbroker.v1 import credential_broker_pb2 as pb2
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

_SCHEME = "AgentAssertion "


@dataclass(frozen=True, slots=True)
class Assertion:
    """What an assertion says."""

    agent_runtime_id: str
    task_id: str
    timestamp: str
    signature: bytes

    def is_signed_by(self, public_key: str) -> bool:
        """Say whether the key of an `ssh-ed25519` line made the signature."""
        payload = f"{self.agent_runtime_id}:{self.task_id}:{self.timestamp}".encode()
        try:
            VerifyKey(base64.b64decode(public_key.split(" ")[1])[-32:]).verify(payload, self.signature)
        except BadSignatureError:
            return False
        return True


def assertion_of(authorization: pb2.Authorization) -> Assertion:
    """Open the assertion among the headers of an authorization; there must be exactly one."""
    (value,) = [item.value for item in authorization.headers if item.name == "authorization"]
    assert value.startswith(_SCHEME), "not an assertion"
    encoded = value.removeprefix(_SCHEME)
    envelope = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    signature = base64.b64decode(envelope.pop("signature"), validate=True)
    return Assertion(signature=signature, **envelope)
