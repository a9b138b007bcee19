//! Until when an authorization is used and when the next one is fetched, on the monotonic clock.

use std::time::Duration;

use prost_types::Timestamp;
use tokio::time::Instant;

/// The times of one authorization. The broker's clock and this machine's date are never compared: only differences of
/// the broker's own times count, from the moment of receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    refresh: Instant,
    expire: Instant,
}

impl Lifetime {
    /// Counts the broker's times from `received`. A time that is missing, or before `server`, is over at once.
    pub(crate) fn new(
        server: Option<Timestamp>,
        refresh: Option<Timestamp>,
        expire: Option<Timestamp>,
        received: Instant,
    ) -> Self {
        let after = |time: Option<Timestamp>| received + time.zip(server).map_or(Duration::ZERO, difference);
        let expire = after(expire);
        Self { refresh: after(refresh).min(expire), expire }
    }

    /// When to ask for the next value.
    pub(crate) fn refresh(&self) -> Instant {
        self.refresh
    }

    /// When to stop using the value.
    pub(crate) fn expire(&self) -> Instant {
        self.expire
    }

    /// Whether the value may be used now and for `least` from now.
    pub(crate) fn lasts(&self, now: Instant, least: Duration) -> bool {
        self.expire.saturating_duration_since(now) > least
    }

    /// When the client itself must fetch the next value. Where a stream is up the broker has until half-way between
    /// refresh and end to send it.
    pub(crate) fn due(&self, watched: bool) -> Instant {
        let grace = if watched { (self.expire - self.refresh) / 2 } else { Duration::ZERO };
        self.refresh + grace
    }
}

/// No time that counts is longer.
pub(crate) const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The moment after so long, which may be for ever.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now + wait.min(CENTURY)
}

/// The time from `server` to `time`; zero where it is not after, a century at most.
fn difference((time, server): (Timestamp, Timestamp)) -> Duration {
    let nanos = |time: Timestamp| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let between = u64::try_from(nanos(time).saturating_sub(nanos(server)).max(0)).unwrap_or(u64::MAX);
    Duration::from_nanos(between).min(CENTURY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[allow(clippy::unnecessary_wraps)] // as in a message
    fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos })
    }

    fn lifetime(received: Instant) -> Lifetime {
        Lifetime::new(at(1_000, 500_000_000), at(1_030, 0), at(1_060, 250_000_000), received)
    }

    #[test]
    fn times_are_counted_from_receipt() {
        let now = Instant::now();
        assert_eq!(lifetime(now).refresh() - now, Duration::from_millis(29_500));
        assert_eq!(lifetime(now).expire() - now, Duration::from_millis(59_750));
    }

    #[test]
    fn a_value_lasts_until_its_end_and_not_at_it() {
        let now = Instant::now();
        let end = lifetime(now).expire();
        assert!(lifetime(now).lasts(end - Duration::from_nanos(1), Duration::ZERO));
        assert!(!lifetime(now).lasts(end, Duration::ZERO));
        assert!(!lifetime(now).lasts(end + SECOND, Duration::ZERO));
        assert!(lifetime(now).lasts(end - 2 * SECOND, SECOND));
        assert!(!lifetime(now).lasts(end - SECOND, SECOND));
    }

    #[test]
    fn a_watched_value_is_asked_for_half_way_between_refresh_and_end() {
        let now = Instant::now();
        let value = lifetime(now);
        assert_eq!(value.due(false), value.refresh());
        assert_eq!(value.due(true) - value.refresh(), Duration::from_millis(15_125));
    }

    #[test]
    fn what_is_missing_or_backwards_is_over_at_once() {
        let now = Instant::now();
        for value in [
            Lifetime::new(None, at(5, 0), at(9, 0), now),
            Lifetime::new(at(1, 0), at(5, 0), None, now),
            Lifetime::new(at(9, 0), at(5, 0), at(1, 0), now),
        ] {
            assert_eq!(value, Lifetime { refresh: now, expire: now });
        }
        let late_refresh = Lifetime::new(at(0, 0), at(50, 0), at(20, 0), now);
        assert_eq!(late_refresh.refresh(), late_refresh.expire());
        let endless = Lifetime::new(at(i64::MIN, 0), at(0, 0), at(i64::MAX, 0), now);
        assert!(endless.lasts(now, Duration::from_secs(1_000_000_000)));
    }
}
