//! How long to wait before something is tried again.

use std::time::Duration;

/// Waits that grow, each made a little random so that clients do not come together.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    factor: f64,
    longest: Duration,
    /// The random part: a wait is multiplied by something from here to 1.
    least: f64,
    tried: i32,
}

impl Backoff {
    /// Between attempts of one call, as in `service_config.json`.
    pub(crate) fn of_call() -> Self {
        Self::new(Duration::from_millis(100), 2.0, Duration::from_secs(2), 0.8)
    }

    /// Between connections to one address.
    pub(crate) fn of_connection() -> Self {
        Self::new(Duration::from_millis(200), 1.6, Duration::from_secs(5), 0.8)
    }

    /// Between streams, and between background refreshes of one entry.
    pub(crate) fn of_stream() -> Self {
        Self::new(Duration::from_millis(200), 2.0, Duration::from_secs(10), 0.5)
    }

    fn new(first: Duration, factor: f64, longest: Duration, least: f64) -> Self {
        Self { first, factor, longest, least, tried: 0 }
    }

    /// Begins again with the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.tried = 0;
    }

    /// Returns the next wait; `random` is from 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let grown = self.first.as_secs_f64() * self.factor.powi(self.tried);
        self.tried = (self.tried + 1).min(64);
        let jitter = self.least + (1.0 - self.least) * random;
        Duration::from_secs_f64(grown.min(self.longest.as_secs_f64()) * jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(mut backoff: Backoff, random: f64) -> Vec<u128> {
        (0..9).map(|_| backoff.next(random).as_millis()).collect()
    }

    #[test]
    fn waits_grow_to_their_limit() {
        assert_eq!(waits(Backoff::of_call(), 1.0)[..4], [100, 200, 400, 800]);
        assert_eq!(waits(Backoff::of_connection(), 1.0), [200, 320, 512, 819, 1310, 2097, 3355, 5000, 5000]);
        assert_eq!(waits(Backoff::of_stream(), 1.0), [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(waits(Backoff::of_stream(), 0.0)[..3], [100, 200, 400]);
    }

    #[test]
    fn waits_stay_at_their_limit_for_ever_and_begin_again_when_told() {
        let mut backoff = Backoff::of_stream();
        for _ in 0..10_000 {
            backoff.next(1.0);
        }
        assert_eq!(backoff.next(1.0), Duration::from_secs(10));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}
