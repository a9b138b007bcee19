"""Subject tokens: what a platform projects into a file to say which workload reads it.

The emulator plays the platform too. Its keys are others than those of the backend, so that a token of one is never
taken for a token of the other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from broker.emulator.accounts import Account
from broker.emulator.issuer import Issuer

SUBJECT_ISSUER = "https://platform.emulator.invalid"
DEFAULT_SUBJECT = "system:serviceaccount:default:emulator"
MAX_SUBJECT_TOKEN_BYTES = 16 * 1024


class SubjectTokenError(Exception):
    """A subject token that is not accepted.

    Attributes:
        code: The precise cause: `subject_token_invalid`, `subject_token_expired` or `subject_audience_mismatch`.
        message: One sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


@dataclass
class Subjects:
    """The workloads of one platform and the accounts they stand for."""

    _issuer: Issuer = field(default_factory=Issuer)
    _accounts: dict[str, Account] = field(default_factory=dict)

    def issue(
        self,
        *,
        account: Account,
        audience: str,
        now: datetime,
        lifetime: timedelta,
        subject: str = DEFAULT_SUBJECT,
        trusted: bool = True,
    ) -> str:
        """Sign a subject token and remember which account its subject stands for from now on.

        Args:
            account: The account; a later token of the same subject may move it to another.
            audience: Whom the token is addressed to.
            now: The time of issue.
            lifetime: May be negative, for a token that has expired.
            subject: The workload.
            trusted: False signs with a key that nobody has ever seen.
        """
        self._accounts[subject] = account
        claims = {
            "iss": SUBJECT_ISSUER,
            "sub": subject,
            "aud": [audience],
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "jti": secrets.token_hex(16),
        }
        return (self._issuer if trusted else Issuer()).sign(claims)

    def verify(self, token: str, *, audience: str, now: datetime) -> tuple[str, Account]:
        """Return the subject of a token, and the account it stands for.

        Raises:
            SubjectTokenError: It is too long, not signed here, expired, or addressed to somebody else.
        """
        if len(token) > MAX_SUBJECT_TOKEN_BYTES:
            raise SubjectTokenError("subject_token_invalid", "the subject token is longer than 16 KiB")
        try:
            claims = self._issuer.verify(token)
        except ValueError:
            raise SubjectTokenError("subject_token_invalid", "the subject token was not signed here") from None
        if now.timestamp() >= claims["exp"]:
            raise SubjectTokenError("subject_token_expired", "the subject token has expired")
        if claims["aud"] != [audience]:
            raise SubjectTokenError("subject_audience_mismatch", "the subject token is addressed to somebody else")
        return claims["sub"], self._accounts[claims["sub"]]
