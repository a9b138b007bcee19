"""Everything the backend signs or seals itself: identity JWTs, their key set, access tokens, sealed task ids."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from broker.emulator.accounts import Account

IDENTITY_ISSUER = "https://chatgpt.com/codex-backend/agent-identity"
IDENTITY_AUDIENCE = "codex-app-server"
TOKEN_ISSUER = "https://auth.openai.com"  # noqa: S105  an issuer's name, not a secret
TOKEN_AUDIENCE = "https://api.openai.com/v1"  # noqa: S105  an audience's name, not a secret
_RSA_BITS = 2048
_PKCS8_V1_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_PKCS8_V2_HEAD = bytes.fromhex("3051020101300506032b657004220420")
_PKCS8_V2_PUBLIC = bytes.fromhex("812100")

Pkcs8Form = Literal["v1", "v2"]


def encode_private_key(key: SigningKey, form: Pkcs8Form) -> str:
    """Write an Ed25519 key as base64 of PKCS#8 DER.

    Args:
        key: The key.
        form: `v1` is the 48-byte form without the public key, `v2` the 83-byte form of RFC 5958 with it, which
            ed25519-dalek writes.
    """
    if form == "v1":
        der = _PKCS8_V1_HEAD + bytes(key)
    else:
        der = _PKCS8_V2_HEAD + bytes(key) + _PKCS8_V2_PUBLIC + bytes(key.verify_key)
    return base64.b64encode(der).decode()


def seal_task_id(task_id: str, public_key: bytes) -> str:
    """Seal a task id to an agent: libsodium `crypto_box_seal` to the X25519 form of its Ed25519 key."""
    recipient = VerifyKey(public_key).to_curve25519_public_key()
    return base64.b64encode(SealedBox(recipient).encrypt(task_id.encode())).decode()


@dataclass
class Issuer:
    """Signs with RSA keys that it makes on first use and never shows.

    Making a key costs a tenth of a second, which a test that needs no JWT should not pay.
    """

    _keys: list[tuple[str, rsa.RSAPrivateKey]] = field(default_factory=list, repr=False)

    def rotate(self, *, keep_old: bool) -> str:
        """Sign with a new key from now on and return its `kid`.

        Args:
            keep_old: Whether tokens signed before can still be verified against the key set.
        """
        kid = f"emulator-{secrets.token_hex(4)}"
        key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        self._keys = [(kid, key), *(self._keys if keep_old else [])]
        return kid

    def jwks(self) -> dict[str, Any]:
        """The public keys, newest first, as RFC 7517 JSON."""
        self._ensure_key()
        keys = []
        for kid, key in self._keys:
            public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": public["n"], "e": public["e"]})
        return {"keys": keys}

    def identity_jwt(
        self,
        *,
        agent_runtime_id: str,
        private_key: str,
        account: Account,
        now: datetime,
        lifetime: timedelta,
        claims: dict[str, Any] | None = None,
        header: dict[str, Any] | None = None,
    ) -> str:
        """Sign an Agent Identity JWT. It carries the agent's private key: treat it as a secret.

        Args:
            agent_runtime_id: The agent it speaks for.
            private_key: The agent's key as `encode_private_key` writes it.
            account: The account, user and plan it names.
            now: The time of issue.
            lifetime: May be negative, for a token that has expired.
            claims: Claims to replace, or to leave out when the value is None; for tokens that must be refused.
            header: The same for the JOSE header.
        """
        payload: dict[str, Any] = {
            "iss": IDENTITY_ISSUER,
            "aud": IDENTITY_AUDIENCE,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "agent_runtime_id": agent_runtime_id,
            "agent_private_key": private_key,
            "account_id": account.account_id,
            "chatgpt_user_id": account.chatgpt_user_id,
            "email": account.email,
            "plan_type": account.plan_type,
            "chatgpt_account_is_fedramp": account.fedramp,
        }
        return self.sign(_replaced(payload, claims), header)

    def access_token(
        self, *, account: Account, now: datetime, lifetime: timedelta, claims: dict[str, Any] | None = None
    ) -> str:
        """Sign an access token with the claims of a ChatGPT login.

        The claims are those a client decodes, unverified, from codex-rs/login/src/token_data.rs at
        343074d4207d572809bd8cea15f4be1d09d98e0b; `email` stands in both places where it is looked for.

        Args:
            account: Whom it proves.
            now: The time of issue.
            lifetime: May be negative, for a token that has expired.
            claims: Claims to replace, or to leave out when the value is None.
        """
        payload = {
            "iss": TOKEN_ISSUER,
            "aud": [TOKEN_AUDIENCE],
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "jti": secrets.token_hex(16),
            "sub": account.chatgpt_user_id,
            "email": account.email,
            "https://api.openai.com/profile": {"email": account.email},
            "https://api.openai.com/auth": {
                "chatgpt_account_id": account.account_id,
                "chatgpt_user_id": account.chatgpt_user_id,
                "user_id": account.chatgpt_user_id,
                "chatgpt_plan_type": account.plan_type,
                "chatgpt_account_is_fedramp": account.fedramp,
            },
        }
        known = _replaced(payload, {"email": account.email, "sub": account.chatgpt_user_id})
        return self.sign(_replaced(known, claims))

    def sign(self, payload: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        """Sign claims as they are, sound or not; `header` replaces or (None) leaves out parts of the JOSE header."""
        kid, key = self._ensure_key()
        head = _replaced({"alg": "RS256", "typ": "JWT", "kid": kid}, header)
        # Signed over the bytes as they are: `jwt.encode` would insist on a sound header and sound claims, and this
        # issuer must also be able to make the tokens that a broker has to refuse.
        parts = [_compact(head), _compact(payload)]
        signature = jwt.get_algorithm_by_name("RS256").sign(b".".join(parts), key)
        return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()

    def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of a JWT that one of the published keys signed; what they mean is not looked at.

        Raises:
            ValueError: It is not a JWT, not RS256, or not signed by a key of this issuer.
        """
        try:
            key = dict(self._keys)[str(jwt.get_unverified_header(token).get("kid"))]
            signed: dict[str, Any] = jwt.decode(
                token,
                key.public_key(),
                algorithms=["RS256"],
                # What time it is, and for whom the token is, the caller knows better than PyJWT.
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False},
            )
        except (jwt.InvalidTokenError, KeyError) as error:
            raise ValueError("the token was not signed here") from error
        return signed

    def _ensure_key(self) -> tuple[str, rsa.RSAPrivateKey]:
        if not self._keys:
            self.rotate(keep_old=False)
        return self._keys[0]


def _compact(value: dict[str, Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=")


def _replaced(values: dict[str, Any], replacements: dict[str, Any] | None) -> dict[str, Any]:
    merged = {**values, **(replacements or {})}
    dropped = {name for name, value in (replacements or {}).items() if value is None}
    return {name: value for name, value in merged.items() if name not in dropped}
