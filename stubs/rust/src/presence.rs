//! Says once that the broker is away, and once that it is back.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use crate::cache::Cache;

/// Whether the log last said that the broker is away.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    away: AtomicBool,
}

impl Presence {
    /// The broker cannot be reached, or its stream is silent or fails. A call that was given up says nothing.
    pub(crate) fn lost(&self, cache: &Cache) {
        if self.away.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let (held, first_end) = cache.held(now);
        let ends = first_end.map_or_else(String::new, |end| {
            format!(", the first ends in {} s", end.saturating_duration_since(now).as_secs())
        });
        tracing::warn!("the broker is away; authorizations held: {held}{ends}");
    }

    /// The broker said something.
    pub(crate) fn heard(&self) {
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::Relaxed) {
            tracing::info!("the broker is back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use crate::locks::lock;

    /// What the log was told.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Told {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn away_is_told_once_as_a_warning_and_back_once_as_information() {
        let told = Told::default();
        let writer = told.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
        let (cache, _changes) = Cache::new(9, Duration::from_secs(300));
        tracing::subscriber::with_default(log.with_target(false).finish(), || {
            let presence = Presence::default();
            presence.heard();
            for _ in 0..2 {
                presence.lost(&cache);
                presence.lost(&cache);
                presence.heard();
                presence.heard();
            }
        });
        let told = String::from_utf8(lock(&told.0).clone()).unwrap();
        let lines: Vec<_> = told.lines().map(str::trim).collect();
        let turn = ["WARN the broker is away; authorizations held: 0", "INFO the broker is back"];
        assert_eq!(lines, [turn, turn].concat());
    }
}
