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

    /// The broker said something. A warning too: who saw the other is to see this one.
    pub(crate) fn heard(&self) {
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::Relaxed) {
            tracing::warn!("the broker is back");
        }
    }
}
