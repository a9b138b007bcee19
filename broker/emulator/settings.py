"""What the emulator is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import timedelta

from broker.emulator.profiles import DEFAULT_PROFILE, PROFILES, Profile, TaskAnswer

DEFAULT_PORT = 8089
_MAX_PORT = 65535
# Ten years: a longer span is a mistake, and a far longer one does not fit into a date.
MAX_SECONDS = 10 * 366 * 24 * 3600


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

    Raises:
        ValueError: For a value that is not possible.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    profile: str = DEFAULT_PROFILE
    task_answer: TaskAnswer = TaskAnswer.ENCRYPTED_TASK_ID
    freshness_seconds: float = 300.0
    clock_offset_seconds: float = 0.0

    def __post_init__(self) -> None:
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError("host must be a loopback address such as 127.0.0.1 or ::1, written as a number")
        if not 0 <= self.port <= _MAX_PORT:
            raise ValueError("port must be from 0 to 65535")
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}")
        if self.task_answer not in set(TaskAnswer):
            raise ValueError(f"task_answer must be one of {', '.join(TaskAnswer)}")
        if not 0 < self.freshness_seconds <= MAX_SECONDS:
            raise ValueError("freshness_seconds must be positive and at most ten years")
        if not abs(self.clock_offset_seconds) <= MAX_SECONDS:
            raise ValueError("clock_offset_seconds must be at most ten years")
        object.__setattr__(self, "task_answer", TaskAnswer(self.task_answer))

    @property
    def profile_rules(self) -> Profile:
        """What the chosen profile demands."""
        return PROFILES[self.profile]

    @property
    def freshness(self) -> timedelta:
        """`freshness_seconds` as a duration."""
        return timedelta(seconds=self.freshness_seconds)
