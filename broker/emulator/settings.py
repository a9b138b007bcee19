"""What the emulator is told."""

from __future__ import annotations

import enum
import ipaddress
import math
from dataclasses import dataclass
from datetime import timedelta

from broker.emulator.profiles import DEFAULT_PROFILE, PROFILES, Profile, TaskAnswer
from broker.emulator.refusal import ErrorStyle

DEFAULT_PORT = 8089
_MAX_PORT = 65535
# Ten years: a longer span is a mistake, and a far longer one does not fit into a date.
MAX_SECONDS = 10 * 366 * 24 * 3600


class TokenFormat(enum.StrEnum):
    """What an access token is made of; an opaque one costs no RSA signature, which thousands of races notice."""

    JWT = "jwt"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """Settings of one emulator.

    Attributes:
        host: A loopback literal; the emulator holds private keys of its making and authenticates nobody.
        port: 0 lets the system choose.
        profile: The protocol generation, a name of `PROFILES`.
        task_answer: The field a task registration answers with.
        freshness_seconds: How far from the backend's clock a signature's timestamp may be, either way. The real
            window is not published; 300 is what an independent server chose.
        clock_offset_seconds: How far the backend's clock is ahead of the machine's.
        token_format: What access tokens are made of.
        access_token_seconds: How long an access token is good, where its login asked for nothing else.
        refresh_token_seconds: The same for a refresh token, counted from its own issue.
        rotate_refresh_tokens: Whether a refresh spends its token and answers a new one. If not, the answer leaves
            `refresh_token` out and the old one stays.
        reuse_grace_seconds: For how long after its use the token before the newest is still answered, with the
            same tokens again; 0 for an issuer that knows no mercy.
        family_revocation: Whether the reuse of a spent refresh token ends every refresh token of its login.
        revocation_ends_access_tokens: Whether the access tokens of an ended login die with it.
        refresh_error_style: Where a refused refresh names its cause.
        federation_rule_id: The one federation rule that the jwt-bearer grant knows.
        subject_audience: Whom a subject token must be addressed to.

    Raises:
        ValueError: For a value that is not possible.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    profile: str = DEFAULT_PROFILE
    task_answer: TaskAnswer = TaskAnswer.ENCRYPTED_TASK_ID
    freshness_seconds: float = 300.0
    clock_offset_seconds: float = 0.0
    token_format: TokenFormat = TokenFormat.JWT
    access_token_seconds: float = 3600.0
    refresh_token_seconds: float = 30 * 24 * 3600.0
    rotate_refresh_tokens: bool = True
    reuse_grace_seconds: float = 0.0
    family_revocation: bool = True
    revocation_ends_access_tokens: bool = False
    refresh_error_style: ErrorStyle = ErrorStyle.NESTED_CODE
    federation_rule_id: str = "rule-emulator"
    subject_audience: str = "emulator"

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ValueError("host must be a loopback address such as 127.0.0.1 or ::1, written as a number")
        if not 0 <= self.port <= _MAX_PORT:
            raise ValueError("port must be from 0 to 65535")
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}")
        for name, kind in _WORDS.items():
            if getattr(self, name) not in set(kind):
                raise ValueError(f"{name} must be one of {', '.join(kind)}")
            object.__setattr__(self, name, kind(getattr(self, name)))
        for name, (least, rule) in _SPANS.items():
            if not least <= getattr(self, name) <= MAX_SECONDS:
                raise ValueError(f"{name} must be {rule} and at most ten years")
        for name in ("federation_rule_id", "subject_audience"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")

    @property
    def profile_rules(self) -> Profile:
        """What the chosen profile demands."""
        return PROFILES[self.profile]

    @property
    def freshness(self) -> timedelta:
        """`freshness_seconds` as a duration."""
        return timedelta(seconds=self.freshness_seconds)

    @property
    def access_token_lifetime(self) -> timedelta:
        """`access_token_seconds` as a duration."""
        return timedelta(seconds=self.access_token_seconds)

    @property
    def refresh_token_lifetime(self) -> timedelta:
        """`refresh_token_seconds` as a duration."""
        return timedelta(seconds=self.refresh_token_seconds)

    @property
    def reuse_grace(self) -> timedelta:
        """`reuse_grace_seconds` as a duration."""
        return timedelta(seconds=self.reuse_grace_seconds)


# The settings that are one word of a list; a program may give the word itself.
_WORDS: dict[str, type[enum.StrEnum]] = {
    "task_answer": TaskAnswer,
    "token_format": TokenFormat,
    "refresh_error_style": ErrorStyle,
}
_LEAST_POSITIVE = math.ulp(0.0)
# The settings that are a length of time: the least seconds, and how to say so.
_SPANS: dict[str, tuple[float, str]] = {
    "freshness_seconds": (_LEAST_POSITIVE, "positive"),
    "clock_offset_seconds": (-MAX_SECONDS, "at least minus ten years"),
    "access_token_seconds": (_LEAST_POSITIVE, "positive"),
    "refresh_token_seconds": (_LEAST_POSITIVE, "positive"),
    "reuse_grace_seconds": (0.0, "0 or more"),
}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
