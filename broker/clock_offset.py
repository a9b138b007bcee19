"""
How far a backend's clock is from ours, learned from the `Date` of its answers.

Pure: times are arguments. What is kept is the backend's time against our *monotonic* clock, so that a stepped wall
clock cannot spoil it; and a sample from before a step or a suspend (wall and monotonic clock moved apart) is dropped,
since it cannot be known which of the two was right. A missing, unreadable or odd `Date` changes nothing.
"""

import re
import statistics
from collections import deque
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from broker.errors import ClockSkewError

DEAD_BAND: Final = 2.0
"""Seconds below which nothing is corrected: `Date` has whole seconds and the way there and back is only halved."""

MAX_SAMPLE_AGE: Final = 600.0
"""Seconds after which a sample says nothing any more; so a wrong refusal to sign heals by itself."""

_SAMPLES: Final = 5
_MAX_ROUND_TRIP: Final = 3.0
_JUMP: Final = 2.0
_HALF_A_SECOND: Final = 0.5
# IMF-fixdate, the only form that RFC 9110 section 5.6.7 lets a sender make.
_HTTP_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} [A-Z][a-z]{2} [1-9][0-9]{3} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
)


def parse_http_date(text: str) -> float | None:
    """Return the Unix time of an HTTP date, None for anything else than the form that senders must use."""
    if _HTTP_DATE.fullmatch(text) is None:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class _Sample:
    taken: float
    backend_minus_monotonic: float
    wall_minus_monotonic: float


class ClockOffset:
    """
    The smoothed offset of one backend's clock.

    Args:
        max_offset: seconds up to which the offset is corrected; beyond it nothing is signed.
    """

    def __init__(self, *, max_offset: float) -> None:
        self._max_offset = max_offset
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)

    def observe(self, date: str, *, sent: float, received: float, now: float) -> None:
        """
        Learn from one answer.

        Args:
            date: the `Date` header's value.
            sent: monotonic time when the request began to be sent.
            received: monotonic time when the answer's head was there.
            now: our wall clock at `received`.
        """
        backend = parse_http_date(date)
        if backend is None or not 0 <= received - sent <= _MAX_ROUND_TRIP:
            return
        # The date was cut to its second, somewhere between sending and receiving.
        middle = (sent + received) / 2
        self._samples.append(_Sample(received, backend + _HALF_A_SECOND - middle, now - received))

    @property
    def last_sample(self) -> float | None:
        """When the newest sample was taken, in monotonic time; None when there is none."""
        return self._samples[-1].taken if self._samples else None

    def is_settled(self, *, now: float, monotonic: float, max_age: float) -> bool:
        """
        Say whether the newest sample is at most `max_age` seconds old and of one mind with the smoothed offset.

        When it is not, the backend's clock has changed or one answer was odd, and only further answers can tell which.
        """
        if not self._samples or monotonic - self._samples[-1].taken > max_age:
            return False
        offset = self._samples[-1].backend_minus_monotonic + monotonic - now
        return abs(offset - self.seconds(now=now, monotonic=monotonic)) <= 2 * DEAD_BAND

    def seconds(self, *, now: float, monotonic: float) -> float:
        """
        Return the seconds to add to our wall clock to get the backend's; 0 inside the dead band or when unknown.

        Args:
            now: our wall clock.
            monotonic: the monotonic clock at the same moment.
        """
        usable = [
            sample.backend_minus_monotonic
            for sample in self._samples
            if monotonic - sample.taken <= MAX_SAMPLE_AGE
            and abs(now - monotonic - sample.wall_minus_monotonic) <= _JUMP
        ]
        if not usable:
            return 0.0
        # Of an even number the two in the middle count; the one nearer to our own clock is taken.
        offset = min(
            (median(usable) + monotonic - now for median in (statistics.median_low, statistics.median_high)), key=abs
        )
        return 0.0 if abs(offset) <= DEAD_BAND else offset

    def signing_time(self, *, now: float, monotonic: float) -> int:
        """
        Return the whole second to sign, in the backend's clock as far as it is known.

        Raises:
            ClockSkewError: the clocks are further apart than may be corrected.
        """
        offset = self.seconds(now=now, monotonic=monotonic)
        if abs(offset) > self._max_offset:
            raise ClockSkewError(note=f"the backend's clock is {offset:+.0f} s from ours")
        return int(now + offset)
