"""Learning a backend's clock from its dates."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from broker.clock_offset import MAX_SAMPLE_AGE, ClockOffset, parse_http_date
from broker.errors import ClockSkewError

NOW = 1_790_000_000.0
MONOTONIC = 5_000.0


def date(unix_seconds: float) -> str:
    """Write a time as HTTP does."""
    return format_datetime(datetime.fromtimestamp(unix_seconds, UTC), usegmt=True)


def learned(*offsets: float, round_trip: float = 0.0) -> ClockOffset:
    """Return an offset that saw answers of a backend with these offsets, just now."""
    clock_offset = ClockOffset(max_offset=300.0)
    for offset in offsets:
        clock_offset.observe(
            date(NOW + offset - round_trip / 2), sent=MONOTONIC - round_trip, received=MONOTONIC, now=NOW
        )
    return clock_offset


def seconds(clock_offset: ClockOffset, *, later: float = 0.0, step: float = 0.0) -> float:
    """Return the offset some time later, the wall clock having been stepped meanwhile."""
    return clock_offset.seconds(now=NOW + later + step, monotonic=MONOTONIC + later)


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ((), 0.0),
        ((0,), 0.0),
        ((1,), 0.0),
        ((-2,), 0.0),
        ((10,), 10.5),
        ((-10,), -9.5),
        ((10, 10, 10), 10.5),
        ((10, 99_999_999, 10), 10.5),
        ((0, 0, -99_999_999, 0), 0.0),
        ((0, 250), 0.0),
        ((250, 0), 0.0),
        ((0, 0, 0, 250, 250), 0.0),
        ((0, 0, 250, 250, 250), 250.5),
        ((250, 250, 250, 250, 250, 0, 0, 0), 0.0),
    ],
)
def test_the_middle_of_the_last_few_counts(offsets: tuple[float, ...], expected: float) -> None:
    """One odd date among several changes nothing, and small differences are not corrected."""
    assert seconds(learned(*offsets)) == expected


def test_the_round_trip_is_halved() -> None:
    """The date is taken to be of the middle between sending and receiving."""
    assert seconds(learned(100, round_trip=2.0)) == 100.5


@pytest.mark.parametrize("round_trip", [3.1, 60.0, -1.0])
def test_a_slow_answer_says_nothing(round_trip: float) -> None:
    """When the date may be of any moment of a long wait, it is not used; nor when time ran backwards."""
    assert seconds(learned(100, round_trip=round_trip)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "Thu, 01 Jan 1970 00:00:00",
        "Thu, 01 Jan 1970 00:00:00 +0000",
        "Thu, 1 Jan 1970 00:00:00 GMT",
        "Thursday, 01-Jan-70 00:00:00 GMT",
        "Thu Jan  1 00:00:00 1970",
        "Thu, 01 Foo 1970 00:00:00 GMT",
        "Thu, 99 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 1970 25:00:00 GMT",
        "Thu, 01 Jan 0000 00:00:00 GMT",
        " Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT\n",
        "Thu, 0\u0661 Jan 1970 00:00:00 GMT",
        "9" * 10_000,
    ],
)
def test_an_unreadable_date_changes_nothing(text: str) -> None:
    """Only the form that senders must use is read; anything else leaves what is known as it is."""
    assert parse_http_date(text) is None
    clock_offset = learned(100)
    clock_offset.observe(text, sent=MONOTONIC, received=MONOTONIC, now=NOW)
    assert seconds(clock_offset) == 100.5


def test_a_date_is_read() -> None:
    """The usual form is Unix seconds."""
    assert parse_http_date("Thu, 01 Jan 1970 00:00:07 GMT") == 7.0


def test_what_was_learned_grows_old() -> None:
    """After ten minutes without an answer nothing is corrected any more, so a wrong refusal heals."""
    assert seconds(learned(400), later=MAX_SAMPLE_AGE) == 400.5
    assert seconds(learned(400), later=MAX_SAMPLE_AGE + 1) == 0.0


@pytest.mark.parametrize("step", [-3600.0, -3.0, 3.0, 100.0, 86_400.0])
def test_what_was_learned_before_a_step_of_the_clock_is_dropped(step: float) -> None:
    """When wall and monotonic clock moved apart it is not known which is right, so nothing is corrected."""
    assert seconds(learned(100), later=10.0, step=step) == 0.0


def test_slow_drift_is_followed() -> None:
    """A wall clock that is being slewed a little keeps being corrected to the backend's."""
    assert seconds(learned(100), later=100.0, step=1.0) == pytest.approx(99.5)


@pytest.mark.parametrize(("offset", "expected"), [(0, 0), (100, 100), (-100, -100), (299, 299), (-300, -300)])
def test_the_signed_second_is_the_backends(offset: float, expected: int) -> None:
    """Up to the limit the time to sign is corrected."""
    assert learned(offset).signing_time(now=NOW, monotonic=MONOTONIC) == NOW + expected


@pytest.mark.parametrize("offset", [301, -302, 86_400, 10**9, -(10**9)])
def test_beyond_the_limit_nothing_is_signed(offset: float) -> None:
    """Clocks that are too far apart are an operator's matter."""
    with pytest.raises(ClockSkewError):
        learned(offset).signing_time(now=NOW, monotonic=MONOTONIC)


@pytest.mark.parametrize(
    ("offsets", "later", "expected"),
    [
        ((), 0.0, False),
        ((0,), 0.0, True),
        ((0,), 60.0, True),
        ((0,), 61.0, False),
        ((100,), 0.0, True),
        ((0, 0, 1), 0.0, True),
        ((0, 0, 100), 0.0, False),
        ((0, 0, 100, 100, 100), 0.0, True),
        ((0, 100, 0), 0.0, True),
    ],
)
def test_a_clock_is_settled_while_its_newest_answer_is_young_and_contradicts_nothing(
    offsets: tuple[float, ...], later: float, expected: bool
) -> None:
    """Otherwise the clock may have changed, and only further answers can tell."""
    assert learned(*offsets).is_settled(now=NOW + later, monotonic=MONOTONIC + later, max_age=60.0) is expected
